"""How well predictions agree with scores: SROCC, KROCC, PLCC and RMSE, without and after the usual logistic fit.

    correlations(q, mos, higher_better=True)["srocc"]                    # q is lower-better, as VTAMIQ predicts
    correlations(ssim, dmos, lower_better=False, higher_better=False)    # a higher-better metric against DMOS

The unit of a quality metric is a convention, hence the fit: a monotonic regression from predictions to scores before PLCC
and RMSE. Five parameters: Sheikh, Sabir and Bovik, IEEE Trans. Image Process. 15(11), 2006; four: the VQEG's
validation of
video quality models, phase I, 2000. Correlations are signed: a model that puts the images in reverse order gets -1,
not 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares
from scipy.stats import kendalltau, rankdata

__all__ = ["MIN_GROUPS", "LogisticFit", "bootstrap_intervals", "correlations", "group_rows", "logistic_fit"]


@dataclass(frozen=True)
class LogisticFit:
    """A fitted logistic; call it on predictions to get them in the units of the scores.

    params: p0 … p3 or p0 … p4 of `logistic_fit`, NaN after a failed fit. rmse: root mean squared residual, in the units
    of the scores, NaN after a failed fit. success, message: whether there is a fit, and what the solver says of it or why
    there was nothing to fit; a failed fit turns every prediction into NaN.
    """

    params: tuple[float, ...]
    rmse: float
    success: bool
    message: str

    def __call__(self, prediction: ArrayLike) -> np.ndarray:
        """Predictions of any shape -> float64 of the same shape."""
        return _logistic(np.asarray(self.params), np.asarray(prediction, dtype=np.float64))


def correlations(
    prediction: ArrayLike,
    score: ArrayLike,
    *,
    higher_better: bool,
    lower_better: bool = True,
    parameters: int = 5,
    bootstrap: int = 0,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Agreement of predictions (n,) with scores (n,), positive where they agree whatever their two directions.

    lower_better: direction of the prediction. higher_better: direction of the score (True for MOS, False for DMOS).
    parameters: 5 or 4, of the logistic fit. bootstrap: number of resamples for intervals at the level `confidence`
    (`bootstrap_intervals`), 0 for none. groups: (n,) labels that are drawn as wholes, None to draw single pairs.

    Returns a dictionary of
    - `srocc`, `krocc` (Kendall's tau-b), `plcc`: correlations as they are, no fit;
    - `rmse`: no fit, after scaling prediction and score to [0, 1] each (by their own minimum and maximum);
    - `plcc_fitted`, `rmse_fitted`: after `logistic_fit`, RMSE in the units of the score. `plcc_fitted` bears the sign of
      `plcc`, since the fit itself would turn a reversed prediction round; both are NaN if the fit failed;
    - `n`; `fit`, the `LogisticFit` from predictions as given to scores as given;
    - `degenerate`: True if the predictions or the scores are all equal. No correlation is defined then and every value
      is NaN, which is no error: a network's first epoch may well end that way;
    - with `bootstrap`: `srocc_low`, `srocc_high`, `plcc_low`, `plcc_high`.

    Raises ValueError for values that are not finite, different lengths and fewer than three pairs.
    """
    prediction, score = _check_pairs(prediction, score)
    turned = -prediction if lower_better == higher_better else prediction
    fit = logistic_fit(prediction, score, parameters=parameters)
    result = dict.fromkeys(("srocc", "krocc", "plcc", "rmse", "plcc_fitted", "rmse_fitted"), float("nan"))
    result |= {"n": len(score), "fit": fit, "degenerate": _constant(prediction) or _constant(score)}
    if not result["degenerate"]:
        result["srocc"] = float(_pearson(rankdata(turned), rankdata(score)))
        result["krocc"] = float(kendalltau(turned, score).statistic)
        result["plcc"] = float(_pearson(turned, score))
        result["rmse"] = _rmse(_min_max(turned), _min_max(score))
        result["rmse_fitted"] = fit.rmse
        result["plcc_fitted"] = _plcc_fitted(fit(prediction), score, result["plcc"])
    if bootstrap:
        intervals = bootstrap_intervals(turned, score, groups, resamples=bootstrap, confidence=confidence, seed=seed)
        for name, (low, high) in intervals.items():
            result |= {f"{name}_low": low, f"{name}_high": high}
    return result


