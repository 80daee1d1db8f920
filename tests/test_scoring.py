"""Scoring pairs and whole databases."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.small import TINY, small_database
from vtamiq.caps import CAPS
from vtamiq.images import ImageError, read_image, write_png
from vtamiq.model import VTAMIQ, CheckpointError
from vtamiq.predictions import caps_for, predict, write_table
from vtamiq.scoring import score


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return small_database(tmp_path_factory.mktemp("pairs"), references=2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VTAMIQ(TINY).eval()


@pytest.fixture(scope="module")
def pair(database):
    return [database.path(database.pairs.loc[3, name]) for name in ("ref_path", "dist_path")]


def test_same_score_from_path_pil_array_and_tensor(model, pair):
    expected = score(*pair, model=model)
    arrays = [read_image(path) for path in pair]
    assert isinstance(expected, float)
    assert score(*(Image.open(path) for path in pair), model=model) == expected
    assert score(*arrays, model=model) == expected
    assert score(*(torch.from_numpy(a).permute(2, 0, 1) for a in arrays), model=model) == expected


def test_a_copy_scores_zero(model, pair):
    assert score(pair[0], pair[0], model=model) == 0


def test_list_is_scored_as_if_one_by_one(model, database):
    reference = database.path(database.pairs.loc[0, "ref_path"])
    distorted = [database.path(path) for path in database.pairs["dist_path"][:3]]
    together = score(reference, distorted, model=model)
    assert together.shape == (3,)
    np.testing.assert_array_equal(together, [score(reference, image, model=model) for image in distorted])


def test_repeats_average_independent_draws(model, pair):
    caps = CAPS(num_patches=6)
    mean, error = score(*pair, model=model, repeats=4, caps=caps, return_std=True)
    assert mean == score(*pair, model=model, repeats=4, caps=caps)
    assert error > 0
    assert score(*pair, model=model, caps=caps, seed=0) != score(*pair, model=model, caps=caps, seed=1)
    assert np.isnan(score(*pair, model=model, return_std=True)[1])


def test_mode_of_the_model_is_restored(pair):
    model = VTAMIQ(TINY).train()
    score(*pair, model=model)
    assert model.training
    assert model.head.training


def test_caps_follow_the_model():
    model = VTAMIQ(replace(TINY, num_scales=3, uv_anchor="corner"))
    caps = caps_for(model, num_patches=9)
    assert (caps.num_patches, caps.num_scales, caps.uv_anchor, caps.patch_size) == (9, 3, "corner", 16)
    assert caps_for(model, CAPS(num_scales=2, patch_size=8)).num_scales == 3
    assert caps_for(VTAMIQ(TINY), CAPS(num_scales=2)).num_scales == 2
    assert caps_for(model, CAPS(patch_size=8)).patch_size == 16


def test_without_model_says_what_to_do(pair):
    with pytest.raises(CheckpointError, match="from_pretrained"):
        score(*pair)


@pytest.mark.parametrize("bad", [{"repeats": 0}, {"distorted": []}, {"seed": -1}])
def test_bad_arguments(model, pair, bad):
    with pytest.raises(ValueError, match=r"repeats|no distorted|seed"):
        score(
            pair[0], bad.get("distorted", pair[1]), model=model, repeats=bad.get("repeats", 1), seed=bad.get("seed", 0)
        )


def test_sizes_must_agree(model, pair):
    with pytest.raises(ImageError, match="differ in size"):
        score(pair[0], np.zeros((50, 48, 3), np.uint8), model=model)


def test_an_image_smaller_than_a_patch_is_named(model, tmp_path):
    write_png(tmp_path / "small.png", np.zeros((10, 12, 3), np.uint8))
    with pytest.raises(ImageError, match=r"small\.png: an image of 12 x 10 .* is smaller than a patch of 16 px"):
        score(tmp_path / "small.png", tmp_path / "small.png", model=model)


# -------------------------------------------------------------------------------------------------------- whole databases


def test_prediction_table(model, database):
    caps = CAPS(num_patches=6)
    table = predict(model, database, caps, repeats=3, seed=4, batch_size=3, progress=False, split="val")
    assert len(table) == len(database)
    assert table["dist_path"].tolist() == database.pairs["dist_path"].tolist()
    assert (table["split"] == "val").all()
    assert (table["num_patches"] == 6).all()
    assert (table["repeats"] == 3).all()
    assert table["synthetic"].all()
    assert (table["q_std"] > 0).all()
    draws = [predict(model, database, caps, seed=4, repeats=r, progress=False)["q"] for r in (1, 2)]
    first, second = draws[0], 2 * draws[1] - draws[0]
    third = 3 * table["q"] - first - second
    np.testing.assert_allclose(np.std([first, second, third], axis=0, ddof=1), table["q_std"], rtol=1e-3, atol=1e-6)


def test_predictions_do_not_depend_on_batches_or_workers(model, database):
    one = predict(model, database, CAPS(num_patches=6), batch_size=1, progress=False)
    other = predict(model, database, CAPS(num_patches=6), batch_size=5, workers=1, progress=False)
    np.testing.assert_allclose(one["q"], other["q"], atol=1e-6)


def test_single_draw_has_no_spread(model, database):
    assert predict(model, database, CAPS(num_patches=6), progress=False)["q_std"].isna().all()


def test_repeats_are_checked(model, database):
    with pytest.raises(ValueError, match="repeats"):
        predict(model, database, repeats=0)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_tables_are_written_whole(tmp_path, suffix):
    table = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    path = write_table(table, tmp_path / "new" / f"table{suffix}")
    read = pd.read_parquet(path) if suffix == ".parquet" else pd.read_csv(path)
    assert read.equals(table)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_other_table_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.parquet, \.csv or \.tex"):
        write_table(pd.DataFrame(), tmp_path / "table.xlsx")
