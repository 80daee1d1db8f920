"""Training losses of VTAMIQ: mean absolute error (also of preferences), pairwise rank, Pearson.

`prediction` and `target` are (n,) float tensors of one batch, both in the direction "larger is worse".
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_TINY = 1e-6  # the published code's guard in the rank sign and the Pearson norms


def mae_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """mean |d − y|."""
    _check(prediction, target)
    return F.l1_loss(prediction, target)


def rank_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over pairs of max(0, −s (dᵢ − dⱼ)) / max(|dᵢ|, |dⱼ|), where s = (yᵢ − yⱼ)/(|yᵢ − yⱼ| + 1e-6).

    Zero when every pair is ordered like its labels, and for a batch of one. The denominator takes part in the gradient, as
    in the published code; unlike there, a pair of two predictions that are both exactly 0 counts 0 instead of NaN.
    """
    _check(prediction, target)
    n = len(prediction)
    if n < 2:
        return prediction.sum() * 0.0
    i, j = torch.triu_indices(n, n, offset=1, device=prediction.device)
    label_gap = target[i] - target[j]
    sign = label_gap / (label_gap.abs() + _TINY)
    larger = torch.maximum(prediction[i].abs(), prediction[j].abs())
    hinge = F.relu(-sign * (prediction[i] - prediction[j]))
    return (hinge / torch.where(larger > 0, larger, 1.0)).mean()


def pearson_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """1 − clamp(r, 0, 1) with Pearson's r; 1 with zero gradient while r is negative."""
    _check(prediction, target)
    d = prediction - prediction.mean()
    y = target - target.mean()
    # In this order, since gradients near r = 1 are all rounding; no dot product, for autocast would halve its precision.
    r = (d / (d.norm() + _TINY) * (y / (y.norm() + _TINY))).sum()
    return 1 - r.clamp(0, 1)


def combined_loss(
    prediction: Tensor, target: Tensor, *, mae: float = 0.0, rank: float = 1.0, pearson: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the three losses, and each of them unweighted and detached for the log.

    The defaults are the 2024 code's loss; the 2021 code's is `mae=1/2.2, rank=1/2.2, pearson=0.2/2.2` in the first epoch.

    Raises:
        ValueError: a negative weight, all weights zero, or inputs that are not two (n,) tensors.
    """
    weights = {"mae": mae, "rank": rank, "pearson": pearson}
    if not min(weights.values()) >= 0 or not 0 < sum(weights.values()) < math.inf:
        raise ValueError(f"loss weights must not be negative nor all zero, got {weights}")
    parts = {
        "mae": mae_loss(prediction, target),
        "rank": rank_loss(prediction, target),
        "pearson": pearson_loss(prediction, target),
    }
    total = sum(weights[name] * parts[name] for name in parts if weights[name])
    return total, {name: part.detach() for name, part in parts.items()}


def _check(prediction: Tensor, target: Tensor) -> None:
    """Shapes that do not agree would broadcast in silence."""
    if prediction.shape != target.shape or prediction.ndim != 1:
        raise ValueError(f"prediction and target must be (n,), got {tuple(prediction.shape)} and {tuple(target.shape)}")
