"""Images of pairs: read from disk, or distorted on the fly as a recipe says."""

from dataclasses import replace

import numpy as np
import pytest

from tests.small import SIDE, small_database
from vtamiq.databases.pairs import PairImages
from vtamiq.databases.schema import DatabaseError
from vtamiq.images.distortions import distort
from vtamiq.images.reading import ImageError, centre_crop, read_image, write_png


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return small_database(tmp_path_factory.mktemp("data"), references=3, levels=3)


def with_recipes(database, type=11, **changes):
    pairs = database.pairs.assign(dist_type=type, recipe_seed=np.arange(len(database), dtype=np.uint64) + 2**63)
    pairs = pairs.astype({"dist_type": "Int16"})
    return replace(database, pairs=pairs, **changes)


def test_files_are_read(database):
    images = PairImages(database)
    assert len(images) == 9
    for row, paths in enumerate(database.pairs[["ref_path", "dist_path"]].itertuples(index=False)):
        np.testing.assert_array_equal(images[row], [read_image(database.root / path) for path in paths])
    with pytest.raises(ValueError, match="read-only"):
        images[0][:] = 0


def test_neighbours_share_the_decoded_reference(database, monkeypatch):
    import vtamiq.databases.pairs

    reads = []
    monkeypatch.setattr(vtamiq.databases.pairs, "read_image", lambda path: reads.append(path) or read_image(path))
    images = PairImages(database)
    for row in range(9):
        images[row]
    assert len(reads) == 3 + 9


def test_recipes_are_rendered_and_need_no_file(database):
    made = with_recipes(database)
    pairs = made.pairs.assign(dist_path=[f"no/such/file_{row}.png" for row in range(9)])
    images = PairImages(replace(made, pairs=pairs))
    for row in (8, 0, 4):
        reference = read_image(database.root / pairs.loc[row, "ref_path"])
        expected = distort(reference, 11, row % 3 + 1, seed=2**63 + row)
        np.testing.assert_array_equal(images[row], [reference, expected])


def test_references_are_cropped_before_they_are_distorted(database):
    made = with_recipes(database, type=1, crop=(40, 32))
    reference = centre_crop(read_image(database.root / made.pairs.loc[2, "ref_path"]), (40, 32))
    np.testing.assert_array_equal(PairImages(made)[2], [reference, distort(reference, 1, 3)])


def test_what_cannot_be_made_is_named(database):
    with pytest.raises(ImageError, match=rf"r0\.png: {SIDE} x {SIDE} pixels are too few for a crop of 64 x 32"):
        PairImages(with_recipes(database, crop=(64, 32)))[0]
    with pytest.raises(ImageError, match=r"r0_1\.png cannot be made: distortion types are numbered 1 to 25, got 26"):
        PairImages(with_recipes(database, type=26))[0]


def test_a_pair_of_two_sizes_is_named(tmp_path):
    database = small_database(tmp_path, references=1)
    write_png(tmp_path / "images" / "r0_2.png", np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(ImageError, match=r"images/r0\.png is 48 x 48 and images/r0_2\.png is 9 x 8"):
        PairImages(database)[1]


def test_only_recipes_can_be_cropped(database):
    with pytest.raises(DatabaseError, match="only pairs with recipes"):
        replace(database, crop=(8, 8))
    with pytest.raises(DatabaseError, match="a recipe needs a type and a level"):
        replace(database, pairs=with_recipes(database).pairs.assign(level=None).astype({"level": "Int16"}))
