"""Score image pairs with a model: one reference against one or many distorted versions."""

from collections.abc import Sequence

import numpy as np
import torch

from vtamiq.caps import CAPS
from vtamiq.images import ImageError, ImageSource, describe, read_images
from vtamiq.model import VTAMIQ, CheckpointError
from vtamiq.predictions import caps_for

__all__ = ["score"]


def score(
    reference: ImageSource,
    distorted: "ImageSource | Sequence[ImageSource]",
    *,
    model: VTAMIQ | None = None,
    repeats: int = 1,
    seed: int = 0,
    caps: CAPS | None = None,
    return_std: bool = False,
) -> float | np.ndarray | tuple[float, float] | tuple[np.ndarray, np.ndarray]:
    """Perceived distortion of `distorted` against `reference`: lower is better.

    Deterministic: the same images, model and seed give the same score, whatever else is scored in the same call. A perfect
    copy scores exactly 0 if the model has `zero_anchor`; nothing keeps a model from giving a nearly perfect one a score
    slightly below 0.

    Args:
        reference: anything `vtamiq.images.read_image` takes.
        distorted: one image, or a list of images of the reference's size.
        model: a trained VTAMIQ. Used in evaluation mode on the device where it is; its mode is restored.
        repeats: draws of patches that are averaged.
        caps: patch sampling; None takes `CAPS()` with what the model prescribes.
        return_std: also return the standard error of the mean over the draws (NaN for one draw).

    Returns:
        A float for one distorted image, an array (M,) for a list of M; with `return_std` a pair of these.

    Raises:
        ImageError: an image cannot be read, is smaller than a patch, or differs in size from the reference.
        CheckpointError: no model given; no weights ship with this version.
        ValueError: `repeats` below 1, a negative seed, or an empty list.
    """
    if model is None:
        raise CheckpointError(
            "no weights ship with this version of vtamiq: pass model=VTAMIQ.from_pretrained(folder), or --model FOLDER in "
            "the shell; `make reproduce` trains one into runs/demo/03_weak_pretraining/run/model"
        )
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats!r}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed!r}")
    single = not isinstance(distorted, list | tuple)
    images = [distorted] if single else list(distorted)
    if not images:
        raise ValueError("there is no distorted image to score")
    caps = caps_for(model, caps)
    training = model.training
    model.eval()
    try:
        draws = np.array([_draws(model, reference, image, caps, repeats, seed) for image in images])
    finally:
        model.train(training)
    mean = draws.mean(axis=1)  # (M,)
    error = draws.std(axis=1, ddof=1) / np.sqrt(repeats) if repeats > 1 else np.full(len(draws), np.nan)
    if single:
        mean, error = float(mean[0]), float(error[0])
    return (mean, error) if return_std else mean


@torch.inference_mode()
def _draws(
    model: VTAMIQ, reference: ImageSource, distorted: ImageSource, caps: CAPS, repeats: int, seed: int
) -> list[float]:
    """Scores of one pair over independent draws; one draw at a time bounds memory."""
    pair = read_images([reference, distorted])  # (2, H, W, 3)
    device = next(model.parameters()).device
    scores = []
    for draw in range(repeats):
        try:
            sample = caps(pair, np.random.default_rng([seed, draw]))
        except ImageError as error:  # CAPS does not know where its images come from
            raise ImageError(f"{describe(distorted)}: {error}") from error
        inputs = (tensor[None].to(device) for tensor in (sample.patches, sample.uv, sample.scale))
        scores.append(model(*inputs).item())
    return scores
