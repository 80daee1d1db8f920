"""Correlation tables: by hand where possible, signed, and loud about rows that cannot be used."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, pearsonr, spearmanr

from tests.small import small_database
from vtamiq.evaluation import beside_baselines, cross_database, evaluate, iqm_predictions, lookup_predictions
from vtamiq.images import read_images
from vtamiq.metrics import iqm_scores, psnr


def predictions(n=40, seed=0, **columns):
    rng = np.random.default_rng(seed)
    columns = {"seed": seed} | columns
    score = rng.uniform(1, 5, n)
    q = -score + 0.5 * rng.standard_normal(n)
    return pd.DataFrame({"q": q, "score": score, "higher_better": True, "database": "d", "synthetic": False} | columns)


def test_correlations_are_those_of_scipy_with_agreement_positive():
    table = predictions()
    row = evaluate(table, bootstrap=0).iloc[0]
    assert row["n"] == 40
    assert row["srocc"] == pytest.approx(-spearmanr(table["q"], table["score"]).statistic)
    assert row["krocc"] == pytest.approx(-kendalltau(table["q"], table["score"]).statistic)
    assert row["plcc"] == pytest.approx(-pearsonr(table["q"], table["score"]).statistic)
    assert row["srocc"] > 0.8
    assert row["plcc_fitted"] >= row["plcc"] - 1e-9
    assert not row["synthetic"]


def test_direction_of_either_side_flips_the_sign():
    table = predictions()
    up = evaluate(table, bootstrap=0)["srocc"].iloc[0]
    for change in ({"higher_better": False}, {"lower_better": False}):
        assert evaluate(table.assign(**change), bootstrap=0)["srocc"].iloc[0] == pytest.approx(-up)
    both = table.assign(higher_better=False, lower_better=False)
    assert evaluate(both, bootstrap=0)["srocc"].iloc[0] == pytest.approx(up)


def test_groups_are_evaluated_alone():
    a, b = predictions(seed=1, database="a"), predictions(seed=2, database="b", synthetic=True)
    table = evaluate(pd.concat([a, b]), bootstrap=0).set_index("database")
    assert table.loc["a", "srocc"] == pytest.approx(evaluate(a, bootstrap=0)["srocc"].iloc[0])
    assert table.loc["b", "srocc"] == pytest.approx(evaluate(b, bootstrap=0)["srocc"].iloc[0])
    assert table["synthetic"].to_dict() == {"a": False, "b": True}


def test_interval_holds_the_estimate_and_depends_on_the_seed_only():
    row, again = (evaluate(predictions(), bootstrap=200).iloc[0] for _ in range(2))
    assert row["srocc_low"] < row["srocc"] < row["srocc_high"]
    assert row["srocc_low"] == again["srocc_low"]


def test_rows_say_what_they_were_measured_on():
    row = evaluate(predictions(split="test", num_patches=64, seed=3), by=["split"], bootstrap=0).iloc[0]
    assert (row["database"], row["num_patches"], row["seed"]) == ("d", 64, 3)
    mixed = pd.concat([predictions(num_patches=64), predictions(num_patches=128)])
    assert "num_patches" not in evaluate(mixed, bootstrap=0)


def test_origin_of_labels_must_be_known():
    with pytest.raises(ValueError, match="no column synthetic"):
        evaluate(predictions().drop(columns="synthetic"))


def test_only_small_groups():
    assert evaluate(predictions(n=2), bootstrap=0)["srocc"].isna().all()


def test_groups_too_small_are_listed_without_numbers():
    table = evaluate(pd.concat([predictions(), predictions(n=2, database="tiny")]), bootstrap=0).set_index("database")
    assert table.loc["tiny", "n"] == 2
    assert np.isnan(table.loc["tiny", "srocc"])


@pytest.mark.parametrize("column", ["q", "score"])
def test_nan_never_passes(column):
    table = predictions()
    table.loc[7, column] = np.nan
    with pytest.raises(ValueError, match="1 rows have no finite"):
        evaluate(table)


def test_mixed_directions_in_a_group_are_refused():
    table = pd.concat([predictions(), predictions(higher_better=False)])
    with pytest.raises(ValueError, match="disagree in `higher_better`"):
        evaluate(table)


@pytest.mark.parametrize(
    "bad", [pd.DataFrame(), pd.DataFrame({"q": [], "score": [], "higher_better": [], "database": []})]
)
def test_empty_tables_are_refused(bad):
    with pytest.raises(ValueError, match=r"no column|empty"):
        evaluate(bad)


def test_cross_database_is_a_matrix():
    parts = [
        predictions(seed=s, trained_on=t, database=d)
        for s, (t, d) in enumerate([("x", "a"), ("x", "b"), ("y", "a"), ("y", "b")])
    ]
    matrix = cross_database(pd.concat(parts))
    assert matrix.loc["y", "a"] == pytest.approx(evaluate(parts[2], bootstrap=0)["srocc"].iloc[0])
    assert matrix.shape == (2, 2)


def test_conventional_metrics_have_their_values_and_directions(tmp_path):
    database = small_database(tmp_path, references=2)
    table = iqm_predictions(database, ("psnr", "ssim", "gmsd"), progress=False)
    pair = read_images([database.path(database.pairs.loc[2, name]) for name in ("ref_path", "dist_path")])
    row = table[table["dist_path"] == database.pairs.loc[2, "dist_path"]].set_index("metric")
    assert row.loc["psnr", "q"] == pytest.approx(psnr(*pair))
    assert row.loc["gmsd", "q"] == pytest.approx(iqm_scores(*pair, ["gmsd"])["gmsd"])
    results = evaluate(table, by=("metric",), bootstrap=0).set_index("metric")
    assert (results["srocc"] > 0.7).all()  # DMOS grows with noise; PSNR falls, GMSD grows: all agree


def test_a_model_beside_its_baselines(tmp_path):
    database = small_database(tmp_path, references=4)
    training, test = database.subset(["r0", "r1", "r2"]), database.subset(["r3"])
    pairs = test.pairs.assign(q=test.pairs["score"] ** 2, synthetic=True)
    table = beside_baselines(pairs, test, training, ["psnr", "gmsd"])
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
