"""Correlation tables: by hand where possible, signed, and loud about rows that cannot be used."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, pearsonr, spearmanr

from tests.small import small_database
from vtamiq.databases.schema import preference_table
from vtamiq.evaluation.correlation import correlations, logistic_fit
from vtamiq.evaluation.tables import (
    beside_published,
    cross_database,
    evaluate,
    evaluate_preferences,
    evaluate_within,
    significance,
)


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


@pytest.mark.parametrize("column", ["lower_better", "higher_better"])
def test_rows_without_a_direction_are_refused(column):
    table = predictions().assign(lower_better=True).astype({column: object})
    table.loc[3:20, column] = np.nan
    with pytest.raises(ValueError, match=rf"18 rows do not say their direction `{column}`"):
        evaluate(table)


def test_rows_without_a_metric_are_not_lost():
    table = metrics()
    table.loc[table["metric"] == "good", "metric"] = None
    with pytest.raises(ValueError, match="60 rows do not say which metric"):
        significance(table)


def test_one_reference_of_two_databases_is_two_draws():
    """And views of one scene are one, whatever their references are called."""
    table = predictions(n=60).assign(ref_id=[f"r{i // 20}" for i in range(60)], database=["a", "b"] * 30)
    six = evaluate(table, by="higher_better", bootstrap=50, resample="references").iloc[0]
    assert np.isfinite(six["srocc_low"])
    views = table.assign(content="scene")
    assert np.isnan(evaluate(views, by="higher_better", bootstrap=50, resample="references")["srocc_low"].iloc[0])


def test_every_result_has_the_same_columns():
    whole, small = (evaluate(predictions(n=n), bootstrap=0) for n in (40, 2))
    assert set(whole) == set(small) >= {"srocc_low", "degenerate", "fit", "fit_message"}
    assert small["fit_message"].iloc[0] == "2 rows are too few"


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


def test_cross_database_keeps_the_order_and_warns_of_pictures_in_common(caplog):
    pairs = [("live", "tid2013"), ("live", "csiq"), ("csiq", "tid2013"), ("csiq", "csiq")]
    parts = [predictions(seed=s, trained_on=t, database=d) for s, (t, d) in enumerate(pairs)]
    matrix = cross_database(pd.concat(parts))
    assert (list(matrix.index), list(matrix.columns)) == (["live", "csiq"], ["tid2013", "csiq"])
    assert [record.getMessage() for record in caplog.records] == [
        "live and tid2013 have pictures from the same source: Kodak"
    ]
    by_method = cross_database(pd.concat(parts).assign(method="m" + pd.concat(parts)["trained_on"]), rows="method")
    assert list(by_method.index) == ["mlive", "mcsiq"]


def test_both_logistics_and_their_parameters_are_kept():
    table = predictions(n=60)
    row = evaluate(table, bootstrap=0).iloc[0]
    for key, parameters in (("fit", 5), ("fit4", 4)):
        fit = logistic_fit(table["q"], table["score"], parameters=parameters)
        np.testing.assert_allclose(json.loads(row[key]), fit.params)
        assert row["rmse_fitted" + "4" * (parameters == 4)] == pytest.approx(fit.rmse)
    assert row["rmse_fitted"] <= row["rmse_fitted4"] + 1e-6  # the four are among the five


def test_a_fit_that_fails_says_so():
    row = evaluate(predictions(n=4), bootstrap=0).iloc[0]
    assert not row["fit_success"]
    assert row["fit"] is None
    assert "too few" in row["fit_message"]
    assert np.isfinite(row["srocc"])


def test_references_are_resampled_as_wholes():
    table = predictions(n=60).assign(ref_id=[f"r{i // 6}" for i in range(60)])
    offset = np.repeat(
        np.random.default_rng(5).normal(0, 3, 10), 6
    )  # pictures differ: pairs of one are no independent draws
    table["q"] += offset
    by_pair, by_reference = (
        evaluate(table, bootstrap=500, resample=resample).iloc[0] for resample in ("pairs", "references")
    )
    assert by_pair["srocc"] == by_reference["srocc"]
    width = [row["srocc_high"] - row["srocc_low"] for row in (by_pair, by_reference)]
    assert width[1] > width[0]
    few = evaluate(table[table["ref_id"] < "r4"], bootstrap=100, resample="references").iloc[0]
    assert np.isnan(few["srocc_low"])
    with pytest.raises(ValueError, match="must be 'pairs' or 'references'"):
        evaluate(table, resample="images")


def test_within_references_by_hand():
    rng = np.random.default_rng(0)
    parts = []
    for r in range(4):
        score = rng.permutation(6).astype(float)
        q = -score + 100 * r  # perfect within each picture, hopeless across them
        parts.append(pd.DataFrame({"q": q, "score": score, "ref_id": f"r{r}"}))
    parts[3]["q"] *= -1
    parts.append(pd.DataFrame({"q": [1.0, 2], "score": [1.0, 2], "ref_id": "few"}))
    table = pd.concat(parts).assign(database="d", higher_better=True, synthetic=False)
    row = evaluate_within(table, "ref_id").iloc[0]
    assert (row["groups"], row["left_out"]) == (4, 1)
    np.testing.assert_allclose([row["srocc_mean"], row["srocc_median"], row["srocc_min"]], [0.5, 1, -1])
    assert row["srocc_std"] == pytest.approx(1)  # 1, 1, 1, -1 with ddof 1
    assert row["accuracy"] == pytest.approx(3 * 15 / (4 * 15 + 1))
    assert evaluate(table, bootstrap=0)["srocc"].iloc[0] < 0.3


def metrics(n=60):
    table = predictions(n).assign(
        ref_id=[f"r{i // 6}" for i in range(n)], ref_path="r", dist_path=[f"d{i}" for i in range(n)]
    )
    noisy = table.assign(q=table["q"] + 3 * np.random.default_rng(9).standard_normal(n), metric="noisy")
    similarity = table.assign(q=-table["q"], lower_better=False, metric="similarity")
    return pd.concat([table.assign(metric="good", lower_better=True), noisy.assign(lower_better=True), similarity])


def test_metrics_are_compared_on_the_same_images():
    table = metrics()
    shuffled = table.sample(frac=1, random_state=0)  # the order of rows must not matter
    result = significance(shuffled, bootstrap=200).set_index(["first", "second"])
    assert len(result) == 3
    good = next(pair for pair in result.index if set(pair) == {"good", "similarity"})
    assert result.loc[good, "difference"] == pytest.approx(0)
    noisy = next(pair for pair in result.index if set(pair) == {"good", "noisy"})
    sign = 1 if noisy[0] == "good" else -1
    assert sign * result.loc[noisy, "difference"] > 0.2
    assert result.loc[noisy, "p"] < 0.05
    expected = correlations(
        table.query("metric == 'noisy'")["q"], table.query("metric == 'noisy'")["score"], higher_better=True
    )["srocc"]
    assert result.loc[noisy, f"srocc_{'second' if sign == 1 else 'first'}"] == pytest.approx(expected)


def test_metrics_on_other_images_cannot_be_compared():
    table = metrics()
    with pytest.raises(ValueError, match="has not been measured once on each of the same 60 images"):
        significance(table[~((table["metric"] == "noisy") & (table["dist_path"] == "d5"))])
    with pytest.raises(ValueError, match="one metric only"):
        significance(table.query("metric == 'good'"))


def test_preferences_are_predicted_through_the_scores_of_their_images(tmp_path):
    database = small_database(tmp_path, references=2)
    pairs = database.pairs
    asked = preference_table(
        database="small", ref_id=["r0", "r0", "r1"], subset=["train", "test", "test"],
        ref_path=["images/r0.png", "images/r0.png", "images/r1.png"],
        a_path=["images/r0_1.png", "images/r0_2.png", "images/r1.png"],
        b_path=["images/r0_4.png", "images/r0_1.png", "images/r1_1.png"],
        a_is_ref=[False, False, True], p_a=[0.9, 0.7, 1.0], label_source="l:1",
    )  # fmt: skip
    database = replace(database, preferences=asked)
    q = pairs.assign(q=pairs["level"].astype(float), synthetic=True)
    table = evaluate_preferences(q, database).set_index("subset")
    assert (table.loc["train", "accuracy"], table.loc["train", "left_out"]) == (1, 0)
    assert (table.loc["test", "accuracy"], table.loc["test", "left_out"]) == (0, 1)
    turned = evaluate_preferences(q.assign(q=-q["q"], lower_better=False), database).set_index("subset")
    assert turned.loc["train", "accuracy"] == 1
    copies = q.iloc[[4]].assign(dist_path="images/r1.png", q=0.0)
    whole = evaluate_preferences(pd.concat([q, copies]), database).set_index("subset")
    assert (whole.loc["test", "accuracy"], whole.loc["test", "left_out"]) == (0.5, 0)
    with pytest.raises(ValueError, match="no prediction is about an image"):
        evaluate_preferences(q.assign(ref_path="x"), database)
    with pytest.raises(ValueError, match="8 rows predict an image twice"):
        evaluate_preferences(pd.concat([q, q]), database)
    assert table["synthetic"].all()
    human = replace(database, synthetic=False)
    assert not evaluate_preferences(q, human)["synthetic"].any()
    simulated = replace(human, preferences=asked.assign(kind="simulated").astype({"kind": "str"}))
    assert evaluate_preferences(q, simulated)["synthetic"].all()
    perfect = evaluate_preferences(q, database, perfect=0.0).set_index("subset")
    assert (perfect.loc["test", "accuracy"], perfect.loc["test", "left_out"]) == (0.5, 0)
    with pytest.raises(ValueError, match="1 rows have no finite prediction"):
        evaluate_preferences(q.assign(q=[np.nan, *q["q"][1:]]), database)
    with pytest.raises(ValueError, match="8 rows are of another database"):
        evaluate_preferences(q.assign(database="other"), database)
    with pytest.raises(ValueError, match="has no preferences"):
        evaluate_preferences(q, replace(database, preferences=None))


def test_published_numbers_stand_below_measured_ones():
    table = pd.concat([predictions(database=d, metric=m) for d, m in (("tid2013", "psnr"), ("toy", "psnr"))])
    both = beside_published(evaluate(table, by=["database", "metric"], bootstrap=0))
    rows = both.query("database == 'tid2013' and metric == 'psnr'")
    assert rows["origin"].tolist() == ["measured", "published", "published", "published"]
    named = beside_published(
        evaluate(table.assign(method="mine", score_name="MOS"), by=["database", "metric", "method"])
    )
    assert (
        named.loc[named["origin"] == "measured", ["method", "score_name"]].to_numpy().tolist() == [["mine", "MOS"]] * 2
    )
    assert rows["srocc"].tolist()[1:] == [0.6869, 0.6869, 0.687]
    assert rows["n"].tolist()[0] == 40
    assert set(both["database"]) == {"tid2013", "toy"}
    assert both["source"].notna().all()
    with pytest.raises(ValueError, match="no column metric"):
        beside_published(evaluate(table, by=["database"], bootstrap=0))
