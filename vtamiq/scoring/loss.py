"""VTAMIQ as a loss: differentiable in the images, through the patches that were sampled.

Places are chosen as for a score, by CAPS on copies rounded to 8 bits, without a gradient. Patches are then cut from the
float images: pixels within a patch get a gradient, all others exactly 0.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtamiq.caps import CAPS, PatchSample, caps_for
from vtamiq.images.reading import ImageError
from vtamiq.model.inference import check_model
from vtamiq.model.modes import uncompiled
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring.scores import check_integer

REDUCTIONS = ("mean", "sum", "none")


class VTAMIQLoss(nn.Module):
    """Perceived distortion of `x` against `y` as a differentiable loss, called as piq's losses are: lower is better.

    The model is copied, frozen and kept in evaluation mode, and computes in its own precision within autocast too. For
    images of 8-bit values the loss is the `score` of one draw with the same seed, up to rounding. `torch.compile` compiles
    the network and leaves the choice of places as it is (so not with `fullgraph=True`).

    >>> x = torch.from_numpy(distorted).permute(2, 0, 1)[None] / 255
    >>> y = torch.from_numpy(reference).permute(2, 0, 1)[None] / 255
    >>> loss = VTAMIQLoss(model)(x.requires_grad_(), y)
    >>> loss.backward()
    >>> bool(x.grad.abs().sum() > 0)
    True

    One draw of patches sees part of an image, so an optimisation needs `new_places=True`: over many steps every pixel is
    seen. With `zero_anchor` an exact copy has loss 0 and gradient 0: start from something else.

    Args:
        model, caps, seed: as for `score`.
        new_places: draw other places on every call (the n-th call takes draw n of `score`'s `repeats`); False: the same
            images have the same loss.
        reduction: "mean" or "sum" over the batch, or "none".

    Raises:
        ValueError, TypeError, CheckpointError: an argument is out of range or no model, or the one that ships is missing.
    """

    def __init__(
        self,
        model: VTAMIQ | None = None,
        *,
        caps: CAPS | None = None,
        seed: int = 0,
        new_places: bool = False,
        reduction: str = "mean",
    ):
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
        check_integer("seed", seed, 0)
        model = check_model(model)
        self.caps = caps_for(model, caps)
        if not self.caps.aligned:
            raise ValueError("VTAMIQLoss compares images at the same places, but caps.aligned is off")
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.seed, self.new_places, self.reduction = seed, new_places, reduction
        self.calls = 0

    def train(self, mode: bool = True) -> "VTAMIQLoss":
        """As for any module, but the network stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Loss of distorted images `x` against references `y`, both (B, 3, H, W) float in [0, 1].

        Returns:
            A scalar, or (B,) with reduction "none", on the model's device.

        Raises:
            ImageError: shapes differ or are none of images, values are outside [0, 1] (clamp them first) or NaN, or
                images are smaller than a patch.
        """
        patches, uv, scale = self._cut(x, y)
        with torch.autocast(patches.device.type, enabled=False):
            q = self.model(patches, uv, scale)[:, 0]  # (B,)
        if self.reduction == "none":
            return q
        return q.mean() if self.reduction == "mean" else q.sum()

    @uncompiled
    def _cut(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised patches (B, 2, N, 3, P, P), their uv (B, N, 2) and scale (B, N), on the model's device."""
        _check_batch("x", x)
        _check_batch("y", y)
        if x.shape != y.shape:
            raise ImageError(f"x and y must have one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
        draw, self.calls = (self.calls if self.new_places else 0), self.calls + 1
        weights = next(self.model.parameters())
        items = []
        for pair in zip(y, x, strict=True):
            (sample,) = self.caps.draws([_to_uint8(image) for image in pair], self.seed, [draw])
            cut = torch.stack([gather_patches(image, sample) for image in pair]).to(weights.device, weights.dtype)
            items.append((self.model.normalise(255 * cut), sample.uv, sample.scale))
        return tuple(torch.stack(parts).to(weights.device) for parts in zip(*items, strict=True))


def gather_patches(image: Tensor, sample: PatchSample) -> Tensor:
    """Patches (N, 3, P, P) of a float image (3, H, W) at the places of an aligned sample, differentiable in the image.

    Coarser scales are cut from the means of 2 × 2 pixels, as in `CAPS`, without its rounding to 8 bits.
    """
    P, level = sample.patches.shape[-1], image
    offset = torch.arange(P, device=image.device)
    patches = image.new_zeros(len(sample.scale), 3, P, P)
    for scale in range(int(sample.scale.max()) + 1):
        if scale > 0:
            level = F.avg_pool2d(level, 2)
        here = (sample.scale == scale).nonzero()[:, 0]
        row, column = (sample.position[here, axis, None].to(image.device) + offset for axis in (0, 1))  # (n, P) each
        pixel = row[:, :, None] * level.shape[2] + column[:, None, :]  # (n, P, P)
        # Looked up as embeddings: on a CPU the gradient of an indexed tensor is summed in any order by its threads.
        cut = F.embedding(pixel, level.flatten(1).T).permute(0, 3, 1, 2)
        patches = patches.index_copy(0, here.to(image.device), cut)
    return patches


def _to_uint8(image: Tensor) -> np.ndarray:
    """(H, W, 3) copy rounded to 8 bits, as `read_image` rounds floats."""
    values = image.detach().permute(1, 2, 0).cpu()
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    return np.ascontiguousarray(np.rint(values.numpy() * 255).astype(np.uint8))


def _check_batch(name: str, images: Tensor) -> None:
    if not torch.is_tensor(images):
        raise ImageError(f"{name} must be a tensor (B, 3, H, W), got {type(images).__name__}")
    if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise ImageError(f"{name} must be a tensor (B, 3, H, W), got shape {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ImageError(f"{name} must be floats in [0, 1], got {images.dtype}; divide 8-bit images by 255")
    low, high = (value.item() for value in images.detach().aminmax())
    if not (low >= 0 and high <= 1):  # NaN fails both
        raise ImageError(f"{name} must lie in [0, 1], found {low:g} to {high:g}; clamp an image that is optimised")
