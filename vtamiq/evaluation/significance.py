"""Beyond one correlation: which of two images, which of two metrics.

pairwise_accuracy(q, mos, groups=ref_id, higher_better=True)       # does q order two versions of one picture as people
do?
preference_agreement(q_a, q_b, p_a)                                # PieAPP: does q prefer what people prefer?
compare_metrics(q1, q2, mos, groups=ref_id, higher_better=True)    # is one metric better than the other, or is it chance?
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import f as f_distribution
from scipy.stats import kurtosis, rankdata

from vtamiq.evaluation.correlation import MIN_GROUPS, group_rows, logistic_fit

__all__ = ["compare_metrics", "pairwise_accuracy", "preference_agreement"]

_BLOCK = 2_000_000  # comparisons at once


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

    Raises ValueError for values that are not finite, or different lengths.
    """
    prediction, score = _finite("prediction", prediction), _finite("score", score)
    if len(prediction) != len(score):
        raise ValueError(f"{len(prediction)} predictions for {len(score)} scores")
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


def preference_agreement(
    q_a: ArrayLike, q_b: ArrayLike, p_a: ArrayLike, *, undecided: tuple[float, float] = (0.35, 0.65)
) -> dict[str, float]:
    """How predicted distortions agree with preferences between two versions A and B of a picture.

    Args:
        q_a, q_b: (n,) predicted distortions, lower is better.
        p_a: (n,) share of people who prefer A.
        undecided: shares within these bounds, both included, count as no clear preference.

    Returns:
        `accuracy` over the pairs with p_a other than 1/2 (equal predictions count half), `error_rate` = 1 - accuracy,
        `krocc` = 2 accuracy - 1, and their number `pairs`; the same for clear preferences only, with `_decided` appended
        to the names. NaN where there are none.

    Raises ValueError for values that are not finite, shares outside 0..1, or different lengths.
    """
    q_a, q_b, p_a = _finite("q_a", q_a), _finite("q_b", q_b), _finite("p_a", p_a)
    if not len(q_a) == len(q_b) == len(p_a):
        raise ValueError(f"{len(q_a)} q_a, {len(q_b)} q_b and {len(p_a)} p_a: the numbers must agree")
    if ((p_a < 0) | (p_a > 1)).any():
        raise ValueError(f"shares must lie in 0..1, found {p_a.min()} to {p_a.max()}")
    credit = np.where(q_a == q_b, 0.5, (q_a < q_b) == (p_a > 0.5))
    low, high = undecided
    result: dict[str, float] = {}
    for suffix, asked in (("", p_a != 0.5), ("_decided", (p_a < low) | (p_a > high))):
        accuracy = float(credit[asked].mean()) if asked.any() else math.nan
        values = {
            "accuracy": accuracy,
            "error_rate": 1 - accuracy,
            "krocc": 2 * accuracy - 1,
            "pairs": int(asked.sum()),
        }
        result |= {name + suffix: value for name, value in values.items()}
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
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Two metrics on the same images: is one better, or may the difference be chance?

    Two answers. A paired bootstrap of the SROCC difference draws whole groups (references) with replacement, since
    versions
    of one picture are not independent; and, as is usual in the field (Sheikh, Sabir and Bovik, IEEE Trans. Image Process.
    15(11), 2006), an F-test compares the variances of the residuals after each metric's five-parameter logistic fit. The
    F-test takes residuals as Gaussian and independent; `gaussian` says whether both have a kurtosis between 2 and 4, that
    paper's criterion.

    Args:
        first, second, score: (n,) finite numbers; directions as in `correlations`.
        groups: (n,) labels to draw by; None draws single images. Fewer than 5 give no interval and no p (NaN).

    Returns:
        `srocc_first`, `srocc_second`, `difference` (first - second), its percentile interval `low`, `high` and two-sided
        `p`; `f`, the variance of the first metric's residuals over the second's, and `p_f`, two-sided; `gaussian`; `n`,
        `groups`. The F-test is NaN if a fit fails. A resample without two different values is left out.

    Raises ValueError as `correlations` does.
    """
    score = _finite("score", score)
    turned = [
        -_finite(name, values) if lower == higher_better else _finite(name, values)
        for name, values, lower in zip(("first", "second"), (first, second), lower_better, strict=True)
    ]
    if not len(turned[0]) == len(turned[1]) == len(score):
        raise ValueError(f"{len(turned[0])} and {len(turned[1])} predictions for {len(score)} scores")
    if len(score) < 3:
        raise ValueError(f"a comparison needs at least three images, got {len(score)}")
    sroccs = [_srocc(values, score) for values in turned]
    members = group_rows(np.arange(len(score)) if groups is None else groups, len(score))
    rng = np.random.default_rng(seed)
    differences = []
    for _ in range(resamples if len(members) >= MIN_GROUPS else 0):
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        differences.append(_srocc(turned[0][rows], score[rows]) - _srocc(turned[1][rows], score[rows]))
    drawn = np.array(differences)
    drawn = drawn[np.isfinite(drawn)]
    result = dict(zip(("srocc_first", "srocc_second"), sroccs, strict=True)) | {"difference": sroccs[0] - sroccs[1]}
    result |= {"low": math.nan, "high": math.nan, "p": math.nan}
    if len(drawn) and math.isfinite(result["difference"]):
        low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
        tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
        result |= {"low": float(low), "high": float(high), "p": min(1.0, 2 * (tail + 1) / (len(drawn) + 1))}
    return result | _f_test(*turned, score) | {"n": len(score), "groups": len(members)}


def _f_test(first: np.ndarray, second: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    residuals = []
    for values in (first, second):
        fit = logistic_fit(values, score)
        if not fit.success:
            return {"f": math.nan, "p_f": math.nan, "gaussian": False}
        residuals.append(score - fit(values))
    variances = [np.square(r).mean() for r in residuals]
    if not min(variances):  # a metric that explains everything leaves nothing to compare
        return {"f": math.nan, "p_f": math.nan, "gaussian": False}
    f = float(variances[0] / variances[1])
    freedom = len(score) - 1, len(score) - 1
    tail = min(float(f_distribution.cdf(f, *freedom)), float(f_distribution.sf(f, *freedom)))
    gaussian = all(2 <= kurtosis(r, fisher=False) <= 4 for r in residuals)
    return {"f": f, "p_f": min(1.0, 2 * tail), "gaussian": bool(gaussian)}


def _srocc(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation, NaN where one side is constant (scipy's warns, and is slower)."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _finite(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be one-dimensional and finite, got the shape {array.shape}")
    return array