def bootstrap_intervals(
    prediction: ArrayLike,
    score: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of SROCC and PLCC (no fit) of (n,) pairs drawn with replacement: {"srocc": (low, high), …}.

    Predictions and scores are taken as they are, without turning. Pairs are drawn one by one: where many share a
    reference
    image, they are not independent and the intervals are too narrow. With `groups` (n,), for example the reference of
    each
    pair, whole groups are drawn instead; fewer than 5 groups give (NaN, NaN), since their resamples hardly differ.
    A resample of equal values has no correlation and is left out; (NaN, NaN) if none is left.
    """
    prediction, score = _check_pairs(prediction, score)
    if resamples < 1:
        raise ValueError(f"at least one resample is needed, got {resamples}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    srocc, plcc = [], []
    draws = (
        _resampled_rows(len(score), resamples, seed)
        if groups is None
        else _drawn_groups(groups, len(score), resamples, seed)
    )
    for rows in draws:
        plcc.append(_pearson(prediction[rows], score[rows]))
        srocc.append(_pearson(rankdata(prediction[rows], axis=1), rankdata(score[rows], axis=1)))
    drawn = (("srocc", srocc), ("plcc", plcc))
    return {name: _percentiles(np.concatenate([np.empty(0), *r]), confidence) for name, r in drawn}


# ------------------------------------------------------------------------------------------------------------ the fit

# Bounds in standardised units (both variables with mean 0 and standard deviation 1), where the trend is rising. They keep
# the curve monotonic and stop it short of a step between two neighbouring predictions, which few points would invite.
_MAX_HEIGHT = 50.0
_MAX_SLOPE = 6.0  # the middle four fifths of the rise take at least 0.73 standard deviations


def logistic_fit(prediction: ArrayLike, score: ArrayLike, *, parameters: int = 5) -> LogisticFit:
    """Least-squares logistic from predictions (n,) to scores (n,), both in any units and of either direction.

    Five parameters: p0 (1/2 − 1/(1 + exp(p1 (x − p2)))) + p3 x + p4. Four: the same without p3 x, its offset being p3;
    that is the VQEG's (b1 − b2)/(1 + exp(−(x − b3)/b4)) + b2 with b1, b2 = p3 ± p0/2, b3 = p2 and b4 = 1/p1.

    The curve is monotonic: p0 is not negative, and p1 and p3 have the sign of the linear trend (p1 is also bounded, to 6
    per standard deviation of the prediction), so that a fit can straighten a metric but never reorder images. Of the fits
    from a few starts the best is taken; with five parameters it is never worse than the straight line.

    A fit that fails (no spread in the data, fewer points than parameters) comes back with `success` False; one that the
    solver left on its way down a flat valley counts, and its message says so. Raises ValueError for the same bad input as
    `correlations`.
    """
    if parameters not in (4, 5):
        raise ValueError(f"the logistic has 4 or 5 parameters, not {parameters}")
    prediction, score = _check_pairs(prediction, score)
    if len(score) < parameters:
        return _failed(parameters, f"{len(score)} points are too few for {parameters} parameters")
    if _constant(prediction) or _constant(score):
        return _failed(parameters, f"all {'predictions' if _constant(prediction) else 'scores'} are equal")

    trend = -1.0 if _pearson(prediction, score) < 0 else 1.0
    x = trend * (prediction - prediction.mean()) / prediction.std()
    y = (score - score.mean()) / score.std()
    solution = _fit_standardised(x, y, linear=parameters == 5)
    if not np.isfinite(solution.cost):
        return _failed(parameters, solution.message)
    params = _original_units(solution.x, prediction, score, trend)
    return LogisticFit(tuple(params.tolist()), _rmse(_logistic(params, prediction), score), True, solution.message)


def _logistic(params: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The formula of `logistic_fit`; the hyperbolic tangent is its logistic term and cannot overflow."""
    height, slope, centre, *line = params
    offset = line[-1]
    curve = height / 2 * np.tanh(slope * (x - centre) / 2) + offset
    return curve + line[0] * x if len(line) == 2 else curve


def _jacobian(params: np.ndarray, x: np.ndarray) -> np.ndarray:
    height, slope, centre, *line = params
    t = np.tanh(slope * (x - centre) / 2)
    dt = height / 4 * (1 - t**2)
    columns = [t / 2, dt * (x - centre), -dt * slope]
    return np.stack(columns + ([x] if len(line) == 2 else []) + [np.ones_like(x)], axis=1)


def _fit_standardised(x: np.ndarray, y: np.ndarray, *, linear: bool):
    """The best of several bounded fits of a rising logistic; x and y have mean 0 and standard deviation 1."""
    span = np.ptp(x)
    line = max(0.0, float(_pearson(x, y)))  # rounding may put a flat trend just below zero
    lower = [0.0, 0.0, x.min() - span, *([0.0] if linear else []), -np.inf]
    upper = [_MAX_HEIGHT, _MAX_SLOPE, x.max() + span, *([np.inf] if linear else []), np.inf]
    starts = [  # height, slope, centre, share of the straight line
        (0.1, 1.0, 0.0, 1.0),
        (3.0, 1.5, 0.0, 0.1),
        (2.0, 4.0, np.quantile(x, 0.25), 0.5),
        (2.0, 4.0, np.quantile(x, 0.75), 0.5),
    ]
    solutions = []
    for height, slope, centre, share in starts:
        start = [height, slope, centre, *([share * line] if linear else []), 0.0]
        solutions.append(
            least_squares(
                lambda p: _logistic(p, x) - y,
                start,
                lambda p: _jacobian(p, x),
                bounds=(lower, upper),
                max_nfev=2000,  # data without a trend leave a flat valley, along which steps are small
            )
        )
    best = min(solutions, key=lambda solution: solution.cost)  # also one that the limit stopped on its way down
    straight = 0.5 * np.square(line * x - y).sum()
    if linear and not best.cost <= straight:  # on straight data the fits end just short of the line
        best.x, best.cost = np.array([0.0, 1.0, 0.0, line, 0.0]), straight
        best.message = "the straight line fits best"
    return best


def _original_units(params: np.ndarray, prediction: np.ndarray, score: np.ndarray, trend: float) -> np.ndarray:
    """Carry the parameters of the standardised fit over to the units of the data."""
    height, slope, centre, *line = params
    scale = trend * prediction.std()
    rise = score.std() * line[0] / scale if len(line) == 2 else 0.0
    offset = score.mean() + score.std() * line[-1] - rise * prediction.mean()
    logistic = [score.std() * height, slope / scale, prediction.mean() + scale * centre]
    return np.array([*logistic, *([rise] if len(line) == 2 else []), offset])


def _failed(parameters: int, why: str) -> LogisticFit:
    nan = float("nan")
    return LogisticFit((nan,) * parameters, nan, False, why)


# ------------------------------------------------------------------------------------------------------ small helpers


def _check_pairs(prediction: ArrayLike, score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for role, values in (("predictions", prediction), ("scores", score)):
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 1:
            raise ValueError(f"the {role} must be one-dimensional, got the shape {array.shape}")
        bad = np.flatnonzero(~np.isfinite(array))
        if len(bad):
            raise ValueError(f"{len(bad)} of the {role} are not finite, the first is {array[bad[0]]} at {bad[0]}")
        arrays.append(array)
    if len(arrays[0]) != len(arrays[1]):
        raise ValueError(f"{len(arrays[0])} predictions for {len(arrays[1])} scores")
    if len(arrays[0]) < 3:
        raise ValueError(f"a correlation needs at least three pairs, got {len(arrays[0])}")
    return arrays[0], arrays[1]


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation along the last axis; NaN where one side is constant."""
    constant = (np.ptp(a, axis=-1) == 0) | (np.ptp(b, axis=-1) == 0)  # seen before the mean brings rounding in
    a = a - a.mean(axis=-1, keepdims=True)
    b = b - b.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (a * b).sum(axis=-1) / np.sqrt(np.square(a).sum(axis=-1) * np.square(b).sum(axis=-1))
    return np.where(constant, np.nan, np.clip(r, -1.0, 1.0))


def _constant(values: np.ndarray) -> bool:
    return bool(np.ptp(values) == 0 or np.var(values) == 0)  # the variance of tiny numbers underflows


def _plcc_fitted(fitted: np.ndarray, score: np.ndarray, plcc: float) -> float:
    if np.ptp(fitted) <= 1e-12 * np.ptp(score):  # the best curve is flat: it explains nothing
        return 0.0
    return float(np.copysign(_pearson(fitted, score), plcc))


def _min_max(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / np.ptp(values)


def _rmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.square(a - b).mean()))


def _resampled_rows(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of row numbers (resamples of the block, n), about a million at once to bound the memory."""
    rng = np.random.default_rng(seed)
    block = max(1, 1_000_000 // n)
    for start in range(0, resamples, block):
        yield rng.integers(n, size=(min(block, resamples - start), n))


MIN_GROUPS = 5  # fewer cannot be resampled to any purpose: of one group, every resample is the same


def group_rows(groups: ArrayLike | None, n: int) -> list[np.ndarray]:
    """Row numbers of every group of n images, labelled (n,); None is one group. ValueError for another shape."""
    if groups is None:
        return [np.arange(n)]
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise ValueError(f"{n} images need {n} groups, got the shape {groups.shape}")
    _, codes = np.unique(groups, return_inverse=True)
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1]) if n else []


def _drawn_groups(groups: ArrayLike, n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers (1, number of rows) of each resample of whole groups, whose sizes may differ."""
    members = group_rows(groups, n)
    rng = np.random.default_rng(seed)
    for _ in range(resamples if len(members) >= MIN_GROUPS else 0):
        yield np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])[None]


def _percentiles(values: np.ndarray, confidence: float) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
