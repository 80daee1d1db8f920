"""Beyond one correlation: which of two images is better, and which of two metrics.

pairwise_accuracy(q, mos, groups=ref_id, higher_better=True)       # does q order two images of one scene as people do?
preference_agreement(q_a, q_b, p_a)                                # PieAPP: does q prefer what people prefer?
compare_metrics(q1, q2, mos, groups=ref_id, higher_better=True)    # is one metric better, or may that be chance?
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import f as f_distribution
from scipy.stats import kurtosis, rankdata

from vtamiq.evaluation.correlation import check_vectors, drawn_groups, group_rows, interval, logistic_fit, pearson

_BLOCK = 2_000_000  # comparisons at once
UNDECIDED = (0.35, 0.65)  # shares within these bounds, both included, are no clear preference


def pairwise_accuracy(
    prediction: ArrayLike,
    score: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    higher_better: bool,
    lower_better: bool = True,
) -> dict[str, float]:
    """Share of image pairs with different scores that the prediction puts in the order of the scores.

    Args:
        prediction, score: (n,) finite numbers of the directions `lower_better` and `higher_better`.
        groups: (n,) labels, for example the reference; only images of one group are compared. None compares all.

    Returns:
        `accuracy` (equal predictions count half; NaN without pairs), `pairs`, the number of comparisons, and `ties`, how
        many of them the prediction left undecided.

    Raises:
        ValueError: values that are not finite, or different lengths.
    """
    prediction, score = check_vectors(predictions=prediction, scores=score)
    turned = -prediction if lower_better == higher_better else prediction
    right = ties = pairs = 0
    for rows in group_rows(groups, len(score)):
        x, y = turned[rows], score[rows]
        block = max(1, _BLOCK // len(rows))
        for start in range(0, len(rows), block):
            stop = min(start + block, len(rows))
            later = np.arange(len(rows))[None, :] > np.arange(start, stop)[:, None]  # every pair once
            by_score = np.sign(y[None, :] - y[start:stop, None])
            by_prediction = np.sign(x[None, :] - x[start:stop, None])
            asked = later & (by_score != 0)
            pairs += int(asked.sum())
            ties += int((asked & (by_prediction == 0)).sum())
            right += int((asked & (by_prediction == by_score)).sum())
    return {"accuracy": (right + ties / 2) / pairs if pairs else math.nan, "pairs": pairs, "ties": ties}


def preference_agreement(q_a: ArrayLike, q_b: ArrayLike, p_a: ArrayLike) -> dict[str, float]:
    """How predicted distortions agree with preferences between two distorted images A and B of a scene.

    Args:
        q_a, q_b: (n,) predicted distortions, lower is better.
        p_a: (n,) share of people who prefer A.

    Returns:
        `accuracy` over the pairs with p_a other than 1/2 (equal predictions count half), `error_rate` = 1 - accuracy,
        `krocc` = 2 accuracy - 1, and their number `pairs`; the same for clear preferences only (shares outside
        0.35 … 0.65), with `_decided` appended to the names. NaN where there are none.

    Raises:
        ValueError: values that are not finite, shares outside 0..1, or different lengths.
    """
    q_a, q_b, p_a = check_vectors(q_a=q_a, q_b=q_b, p_a=p_a)
    if ((p_a < 0) | (p_a > 1)).any():
        raise ValueError(f"shares must lie in 0..1, found {p_a.min()} to {p_a.max()}")
    credit = np.where(q_a == q_b, 0.5, (q_a < q_b) == (p_a > 0.5))
    low, high = UNDECIDED
    result: dict[str, float] = {}
    for suffix, asked in (("", p_a != 0.5), ("_decided", (p_a < low) | (p_a > high))):
        accuracy = float(credit[asked].mean()) if asked.any() else math.nan
        result[f"accuracy{suffix}"] = accuracy
        result[f"error_rate{suffix}"] = 1 - accuracy
        result[f"krocc{suffix}"] = 2 * accuracy - 1
        result[f"pairs{suffix}"] = int(asked.sum())
    return result


def compare_metrics(
    first: ArrayLike,
    second: ArrayLike,
    score: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    higher_better: bool,
    lower_better: tuple[bool, bool] = (True, True),
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Two metrics on the same images: is one better, or may the difference be chance?

    A paired bootstrap of the SROCC difference draws whole groups (references) with replacement, since distorted images of
    one reference are not independent. An F-test compares the variances of the residuals after each metric's
    five-parameter logistic fit, as is usual (Sheikh, Sabir and Bovik, IEEE Trans. Image Process. 15(11), 2006); it takes
    residuals as independent and Gaussian, which `gaussian` says of both (that paper's criterion: kurtosis from 2 to 4).

    Args:
        first, second, score: (n,) finite numbers; directions as in `correlations`.
        groups: (n,) labels to draw by; None draws single images. Fewer than 5 give no interval and no p (NaN).

    Returns:
        `srocc_first`, `srocc_second`, `difference` (first - second), its 95 % interval `low`, `high` and two-sided
        `p`; `f`, the variance of the first metric's residuals over the second's, and `p_f`, two-sided, NaN if a fit fails;
        `gaussian`; `n`, `groups`. A resample without two different values is left out.

    Raises:
        ValueError: as `correlations`.
    """
    first, second, score = check_vectors(first=first, second=second, scores=score)
    if len(score) < 3:
        raise ValueError(f"a comparison needs at least three images, got {len(score)}")
    first = -first if lower_better[0] == higher_better else first
    second = -second if lower_better[1] == higher_better else second
    groups = np.arange(len(score)) if groups is None else np.asarray(groups)
    srocc_first, srocc_second = _srocc(first, score), _srocc(second, score)
    result = {"srocc_first": srocc_first, "srocc_second": srocc_second, "difference": srocc_first - srocc_second}
    drawn = np.array([
        _srocc(first[rows], score[rows]) - _srocc(second[rows], score[rows])
        for rows in drawn_groups(groups, len(score), resamples, seed)
    ])  # fmt: skip
    drawn = drawn[np.isfinite(drawn)]
    result |= {"low": math.nan, "high": math.nan, "p": math.nan}
    if len(drawn) and math.isfinite(result["difference"]):
        result["low"], result["high"] = interval(drawn)
        tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
        result["p"] = min(1.0, 2 * (tail + 1) / (len(drawn) + 1))
    return result | _f_test(first, second, score) | {"n": len(score), "groups": len(np.unique(groups))}


def _f_test(first: np.ndarray, second: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    fits = [logistic_fit(values, score) for values in (first, second)]
    residuals = [score - fit(values) for fit, values in zip(fits, (first, second), strict=True)]
    variances = [np.square(r).mean() for r in residuals]
    if not all(fit.success for fit in fits) or min(variances) == 0:  # who explains everything leaves nothing to compare
        return {"f": math.nan, "p_f": math.nan, "gaussian": False}
    f, freedom = float(variances[0] / variances[1]), len(score) - 1
    tail = min(f_distribution.cdf(f, freedom, freedom), f_distribution.sf(f, freedom, freedom))
    gaussian = all(2 <= kurtosis(r, fisher=False) <= 4 for r in residuals)
    return {"f": f, "p_f": min(1.0, 2 * float(tail)), "gaussian": bool(gaussian)}


def _srocc(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation, NaN where one side is constant (scipy's warns, and is slower)."""
    return float(pearson(rankdata(a), rankdata(b)))
