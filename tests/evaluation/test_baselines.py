"""Conventional metrics and the look-up baseline: values, directions, resumption, independence of processes."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import vtamiq.evaluation.baselines
from tests.small import small_database
from vtamiq.evaluation.baselines import iqm_predictions, lookup_predictions
from vtamiq.evaluation.tables import evaluate
from vtamiq.images.iqms import iqm_scores, psnr
from vtamiq.images.reading import ImageError, read_images, write_png


def test_conventional_metrics_have_their_values_and_directions(tmp_path):
    database = small_database(tmp_path, references=2)
    table = iqm_predictions(database, ("psnr", "ssim", "gmsd"), progress=False)
    pair = read_images([database.path(database.pairs.loc[2, name]) for name in ("ref_path", "dist_path")])
    row = table[table["dist_path"] == database.pairs.loc[2, "dist_path"]].set_index("metric")
    assert row.loc["psnr", "q"] == pytest.approx(psnr(*pair))
    assert row.loc["gmsd", "q"] == pytest.approx(iqm_scores(*pair, ["gmsd"])["gmsd"])
    results = evaluate(table, by=("metric",), bootstrap=0).set_index("metric")
    assert (results["srocc"] > 0.7).all()  # DMOS grows with noise; PSNR falls, GMSD grows: all agree


def test_what_is_measured_is_kept_and_an_interrupted_call_goes_on(tmp_path, monkeypatch):
    database = small_database(tmp_path, references=3)
    monkeypatch.setattr(vtamiq.evaluation.baselines, "_CHUNK", 5)  # 12 pairs: chunks of 5, 5 and 2
    expected = iqm_predictions(database, ["psnr", "gmsd"], progress=False)
    measure, measured = vtamiq.evaluation.baselines._measure, []

    def interrupted(chunk):
        if chunk.start == 10:
            raise KeyboardInterrupt
        measured.append(chunk.start)
        return measure(chunk)

    options = {"names": ["psnr", "gmsd"], "cache": tmp_path / "cache", "progress": False}
    monkeypatch.setattr(vtamiq.evaluation.baselines, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        iqm_predictions(database, **options)
    monkeypatch.setattr(
        vtamiq.evaluation.baselines, "_measure", lambda chunk: measured.append(chunk.start) or measure(chunk)
    )
    pd.testing.assert_frame_equal(iqm_predictions(database, **options), expected)
    assert measured == [0, 5, 10]
    pd.testing.assert_frame_equal(iqm_predictions(database, **options), expected)
    assert measured == [0, 5, 10]


def test_a_changed_image_is_measured_anew(tmp_path):
    database = small_database(tmp_path, references=1)
    options = {"names": ["psnr"], "cache": tmp_path / "cache", "progress": False}
    before = iqm_predictions(database, **options)
    write_png(database.path(database.pairs.loc[1, "dist_path"]), np.zeros((48, 48, 3), np.uint8))
    after = iqm_predictions(database, **options)
    assert (before["q"] != after["q"]).tolist() == [False, True, False, False]


def test_processes_do_not_change_the_result(tmp_path, monkeypatch):
    database = small_database(tmp_path, references=2)
    monkeypatch.setattr(vtamiq.evaluation.baselines, "_CHUNK", 4)
    one, two = (iqm_predictions(database, ["ssim"], workers=workers, progress=False) for workers in (0, 2))
    pd.testing.assert_frame_equal(one, two)


def test_recipes_are_measured_like_files(tmp_path):
    database = small_database(tmp_path, references=1)
    pairs = database.pairs.assign(dist_type=11, recipe_seed=np.uint64(1)).astype({"dist_type": "Int16"})
    table = iqm_predictions(replace(database, pairs=pairs), ["psnr"], progress=False)
    assert (np.diff(table["q"]) < 0).all()  # white noise of rising variance


@pytest.mark.parametrize("names", [[], ["psnr", "lpips"]])
def test_unknown_metrics_are_refused(tmp_path, names):
    with pytest.raises(ValueError, match=r"name metrics of psnr, ssim, .*; got (none|lpips)"):
        iqm_predictions(small_database(tmp_path, references=1), names)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    database = small_database(tmp_path, references=1)
    database.path(database.pairs.loc[2, "dist_path"]).write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"r0_3\.png"):
        iqm_predictions(database, ["psnr"], progress=False)


def test_a_model_beside_its_baselines(tmp_path):
    database = small_database(tmp_path, references=4)
    training, test = database.subset(["r0", "r1", "r2"]), database.subset(["r3"])
    pairs = test.pairs.assign(q=test.pairs["score"] ** 2, synthetic=True)
    model = pairs.assign(metric="VTAMIQ", lower_better=True)
    iqms = iqm_predictions(test, ["psnr", "gmsd"], progress=False)
    table = pd.concat([model, iqms, lookup_predictions(training, test)], ignore_index=True)
    assert table.groupby("metric", sort=False).size().to_dict() == {"VTAMIQ": 4, "psnr": 4, "gmsd": 4, "lookup": 4}
    results = evaluate(table, by=["metric"], bootstrap=0).set_index("metric")
    assert (results["srocc"] == 1).all()  # every direction is known
    assert table.loc[table["metric"] == "psnr", "lower_better"].eq(False).all()


def test_lookup_knows_cells_only(tmp_path):
    database = small_database(tmp_path, references=4)
    training, test = database.subset(["r0", "r1", "r2"]), database.subset(["r3"])
    table = lookup_predictions(training, test)
    np.testing.assert_allclose(table["q"], [0, 1 / 3, 2 / 3, 1])
    assert table["dist_path"].tolist() == test.pairs["dist_path"].tolist()


def test_lookup_of_an_unseen_cell_is_the_mean(tmp_path):
    database = small_database(tmp_path, references=2)
    training = database.subset(((database.pairs["level"] < 4) & (database.pairs["ref_id"] == "r0")).to_numpy())
    table = lookup_predictions(training, database.subset(["r1"]))
    np.testing.assert_allclose(table["q"], [0, 0.5, 1, 0.5])
