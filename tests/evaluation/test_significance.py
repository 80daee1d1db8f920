"""Pairwise accuracy, preferences and metric against metric: by hand, by brute force, and where chance is all there is."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from vtamiq.evaluation.correlation import correlations
from vtamiq.evaluation.significance import compare_metrics, pairwise_accuracy, preference_agreement

small_integers = st.lists(st.integers(0, 4), min_size=2, max_size=12)


def test_accuracy_by_hand():
    q, mos = [0.1, 0.5, 0.5, 0.9], [5, 4, 3, 3]
    # pairs with different scores: (0,1) (0,2) (0,3) right, (1,2) undecided, (1,3) right; (2,3) has equal scores
    assert pairwise_accuracy(q, mos, higher_better=True) == {"accuracy": 4.5 / 5, "pairs": 5, "ties": 1}
    assert pairwise_accuracy(q, mos, higher_better=False)["accuracy"] == pytest.approx(0.5 / 5)
    grouped = pairwise_accuracy(q, mos, ["a", "b", "b", "a"], higher_better=True)
    assert grouped == {"accuracy": 1.5 / 2, "pairs": 2, "ties": 1}


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_accuracy_is_what_counting_gives(data):
    q = data.draw(small_integers)
    same_length = {"min_size": len(q), "max_size": len(q)}
    score, groups = (data.draw(st.lists(st.integers(0, top), **same_length)) for top in (4, 1))
    right = asked = 0
    for i, j in combinations(range(len(q)), 2):
        if groups[i] == groups[j] and score[i] != score[j]:
            asked += 1
            right += 0.5 if q[i] == q[j] else (q[i] < q[j]) == (score[i] < score[j])
    result = pairwise_accuracy(q, score, groups, higher_better=False)
    assert result["pairs"] == asked
    np.testing.assert_equal(result["accuracy"], right / asked if asked else math.nan)


def test_accuracy_without_ties_is_kendall(monkeypatch):
    import vtamiq.evaluation.significance

    rng = np.random.default_rng(0)
    q, score = rng.standard_normal((2, 80))
    expected = (kendalltau(q, score).statistic + 1) / 2
    assert pairwise_accuracy(q, score, higher_better=False)["accuracy"] == pytest.approx(expected)
    monkeypatch.setattr(vtamiq.evaluation.significance, "_BLOCK", 100)  # one row at a time
    assert pairwise_accuracy(q, score, higher_better=False)["accuracy"] == pytest.approx(expected)


def test_preferences_by_hand():
    q_a, q_b = [0.1, 0.9, 0.3, 0.4, 0.2], [0.5, 0.5, 0.3, 0.1, 0.8]
    p_a = [0.9, 0.2, 0.8, 0.6, 0.5]  # right, right, undecided, wrong, nobody prefers either
    result = preference_agreement(q_a, q_b, p_a)
    assert (result["pairs"], result["accuracy"], result["error_rate"]) == (4, 2.5 / 4, 1.5 / 4)
    assert result["krocc"] == pytest.approx(0.25)
    assert (result["pairs_decided"], result["accuracy_decided"]) == (3, pytest.approx(2.5 / 3))
    assert math.isnan(preference_agreement([0.1], [0.2], [0.5])["accuracy"])


def test_the_better_metric_is_found_and_chance_is_not():
    rng = np.random.default_rng(1)
    mos = rng.uniform(1, 5, 200)
    good, bad, other = (-mos + noise * rng.standard_normal(200) for noise in (0.3, 2.0, 2.0))
    refs = np.arange(200) // 10
    result = compare_metrics(good, bad, mos, refs, higher_better=True, seed=3)
    assert result["srocc_first"] == pytest.approx(correlations(good, mos, higher_better=True)["srocc"])
    assert result["low"] > 0
    assert result["p"] < 0.01
    assert result["f"] < 0.3
    assert result["p_f"] < 1e-6
    assert result["gaussian"]
    assert (result["n"], result["groups"]) == (200, 20)
    assert result == compare_metrics(good, bad, mos, refs, higher_better=True, seed=3)
    turned = compare_metrics(-good, bad, mos, refs, higher_better=True, lower_better=(False, True), seed=3)
    assert turned["difference"] == pytest.approx(result["difference"])
    chance = compare_metrics(bad, other, mos, refs, higher_better=True)
    assert chance["low"] < 0 < chance["high"]
    assert chance["p"] > 0.05
    swapped = compare_metrics(bad, good, mos, refs, higher_better=True, seed=3)
    assert swapped["f"] == pytest.approx(1 / result["f"])
    assert swapped["p_f"] == pytest.approx(result["p_f"], abs=1e-12)


def test_equal_metrics_do_not_differ():
    rng = np.random.default_rng(2)
    mos = rng.uniform(1, 5, 50)
    q = -mos + rng.standard_normal(50)
    result = compare_metrics(q, q, mos, higher_better=True, resamples=50)
    assert (result["difference"], result["low"], result["high"], result["p"], result["f"]) == (0, 0, 0, 1, 1)


def test_few_groups_give_no_interval():
    rng = np.random.default_rng(2)
    mos, a, b = rng.uniform(1, 5, (3, 40))
    result = compare_metrics(a, b, mos, np.arange(40) % 4, higher_better=True)
    assert np.isnan([result["low"], result["high"], result["p"]]).all()
    assert np.isfinite(result["difference"])


def test_what_cannot_be_compared_is_nan_and_said():
    mos = np.arange(10.0)
    result = compare_metrics(np.ones(10), -mos, mos, higher_better=True, resamples=20)
    assert np.isnan([result["srocc_first"], result["p"], result["f"]]).all()
    assert result["srocc_second"] == pytest.approx(1)
    assert not result["gaussian"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pairwise_accuracy([1, np.nan], [1, 2], higher_better=True), "1 of the predictions are not finite"),
        (lambda: pairwise_accuracy([1, 2], [1, 2, 3], higher_better=True), "2 predictions, 3 scores"),
        (lambda: pairwise_accuracy([1, 2], [1, 2], ["a"], higher_better=True), "2 images need 2 groups"),
        (lambda: preference_agreement([1], [1], [1.5]), r"shares must lie in 0\.\.1"),
        (lambda: preference_agreement([1], [1, 2], [1]), "the numbers must agree"),
        (lambda: compare_metrics([1, 2], [1, 2], [1, 2], higher_better=True), "at least three"),
        (lambda: compare_metrics([1, 2, 3], [1, 2], [1, 2, 3], higher_better=True), "3 first, 2 second, 3 scores"),
        (
            lambda: compare_metrics([1, 2, np.inf], [1, 2, 3], [1, 2, 3], higher_better=True),
            "1 of the first are not finite",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
