"""Patch datasets: what an item holds, and that it depends on (seed, epoch, row) only."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.small import small_database
from vtamiq.caps import CAPS
from vtamiq.databases.patches import EpochSampler, Flips, PairPatches, PatchLoader
from vtamiq.databases.schema import LabelScale
from vtamiq.images.reading import ImageError, read_image

CAPS_8 = CAPS(num_patches=8)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return small_database(tmp_path_factory.mktemp("pairs"))


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_item_holds_what_the_model_reads(database):
    item = PairPatches(database, CAPS_8, labels=LabelScale.fit(database))[5]
    assert item["patches"].shape == (2, 8, 3, 16, 16)
    assert item["patches"].dtype == torch.uint8
    assert item["uv"].shape == (8, 2)
    assert item["scale"].shape == (8,)
    assert item["row"] == 5
    assert item["target"].dtype == torch.float32
    assert item["target"] == pytest.approx((2 - 1) / (4 - 1))  # row 5 is the second level of the second reference


def test_patches_come_from_the_images_of_the_row(database):
    dataset = PairPatches(database, CAPS(num_patches=4), seed=2)
    item = dataset[7]
    reference, distorted = (
        read_image(database.path(database.pairs.loc[7, name])) for name in ("ref_path", "dist_path")
    )
    y, x = ((item["uv"][0] * (48 - 8)) - 8).round().long().tolist()
    assert np.array_equal(item["patches"][0, 0].permute(1, 2, 0).numpy(), reference[y : y + 16, x : x + 16])
    assert np.array_equal(item["patches"][1, 0].permute(1, 2, 0).numpy(), distorted[y : y + 16, x : x + 16])


def test_item_depends_on_seed_epoch_and_row_only(database):
    dataset = PairPatches(database, CAPS_8, seed=3, flips=Flips(0.5, 0.5))
    n = len(dataset)
    assert same(dataset[2 * n + 4], PairPatches(database, CAPS_8, seed=3, flips=Flips(0.5, 0.5))[2 * n + 4])
    assert not same(dataset[4], dataset[n + 4])
    assert not same(dataset[4], PairPatches(database, CAPS_8, seed=4)[4])


@pytest.mark.parametrize(("flips", "axis"), [(Flips(horizontal=1.0), 1), (Flips(vertical=1.0), 0)])
def test_flips_mirror_both_images(database, flips, axis):
    item = PairPatches(database, CAPS_8, flips=flips)[0]
    reference, distorted = (
        np.flip(read_image(database.path(database.pairs.loc[0, name])), axis) for name in ("ref_path", "dist_path")
    )
    y, x = ((item["uv"][0] * (48 - 8)) - 8).round().long().tolist()
    for k, image in enumerate((reference, distorted)):
        assert np.array_equal(item["patches"][k, 0].permute(1, 2, 0).numpy(), image[y : y + 16, x : x + 16])


def test_flip_probability_acts(database):
    def share(p):
        dataset = PairPatches(database, CAPS(num_patches=1, patch_size=48), flips=Flips(horizontal=p))
        plain = PairPatches(database, CAPS(num_patches=1, patch_size=48))[0]["patches"]
        return np.mean([not torch.equal(dataset[e * len(dataset)]["patches"], plain) for e in range(40)])

    assert share(0.0) == 0
    assert share(1.0) == 1
    assert 0.2 < share(0.5) < 0.8


def test_batches_are_the_same_for_any_number_of_workers(database):
    dataset = PairPatches(database, CAPS_8, seed=1)

    def batches(workers):
        loader = PatchLoader(dataset, batch_size=6, workers=workers, shuffle=True)
        loader.sampler.set_epoch(3)
        return list(loader)

    for a, b in zip(batches(0), batches(2), strict=True):
        assert same(a, b)


def test_sampler_visits_every_row_once_per_epoch_in_a_new_order():
    sampler = EpochSampler(10, shuffle=True, seed=5)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        indices = list(sampler)
        assert sorted(indices) == list(range(10 * epoch, 10 * epoch + 10))
        orders.append([index % 10 for index in indices])
    assert orders[0] != orders[1] != orders[2]
    assert list(EpochSampler(4)) == [0, 1, 2, 3]


def test_in_memory_reads_once_and_changes_nothing(database, monkeypatch):
    import vtamiq.databases.pairs

    kept, plain = (PairPatches(database, CAPS_8, flips=Flips(0.5, 0.5), in_memory=memory) for memory in (True, False))
    n, reads = len(kept), []
    read = vtamiq.databases.pairs.read_image
    expected = [plain[epoch * n + 3] for epoch in range(4)]
    monkeypatch.setattr(vtamiq.databases.pairs, "read_image", lambda source: reads.append(source) or read(source))
    assert all(same(kept[epoch * n + 3], expected[epoch]) for epoch in range(4))
    assert len(reads) == 2


def test_missing_image_stops_with_its_name(tmp_path):
    database = small_database(tmp_path, references=1)
    database.path(database.pairs.loc[2, "dist_path"]).unlink()
    with pytest.raises(ImageError, match=r"r0_3\.png"):
        PairPatches(database, CAPS_8)[2]


def test_an_image_smaller_than_a_patch_is_named(database):
    with pytest.raises(ImageError, match=r"r0_1\.png: .* smaller than a patch of 64 px"):
        PairPatches(database, CAPS(num_patches=4, patch_size=64))[0]


def test_rows_without_score_cannot_be_trained_on(database):
    pairs = database.pairs.copy()
    pairs.loc[3, "score"] = np.nan
    from dataclasses import replace

    with pytest.raises(ValueError, match="score of row 3 is nan"):
        PairPatches(replace(database, pairs=pairs), CAPS_8, labels=LabelScale.fit(database))


@pytest.mark.parametrize("bad", [{"horizontal": -0.1}, {"vertical": 1.5}])
def test_flip_probabilities_are_checked(bad):
    with pytest.raises(ValueError, match="probability"):
        Flips(**bad)


def test_an_item_of_several_versions(tmp_path):
    """Three references of five versions, two to an item: six items an epoch, and in time every row has been in one."""
    data = small_database(tmp_path, references=3, levels=5)
    data = replace(data, pairs=data.pairs.assign(rank_a=np.arange(15.0)))
    pairs = PairPatches(
        data, CAPS_8, labels=LabelScale.fit(data), auxiliary=["rank_a"], distorted_per_reference=2, seed=4
    )
    assert len(pairs) == 6
    item = pairs[2]
    assert item["patches"].shape == (3, 8, 3, 16, 16)
    assert item["uv"].shape == (8, 2)
    rows = item["row"].tolist()
    assert item["auxiliary"].tolist() == [[float(row)] for row in rows]
    assert item["target"].tolist() == pytest.approx([row % 5 / 4 for row in rows])
    y, x = ((item["uv"][0] * (48 - 8)) - 8).round().long().tolist()
    paths = [data.pairs.loc[rows[0], "ref_path"], *data.pairs.loc[rows, "dist_path"]]
    for patches, path in zip(item["patches"], paths, strict=True):
        assert np.array_equal(patches[0].permute(1, 2, 0).numpy(), read_image(data.path(path))[y : y + 16, x : x + 16])

    epochs = [[pairs[6 * epoch + k]["row"].tolist() for k in range(6)] for epoch in range(8)]
    for groups in epochs:
        taken = [row for group in groups for row in group]
        assert len(set(taken)) == 12
        assert all(a // 5 == b // 5 for a, b in groups)
        assert [sum(row // 5 == r for row in taken) for r in range(3)] == [4, 4, 4]
    assert {row for groups in epochs for group in groups for row in group} == set(range(15))
    assert epochs[0] != epochs[1]
    again = PairPatches(
        data, CAPS_8, labels=LabelScale.fit(data), auxiliary=["rank_a"], distorted_per_reference=2, seed=4
    )
    assert same(again[6 + 2], pairs[6 + 2])

    copies = PairPatches(
        data, CAPS_8, labels=LabelScale.fit(data), auxiliary=["rank_a"], distorted_per_reference=5, zero_error=0.5
    )
    for item in (copies[k] for k in range(9)):
        copied = (item["patches"][1:] == item["patches"][:1]).flatten(1).all(1)
        assert torch.equal(item["auxiliary"][:, 0] == 0, copied | (item["row"] == 0))
        assert (item["target"][copied] == 0).all()
    with pytest.raises(ValueError, match=r"distorted_per_reference=6, but images/r0.png has 5 distorted images only"):
        PairPatches(data, CAPS_8, distorted_per_reference=6)


def test_auxiliary_columns_come_with_the_item(tmp_path):
    data = small_database(tmp_path, references=2, levels=2)
    data = replace(data, pairs=data.pairs.assign(rank_a=[0.0, 0.5, 0.25, 1.0], rank_b=0.75))
    pairs = PairPatches(data, CAPS(num_patches=3), auxiliary=["rank_b", "rank_a"])
    assert pairs[3]["auxiliary"].tolist() == [0.75, 1.0]
    assert pairs[4 + 1]["auxiliary"].tolist() == [0.75, 0.5]  # the second epoch
    assert pairs[0]["auxiliary"].dtype == torch.float32
    assert "auxiliary" not in PairPatches(data, CAPS(num_patches=3))[0]
    with pytest.raises(ValueError, match="small has no columns rank_c; it has rank_a, rank_b"):
        PairPatches(data, CAPS(), auxiliary=["rank_c"])
    holes = replace(data, pairs=data.pairs.assign(rank_a=[0.0, 0.5, np.nan, 1.0]))
    with pytest.raises(ValueError, match="small: rank_a of row 2 is nan"):
        PairPatches(holes, CAPS(), auxiliary=["rank_b", "rank_a"])
