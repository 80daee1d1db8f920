"""How well predictions agree with scores: signed SROCC, KROCC, PLCC and RMSE, before and after the usual logistic fit.

correlations(q, mos, higher_better=True)["srocc"]                    # q is lower-better, as VTAMIQ predicts
correlations(ssim, dmos, lower_better=False, higher_better=False)    # a higher-better metric against DMOS
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares
from scipy.stats import kendalltau, rankdata

MIN_GROUPS = 5  # fewer cannot be resampled to any purpose: of one group, every resample is the same


@dataclass(frozen=True)
class LogisticFit:
    """A fitted logistic; call it on predictions to get them in the units of the scores.

    Attributes:
        params: p0 … p3 or p0 … p4 of `logistic_fit`; all NaN after a failed fit.
        rmse: root mean squared residual in the units of the scores; NaN after a failed fit.
        success: whether there is a fit; a failed one turns every prediction into NaN.
        message: what the solver says, or why there was nothing to fit.
    """

    params: tuple[float, ...]
    rmse: float
    success: bool
    message: str

    def __call__(self, prediction: ArrayLike) -> np.ndarray:
        """Map predictions of any shape to float64 of the same shape."""
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
    seed: int = 0,
) -> dict[str, Any]:
    """Agreement of predictions (n,) with scores (n,), positive where they agree whatever their two directions.

    Args:
        higher_better: direction of the score: True for MOS, False for DMOS.
        lower_better: direction of the prediction.
        parameters: 5 or 4, of the logistic fit.
        bootstrap, groups, seed: for 95 % intervals by `bootstrap_intervals`; 0 resamples for none.

    Returns:
        `srocc`, `krocc` (Kendall's tau-b) and `plcc` without a fit; `rmse` without a fit, both sides scaled to [0, 1] by
        their minimum and maximum; `plcc_fitted` (with the sign of `plcc`) and `rmse_fitted` (in the units of the score)
        after `logistic_fit`, NaN if that failed; `n`; `fit`, the `LogisticFit`; `degenerate`, True if all predictions or
        all scores are equal, which makes every value NaN; with `bootstrap`, `srocc_low`, `srocc_high`, `plcc_low`,
        `plcc_high`.

    Raises:
        ValueError: values that are not finite, different lengths, or fewer than three pairs.
    """
    prediction, score = _check_pairs(prediction, score)
    turned = -prediction if lower_better == higher_better else prediction
    fit = logistic_fit(prediction, score, parameters=parameters)
    result = dict.fromkeys(("srocc", "krocc", "plcc", "rmse", "plcc_fitted", "rmse_fitted"), float("nan"))
    result |= {"n": len(score), "fit": fit, "degenerate": _constant(prediction) or _constant(score)}
    if not result["degenerate"]:
        result["srocc"] = float(pearson(rankdata(turned), rankdata(score)))
        result["krocc"] = float(kendalltau(turned, score).statistic)
        result["plcc"] = float(pearson(turned, score))
        result["rmse"] = _rmse(_min_max(turned), _min_max(score))
        result["rmse_fitted"] = fit.rmse
        result["plcc_fitted"] = _plcc_fitted(fit(prediction), score, result["plcc"])
    if bootstrap:
        intervals = bootstrap_intervals(turned, score, groups, resamples=bootstrap, seed=seed)
        for name, (low, high) in intervals.items():
            result |= {f"{name}_low": low, f"{name}_high": high}
    return result


def bootstrap_intervals(
    prediction: ArrayLike, score: ArrayLike, groups: ArrayLike | None = None, *, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of SROCC and PLCC (no fit) of (n,) pairs drawn with replacement: {"srocc": (low, high), …}.

    Directions are taken as they are. Pairs of one reference are not independent: drawn one by one, their intervals are too
    narrow. With `groups` (n,), such as the reference of each pair, whole groups are drawn; fewer than 5 give (NaN, NaN).
    A resample of equal values has no correlation and is left out.
    """
    prediction, score = _check_pairs(prediction, score)
    if resamples < 1:
        raise ValueError(f"at least one resample is needed, got {resamples}")
    if groups is None:
        draws = _drawn_rows(len(score), resamples, seed)
    else:
        draws = (rows[None] for rows in drawn_groups(groups, len(score), resamples, seed))
    srocc, plcc = [np.empty(0)], [np.empty(0)]
    for rows in draws:
        plcc.append(pearson(prediction[rows], score[rows]))
        srocc.append(pearson(rankdata(prediction[rows], axis=1), rankdata(score[rows], axis=1)))
    return {name: interval(np.concatenate(values)) for name, values in (("srocc", srocc), ("plcc", plcc))}


def _drawn_rows(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of row numbers (resamples of the block, n), about a million at once to bound the memory."""
    rng = np.random.default_rng(seed)
    block = max(1, 1_000_000 // n)
    for start in range(0, resamples, block):
        yield rng.integers(n, size=(min(block, resamples - start), n))


def drawn_groups(groups: ArrayLike, n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers of each resample of whole groups, whose sizes may differ; none of fewer than `MIN_GROUPS` groups."""
    members = group_rows(groups, n)
    rng = np.random.default_rng(seed)
    for _ in range(resamples if len(members) >= MIN_GROUPS else 0):
        yield np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])


