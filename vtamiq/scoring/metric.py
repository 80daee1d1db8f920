"""VTAMIQ as a torchmetrics metric: accumulated over batches and processes."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from vtamiq.caps import CAPS
from vtamiq.model.inference import fingerprint
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring.loss import VTAMIQLoss
from vtamiq.utils.digests import digest


class VTAMIQMetric(Metric):
    """Mean (or sum of) perceived distortion over all image pairs that were fed in: lower is better.

    >>> metric = VTAMIQMetric(model)
    >>> preds, target = (torch.from_numpy(image).permute(2, 0, 1)[None] for image in (distorted, reference))
    >>> metric.update(preds, target)
    >>> abs(metric.compute().item() - score(reference, distorted, model=model)) < 1e-5
    True

    Args:
        model, caps, seed: as for `VTAMIQLoss`; the same pair has the same score.
        reduction: "mean" or "sum".
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError, TypeError, CheckpointError: as for `VTAMIQLoss`.
    """

    is_differentiable = True
    higher_is_better = False
    full_state_update = False

    total: Tensor
    count: Tensor
    identity: Tensor

    def __init__(
        self,
        model: VTAMIQ | None = None,
        *,
        caps: CAPS | None = None,
        seed: int = 0,
        reduction: str = "mean",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be mean or sum, got {reduction!r}")
        self.reduction = reduction
        self.loss = VTAMIQLoss(model, caps=caps, seed=seed, reduction="none")
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64, device="cpu"), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0, device="cpu"), dist_reduce_fx="sum")
        # A MetricCollection merges metrics of equal states, and copies have the score 0 by any model.
        identity = digest(f"{fingerprint(self.loss.model)} {self.loss.caps} {seed}", length=12)
        self.add_state("identity", torch.tensor(int(identity, 16), device="cpu"), dist_reduce_fx="max")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add pairs: distorted `preds` and references `target`, (B, 3, H, W), float in [0, 1] or uint8.

        Raises:
            ImageError: as for `VTAMIQLoss`.
        """
        q = self.loss(*(images.float() / 255 if images.dtype == torch.uint8 else images for images in (preds, target)))
        self.total = self.total + q.sum()
        self.count = self.count + len(q)

    def compute(self) -> Tensor:
        """Scalar; NaN if there was no pair."""
        return (self.total / self.count if self.reduction == "mean" else self.total).float()

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one value, the current one by default, or a list of them; figure and axes as in `torchmetrics.Metric`."""
        return self._plot(val, ax)
