"""Correlations against scipy, the authors' published evaluation, closed forms, and bad input."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from vtamiq.evaluation import correlation as module
from vtamiq.evaluation.correlation import LogisticFit, bootstrap_intervals, correlations, logistic_fit

GOLDEN = Path(__file__).parents[1] / "data" / "labels_metrics.npz"
CORRELATIONS = ("srocc", "krocc", "plcc", "plcc_fitted")


def noisy_scores(n=200, seed=0):
    """Lower-better predictions, and scores in which 100 is worst, with a saturating relation and ties."""
    rng = np.random.default_rng(seed)
    prediction = rng.normal(size=n).round(2)
    score = 100 / (1 + np.exp(-2 * prediction)) + rng.normal(scale=5, size=n)
    return prediction, score.round()


def five(x, p0, p1, p2, p3, p4):
    return p0 * (0.5 - 1 / (1 + np.exp(p1 * (x - p2)))) + p3 * x + p4


# ------------------------------------------------------------------------------------------------- against others


@pytest.mark.parametrize("case", ["metrics0", "metrics1"])
def test_the_published_evaluation_is_reproduced(case):
    with np.load(GOLDEN, allow_pickle=False) as golden:
        expected = {key.split("/")[1]: golden[key] for key in golden if key.startswith(case)}
    ours = correlations(expected["pred"], expected["target"], higher_better=False)
    for name in ("SROCC", "KROCC"):
        assert ours[name.lower()] == pytest.approx(float(expected[name]), abs=1e-12)
    assert ours["plcc"] == pytest.approx(float(expected["PLCC_NOFIT"]), abs=1e-12)
    assert ours["rmse"] == pytest.approx(float(expected["RMSE_NOFIT"]), abs=1e-12)
    # After the fit: the published one stops in another minimum, ours is at least as close to the scores. The published
    # RMSE is that of scores scaled to [0, 1].
    rmse_fitted = ours["rmse_fitted"] / np.ptp(expected["target"])
    assert ours["plcc_fitted"] == pytest.approx(float(expected["PLCC"]), abs=1e-3)
    assert rmse_fitted == pytest.approx(float(expected["RMSE"]), abs=1e-3)
    assert rmse_fitted <= expected["RMSE"] + 1e-9


def test_scipy_agrees_with_ties():
    prediction, score = noisy_scores()
    ours = correlations(prediction, score, higher_better=False)
    assert ours["srocc"] == pytest.approx(stats.spearmanr(prediction, score).statistic, abs=1e-12)
    assert ours["krocc"] == pytest.approx(stats.kendalltau(prediction, score, variant="b").statistic, abs=1e-12)
    assert ours["plcc"] == pytest.approx(stats.pearsonr(prediction, score).statistic, abs=1e-12)
    assert ours["n"] == 200
    assert ours["degenerate"] is False


def test_by_hand():
    # Ranks 1 2 3 4 against 2 1 4 3: sum of d² = 4, so that rho = 1 - 6·4 / (4·15); 4 of 6 pairs concordant, 2 not.
    # PLCC is that of the ranks, both scaled to [0, 1] they differ by 1/3 everywhere.
    ours = correlations([10.0, 20.0, 30.0, 40.0], [2.0, 1.0, 4.0, 3.0], higher_better=False)
    assert ours["srocc"] == pytest.approx(0.6)
    assert ours["krocc"] == pytest.approx(1 / 3)
    assert ours["plcc"] == pytest.approx(0.6)
    assert ours["rmse"] == pytest.approx(1 / 3)


# ------------------------------------------------------------------------------------------------------ direction


@pytest.mark.parametrize("lower_better", [True, False])
@pytest.mark.parametrize("higher_better", [True, False])
def test_agreement_is_positive_whatever_the_directions(lower_better, higher_better):
    distortion, dmos = noisy_scores()
    reference = correlations(distortion, dmos, lower_better=True, higher_better=False)
    prediction = distortion if lower_better else 7 - 3 * distortion
    score = 100 - dmos if higher_better else dmos
    ours = correlations(prediction, score, lower_better=lower_better, higher_better=higher_better)
    for name in (*CORRELATIONS, "rmse", "rmse_fitted"):
        assert ours[name] == pytest.approx(reference[name], abs=1e-6), name
    assert min(ours[name] for name in CORRELATIONS) > 0.7


def test_a_reversed_prediction_is_not_turned_round_silently():
    distortion, dmos = noisy_scores()
    right = correlations(distortion, dmos, higher_better=False)
    wrong = correlations(-distortion, dmos, higher_better=False)
    for name in CORRELATIONS:
        assert wrong[name] == pytest.approx(-right[name], abs=1e-6), name
    assert wrong["rmse_fitted"] == pytest.approx(right["rmse_fitted"], rel=1e-6)


def test_a_perfect_lower_better_prediction_of_mos():
    ours = correlations([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [5.0, 4.0, 3.0, 2.0, 1.0, 0.0], higher_better=True)
    assert [ours[name] for name in CORRELATIONS] == pytest.approx([1, 1, 1, 1])
    assert ours["rmse"] == pytest.approx(0, abs=1e-12)
    assert ours["rmse_fitted"] == pytest.approx(0, abs=1e-12)


@given(
    values=arrays(np.float64, (2, 12), elements=st.integers(-50, 50).map(float)),
    scale=st.sampled_from([0.01, 1.0, 300.0]),
    shift=st.sampled_from([-40.0, 0.0, 9.0]),
)
@settings(max_examples=12, deadline=None)
def test_units_do_not_matter(values, scale, shift):
    prediction, score = values
    before = correlations(prediction, score, higher_better=False)
    after = correlations(scale * prediction + shift, score, higher_better=False)
    assert before["degenerate"] == after["degenerate"] == (np.ptp(prediction) == 0 or np.ptp(score) == 0)
    for name in ("srocc", "krocc", "plcc", "rmse"):
        assert after[name] == pytest.approx(before[name], abs=1e-9, nan_ok=True)
    if not before["degenerate"]:
        assert all(-1 <= before[name] <= 1 for name in CORRELATIONS)


# ------------------------------------------------------------------------------------------------------------ fit


@pytest.mark.parametrize(
    "params",
    [
        (5.0, 0.08, 40.0, 0.01, 3.0),  # MOS from 1 to 5 over predictions from 0 to 100
        (5.0, -0.08, 40.0, -0.01, 3.0),  # falling
        (80.0, 0.1, 60.0, 0.0, 50.0),  # DMOS, no straight part
    ],
)
def test_the_parameters_of_a_five_parameter_logistic_are_recovered(params):
    x = np.linspace(0, 100, 300)
    fit = logistic_fit(x, five(x, *params))
    assert fit.success
    np.testing.assert_allclose(fit(x), five(x, *params), atol=1e-4 * params[0])
    np.testing.assert_allclose(fit.params, params, rtol=0.02, atol=0.02)
    assert fit.rmse == pytest.approx(0, abs=1e-4 * params[0])


def test_the_four_parameter_logistic_is_that_of_the_vqeg():
    x = np.linspace(20, 60, 200)
    b1, b2, b3, b4 = 90.0, 10.0, 38.0, 4.0
    score = (b1 - b2) / (1 + np.exp(-(x - b3) / b4)) + b2
    fit = logistic_fit(x, score, parameters=4)
    p0, p1, p2, p3 = fit.params
    assert (p3 + p0 / 2, p3 - p0 / 2, p2, 1 / p1) == pytest.approx((b1, b2, b3, b4), rel=1e-4)
    np.testing.assert_allclose(fit(x), score, atol=1e-3)


def test_a_straight_line_is_fitted_exactly():
    x = np.linspace(-3, 9, 40)
    fit = logistic_fit(x, 2 - 7 * x)
    assert fit.success
    np.testing.assert_allclose(fit(x), 2 - 7 * x, atol=1e-10)


@given(st.integers(0, 10_000), st.sampled_from([5, 8, 40]), st.sampled_from([0.0, 0.5, 5.0]))
@settings(max_examples=12, deadline=None)
def test_five_parameters_are_monotonic_and_never_worse_than_the_line(seed, n, noise):
    rng = np.random.default_rng(seed)
    x = rng.gamma(1.0, 20.0, n)
    y = rng.choice([-1, 1]) * np.sqrt(x) + noise * rng.normal(size=n)
    fit = logistic_fit(x, y)
    slope, intercept = np.polyfit(x, y, 1)
    assert fit.success
    assert fit.rmse <= np.sqrt(np.mean((slope * x + intercept - y) ** 2)) + 1e-9
    assert fit.rmse == pytest.approx(np.sqrt(np.mean((fit(x) - y) ** 2)))
    steps = np.diff(fit(np.linspace(x.min() - 50, x.max() + 50, 500))) * np.sign(slope)
    assert steps.min() >= -1e-9 * np.ptp(y)


@given(st.lists(st.sampled_from([-1.0, 0.1, 0.3, 1.0]), min_size=3, max_size=4), st.sampled_from([4, 5]))
@settings(max_examples=12, deadline=None)
def test_data_without_any_trend_are_fitted_all_the_same(half, parameters):
    prediction = np.array([-1.0, -0.5, 0.1, *range(1, len(half) + 1)])[: len(half)]
    x, y = np.concatenate([prediction, -prediction]), np.concatenate([half, half])  # mirrored: no correlation
    ours = correlations(x, y, higher_better=False, parameters=parameters)
    assert ours["degenerate"] or (ours["fit"].success and abs(ours["plcc"]) < 1e-9 and abs(ours["plcc_fitted"]) <= 1)


def test_four_parameters_on_a_straight_line_with_a_long_tail():
    rng = np.random.default_rng(1)
    x = np.append(rng.normal(size=7), 1e6)
    y = x + 1e-4 * x.std() * rng.normal(size=8)
    fit = logistic_fit(x, y, parameters=4)
    assert fit.success
    assert "maximum number of function evaluations" in fit.message
    assert correlations(x, y, higher_better=False, parameters=4)["plcc_fitted"] > 0.999


def test_fitting_helps_a_saturating_metric():
    prediction, score = noisy_scores()
    ours = correlations(prediction, score, higher_better=False)
    assert ours["plcc_fitted"] > ours["plcc"] + 0.01
    assert ours["rmse_fitted"] == pytest.approx(5, abs=0.6)  # the noise, in the units of the scores
    assert ours["plcc_fitted"] == pytest.approx(stats.pearsonr(ours["fit"](prediction), score).statistic)
    assert len(correlations(prediction, score, higher_better=False, parameters=4)["fit"].params) == 4


def test_a_fit_that_cannot_be_made_says_so():
    for prediction, score, why in (
        ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 5.0], "4 points are too few for 5 parameters"),
        ([2.0] * 6, range(6), "all predictions are equal"),
        (range(6), [0.1] * 6, "all scores are equal"),
    ):
        fit = logistic_fit(prediction, score)
        assert not fit.success
        assert fit.message == why
        assert len(fit.params) == 5
        assert np.isnan([*fit.params, fit.rmse, *fit(np.arange(3))]).all()
    three = correlations([1.0, 2.0, 3.0], [1.0, 2.0, 4.0], higher_better=False)
    assert three["srocc"] == pytest.approx(1)
    assert np.isnan([three["plcc_fitted"], three["rmse_fitted"]]).all()


def test_a_flat_curve_explains_nothing():
    score = np.array([1.0, 2.0, 4.0])
    flat = LogisticFit((0.0, 1.0, 0.0, 3.0), 0.0, True, "")(score)
    assert flat.tolist() == [3.0, 3.0, 3.0]
    assert module._plcc_fitted(flat + np.array([0, 1e-16, -1e-16]), score, plcc=1e-17) == 0
    assert module._plcc_fitted(-score, score, plcc=-0.9) == pytest.approx(-1)


def test_steep_curves_do_not_overflow():
    with np.errstate(over="raise"):
        assert LogisticFit((2.0, 1e6, 0.0, 0.0, 1.0), 0.0, True, "")([-1.0, 0.0, 1.0]).tolist() == [0.0, 1.0, 2.0]


# ----------------------------------------------------------------------------------------- degenerate data, bootstrap


@pytest.mark.parametrize("constant", ["prediction", "score"])
def test_constant_data_are_flagged(constant):
    data = {"prediction": np.arange(5.0), "score": np.arange(5.0)} | {constant: np.full(5, 0.1)}
    ours = correlations(**data, higher_better=True, bootstrap=10)
    assert ours.pop("degenerate") is True
    assert ours.pop("n") == 5
    assert not ours.pop("fit").success
    assert set(ours) >= {*CORRELATIONS, "rmse", "rmse_fitted", "srocc_low", "plcc_high"}
    assert np.isnan(list(ours.values())).all()


def test_bootstrap_is_the_plain_resampling_of_pairs():
    prediction, score = noisy_scores(60)
    rows = np.random.default_rng(3).integers(60, size=(200, 60))
    srocc = [stats.spearmanr(prediction[r], score[r]).statistic for r in rows]
    plcc = [stats.pearsonr(prediction[r], score[r]).statistic for r in rows]
    ours = bootstrap_intervals(prediction, score, resamples=200, seed=3)
    assert ours["srocc"] == pytest.approx(tuple(np.quantile(srocc, [0.025, 0.975])))
    assert ours["plcc"] == pytest.approx(tuple(np.quantile(plcc, [0.025, 0.975])))


def test_bootstrap_within_correlations():
    distortion, dmos = noisy_scores(80)
    ours = correlations(distortion, 100 - dmos, higher_better=True, bootstrap=300, seed=5)
    assert 0 < ours["srocc_low"] < ours["srocc"] < ours["srocc_high"] <= 1
    assert 0 < ours["plcc_low"] < ours["plcc"] < ours["plcc_high"] <= 1
    same, other = (
        correlations(distortion, 100 - dmos, higher_better=True, bootstrap=300, seed=s)["srocc_low"] for s in (5, 6)
    )
    assert same == ours["srocc_low"] != other
    assert "srocc_low" not in correlations(distortion, dmos, higher_better=False)


def test_bootstrap_in_blocks_has_all_the_resamples():
    rows = np.concatenate(list(module._drawn_rows(300_000, 7, 0)))
    assert rows.shape == (7, 300_000)
    assert 0 <= rows.min() < rows.max() < 300_000


def test_resamples_of_equal_values_are_left_out():
    low, high = bootstrap_intervals([0.1, 0.1, 0.3], [1.0, 2.0, 3.0], resamples=100)["plcc"]
    assert -1 <= low <= high <= 1


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("function", [lambda p, s: correlations(p, s, higher_better=True), logistic_fit])
@pytest.mark.parametrize(
    ("prediction", "score", "message"),
    [
        ([1.0, np.nan, 3.0], [1.0, 2.0, 3.0], "1 of the predictions are not finite, the first is nan at 1"),
        ([1.0, 2.0, 3.0], [1.0, np.inf, -np.inf], "2 of the scores are not finite, the first is inf at 1"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], "3 predictions, 4 scores"),
        ([1.0, 2.0], [1.0, 2.0], "at least three pairs, got 2"),
        ([[1.0], [2.0], [3.0]], [1.0, 2.0, 3.0], r"one-dimensional, got the shape \(3, 1\)"),
    ],
)
def test_bad_pairs_are_refused(function, prediction, score, message):
    with pytest.raises(ValueError, match=message):
        function(prediction, score)


def test_bad_options_are_refused():
    pairs = [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="4 or 5 parameters, not 3"):
        logistic_fit(*pairs, parameters=3)
    with pytest.raises(ValueError, match="at least one resample is needed, got -2"):
        correlations(*pairs, higher_better=True, bootstrap=-2)
    with pytest.raises(TypeError, match="higher_better"):
        correlations(*pairs)
