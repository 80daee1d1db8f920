"""Labels as the original authors prepare them, for comparison with their numbers only."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import leastsq

from vtamiq.databases.schema import Database, DatabaseError

__all__ = ["Linearisation"]


@dataclass(frozen=True)
class Linearisation:
    """Scores as distortions, 0 best and 1 worst, spread evenly by a curve fitted to the histogram of a WHOLE database.

    It takes the place of `LabelScale`. Fitted on all rows, test rows included, it leaks: what a model is trained towards
    then depends on the labels that it is tested on. That is how the original configuration has it, and the only reason to
    use it.

    Scores are normalised to [0, 1] by `low` and `high`; the five-parameter logistic `params` maps them close to their
    rank, and its values are normalised again by `curve_low` and `curve_high`; `reverse` then turns scores where high is
    good. NaN parameters stand for a fit that failed: the scores are then only normalised, as in the original.
    """

    low: float
    high: float
    params: tuple[float, ...]
    curve_low: float
    curve_high: float
    reverse: bool

    @classmethod
    def fit(cls, *parts: Database) -> "Linearisation":
        """Fit to all rows of a database, given whole or in parts.

        Raises DatabaseError if parts differ in the direction of their scores, a score is missing or all are the same.
        """
        name, higher_better = parts[0].name, parts[0].higher_better
        if any(part.higher_better != higher_better for part in parts):
            raise DatabaseError(f"{name}: parts with scores of two directions are no one database")
        scores = np.concatenate([part.pairs["score"].to_numpy(dtype=np.float64) for part in parts])
        if np.isnan(scores).any():
            raise DatabaseError(f"{name}: {np.isnan(scores).sum()} of {len(scores)} rows have no score")
        low, high = float(scores.min()), float(scores.max())
        if low == high:
            raise DatabaseError(f"{name}: all {len(scores)} scores are {low}; they cannot be spread")
        normal = np.sort((scores - low) / (high - low))
        params = _fit(normal)
        curve = _logistic(params, normal)
        if not np.isfinite(curve).all() or np.ptp(curve) == 0:
            return cls(low, high, (math.nan,) * 5, 0.0, 1.0, higher_better)
        return cls(low, high, tuple(params.tolist()), float(curve.min()), float(curve.max()), higher_better)

    def to_distortion(self, score: Any) -> np.ndarray:
        """Scores of any shape to distortions, float64; NaN stays NaN."""
        values = (np.asarray(score, dtype=np.float64) - self.low) / (self.high - self.low)
        if not math.isnan(self.params[0]):
            values = (_logistic(np.array(self.params), values) - self.curve_low) / (self.curve_high - self.curve_low)
        return 1 - values if self.reverse else values

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"params": list(self.params)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Linearisation":
        if not isinstance(values, Mapping) or set(values) != set(cls.__dataclass_fields__):
            raise DatabaseError(
                f"a linearisation has the entries {', '.join(cls.__dataclass_fields__)}, got {values!r}"
            )
        return cls(**{**values, "params": tuple(values["params"])})


def _fit(scores: np.ndarray) -> np.ndarray:
    """Parameters of the logistic from sorted scores to their ranks.

    The original hands squared residuals to a solver that squares them again, so that it minimises fourth powers, and the
    solver (MINPACK, default settings) stops at its limit of evaluations. Only the same solver ends at the same place.
    """
    ranks = np.arange(len(scores)) / len(scores) * scores.max() - scores.min()
    start = np.array([1.0, 1.0, np.median(scores), 1.0, np.median(ranks)])
    params, *_ = leastsq(lambda p: np.square(ranks - _logistic(p, scores)), start, full_output=True)
    return params


def _logistic(params: np.ndarray, x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        step = 0.5 - 1 / (1 + np.exp(params[1] * (x - params[2]) + 1e-6))
    return params[0] * step + abs(params[3]) * x + params[4]