def group_rows(groups: ArrayLike | None, n: int) -> list[np.ndarray]:
    """Row numbers of every group of n images, labelled (n,); None is one group. ValueError for another shape."""
    if groups is None:
        return [np.arange(n)]
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise ValueError(f"{n} images need {n} groups, got the shape {groups.shape}")
    _, codes = np.unique(groups, return_inverse=True)
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1]) if n else []


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the finite values; (NaN, NaN) without any."""
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (np.nan, np.nan)
    return float(low), float(high)


# ------------------------------------------------------------------------------------------------------------ the fit

# Bounds in standardised units (both variables with mean 0 and standard deviation 1), where the trend is rising. They keep
# the curve monotonic and stop it short of a step between two neighbouring predictions, which few points would invite.
_MAX_HEIGHT = 50.0
_MAX_SLOPE = 6.0  # the middle four fifths of the rise take at least 0.73 standard deviations


def logistic_fit(prediction: ArrayLike, score: ArrayLike, *, parameters: int = 5) -> LogisticFit:
    """Fit a least-squares logistic from predictions (n,) to scores (n,), in any units and of either direction.

    Five parameters (Sheikh, Sabir and Bovik, IEEE Trans. Image Process. 15(11), 2006):
    p0 (1/2 − 1/(1 + exp(p1 (x − p2)))) + p3 x + p4. Four (VQEG, validation of video quality models, phase I, 2000): the
    same without p3 x, its offset being p3; b1, b2 = p3 ± p0/2, b3 = p2 and b4 = 1/p1 in the VQEG's notation.

    The curve is monotonic in the direction of the linear trend, so that a fit can straighten a metric but never reorder
    images. The best of a few starts is taken; with five parameters it is never worse than the straight line. Without spread
    in the data or enough points, the fit comes back with `success` False. Raises ValueError as `correlations` does.
    """
    if parameters not in (4, 5):
        raise ValueError(f"the logistic has 4 or 5 parameters, not {parameters}")
    prediction, score = _check_pairs(prediction, score)
    if len(score) < parameters:
        return _failed(parameters, f"{len(score)} points are too few for {parameters} parameters")
    if _constant(prediction) or _constant(score):
        return _failed(parameters, f"all {'predictions' if _constant(prediction) else 'scores'} are equal")

    trend = -1.0 if pearson(prediction, score) < 0 else 1.0
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
    line = max(0.0, float(pearson(x, y)))  # rounding may put a flat trend just below zero
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
    height, slope, centre, *line = params
    scale = trend * prediction.std()
    rise = score.std() * line[0] / scale if len(line) == 2 else 0.0
    offset = score.mean() + score.std() * line[-1] - rise * prediction.mean()
    logistic = [score.std() * height, slope / scale, prediction.mean() + scale * centre]
    return np.array([*logistic, *([rise] if len(line) == 2 else []), offset])


def _failed(parameters: int, why: str) -> LogisticFit:
    nan = float("nan")
    return LogisticFit((nan,) * parameters, nan, False, why)


def _check_pairs(prediction: ArrayLike, score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    prediction, score = check_vectors(predictions=prediction, scores=score)
    if len(score) < 3:
        raise ValueError(f"a correlation needs at least three pairs, got {len(score)}")
    return prediction, score


def check_vectors(**vectors: ArrayLike) -> list[np.ndarray]:
    """Convert to float64 (n,) each; ValueError if one is not finite or their lengths differ."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in vectors.items()}
    for name, array in arrays.items():
        if array.ndim != 1:
            raise ValueError(f"the {name} must be one-dimensional, got the shape {array.shape}")
        bad = np.flatnonzero(~np.isfinite(array))
        if len(bad):
            raise ValueError(f"{len(bad)} of the {name} are not finite, the first is {array[bad[0]]} at {bad[0]}")
    if len({len(array) for array in arrays.values()}) > 1:
        raise ValueError(f"the numbers must agree: {', '.join(f'{len(a)} {name}' for name, a in arrays.items())}")
    return list(arrays.values())


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
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
    return float(np.copysign(pearson(fitted, score), plcc))


def _min_max(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / np.ptp(values)


def _rmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.square(a - b).mean()))
