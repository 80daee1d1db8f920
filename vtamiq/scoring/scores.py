"""Score image pairs with a model: one reference against one or many distorted images, or pair by pair.

A score uses only a few hundred patches, so the network costs the same for every size of image; reading the images and
finding the places to look at grow with the number of pixels. One pair is held at a time.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import torch

from vtamiq.caps import CAPS, PatchSample, caps_for, cut_patches, pyramid
from vtamiq.images.reading import ImageError, ImageSource, check_same_size, describe, read_image, read_images
from vtamiq.model.checkpoints import CheckpointError
from vtamiq.model.inference import NOT_FINITE, check_model, half_precision
from vtamiq.model.modes import evaluation
from vtamiq.model.network import VTAMIQ

__all__ = ["ReferenceEmbedding", "score"]

COMPUTES = 2  # raise when the same settings give other scores: what was scored before is then not resumed or read again
Sources: TypeAlias = "ImageSource | Sequence[ImageSource]"


def score(
    reference: Sources,
    distorted: Sources,
    *,
    model: VTAMIQ | None = None,
    repeats: int = 1,
    seed: int = 0,
    caps: CAPS | None = None,
    return_std: bool = False,
    shared_positions: bool = False,
    batch_size: int = 1,
    precision: str = "float32",
) -> float | np.ndarray | tuple[float, float] | tuple[np.ndarray, np.ndarray]:
    """Perceived distortion of `distorted` against `reference`: lower is better.

    Deterministic: the same pair, model and seed have the same score here, in `score_table` and in `predict`, whatever
    else is scored with them (in larger batches, up to rounding). See `CAPS.draws` for how patches follow from the seed. A
    perfect copy scores exactly 0 if the model has `zero_anchor` and `caps` is aligned; nothing keeps a model from giving
    a nearly perfect one a score slightly below 0. May be called from several threads at once.

    >>> score(reference, distorted) > 0  # paths, PIL images, arrays or tensors; by the model that ships with the package
    True
    >>> q = score(reference, distorted, model=model)
    >>> score(reference, [reference, distorted], model=model).tolist() == [0.0, q]
    True
    >>> mean, error = score(reference, distorted, model=model, repeats=8, return_std=True)

    Args:
        reference: anything `read_image` takes; or a list of references, one for each distorted image.
        distorted: one image, or several of their references' sizes: a list, an array (M, H, W, C) or a tensor
            (M, C, H, W).
        model: a trained VTAMIQ; None takes `vtamiq-tiny`, which ships with the package. Used in evaluation mode on the
            device where it is; its mode is restored.
        repeats: draws of patches that are averaged.
        caps: patch sampling; None takes `CAPS()` with what the model prescribes.
        return_std: also return the standard error of the mean over the draws (NaN for one draw).
        shared_positions: compare all distorted images of one reference at the same places, drawn from the mean of their
            differences: a `ReferenceEmbedding` with all of them as guides. Scores then depend on which images are scored
            together, and all are held in memory.
        batch_size: patch samples that go through the network at once; more than 1 pays on a GPU, and for
            many distorted images of one reference (about 4) on a CPU too.
        precision: "float32", or "float16" or "bfloat16" for autocast.

    Returns:
        A float for one distorted image, an array (M,) for several; with `return_std` a pair of these.

    Raises:
        ImageError: an image cannot be read, is smaller than a patch, or differs in size from its reference.
        CheckpointError: the scores are not finite, or no model is given and the one that ships is missing.
        ValueError: an argument is out of range, an empty list, or lists of different lengths.
        TypeError: `model` is something else.
    """
    model = check_model(model)
    _check_draws(repeats, seed, batch_size)
    references, versions, single = _sources(reference, distorted)
    if shared_positions:
        if _is_sequence(reference):
            raise ValueError("shared_positions is for one reference, not for a list of references")
        images = list(read_images([reference, *versions]))  # read once: they guide the places and are scored
        settings = {"model": model, "repeats": repeats, "seed": seed, "caps": caps, "precision": precision}
        embedding = ReferenceEmbedding(images[0], guides=images[1:], **settings)
        return embedding.score(images[1] if single else images[1:], return_std=return_std, batch_size=batch_size)
    samples = _samples(references, versions, caps_for(model, caps), repeats, seed)
    draws = [forward(model, stack(chunk), batch_size, precision) for chunk in _chunks(samples, batch_size)]
    return _summary(np.concatenate(draws).reshape(-1, repeats), single, return_std)


class ReferenceEmbedding:
    """One reference, embedded once, to be compared with any number of distorted images at the same places.

    `score` looks at each pair where its two images differ, so the reference must be embedded anew for each. Here the
    places are drawn once: where `guides`, images that stand for those to come, differ from the reference on average;
    without guides from the centre bias and the uniform map alone. A score then does not depend on the other images; with
    the one image itself as the guide it is that of `score`. A search for the best of many encodings wants this:
    differences between scores at the same places are less noisy. May be used from several threads at once.

    >>> embedding = ReferenceEmbedding(reference, model=model, guides=[distorted])
    >>> abs(embedding.score(distorted) - score(reference, distorted, model=model)) < 1e-5
    True

    Args:
        reference: anything `read_image` takes.
        model, repeats, seed, caps, precision: as for `score`. Later changes of the model's weights need a new embedding.
        guides: images of the reference's size.

    Raises:
        ImageError, CheckpointError, ValueError, TypeError: as for `score`; ValueError also if `caps.aligned` is off.
    """

    def __init__(
        self,
        reference: ImageSource,
        *,
        model: VTAMIQ | None = None,
        guides: Sequence[ImageSource] = (),
        repeats: int = 1,
        seed: int = 0,
        caps: CAPS | None = None,
        precision: str = "float32",
    ):
        self.model, self.precision = check_model(model), precision
        _check_draws(repeats, seed)
        caps = caps_for(self.model, caps)
        if not caps.aligned:
            raise ValueError("ReferenceEmbedding compares images at the same places, but caps.aligned is off")
        images = read_images([reference, *guides])
        self.name, self.reference = describe(reference), images[0]
        samples = pair_samples(images, caps, repeats, seed, reference)
        self._samples = [replace(sample, patches=sample.patches[:1].clone()) for sample in samples]
        with _inference(self.model, precision):
            self._embeddings = torch.cat([self._encode([sample]) for sample in self._samples])  # (repeats, 1, D)

    def score(
        self, distorted: Sources, *, return_std: bool = False, batch_size: int = 1
    ) -> float | np.ndarray | tuple[float, float] | tuple[np.ndarray, np.ndarray]:
        """Scores of one or several distorted images; arguments, results and errors as those of `vtamiq.score`."""
        check_integer("batch_size", batch_size, 1)
        _, versions, single = _sources(self.reference, distorted)
        with _inference(self.model, self.precision):
            draws = [self._compare(chunk) for chunk in _chunks(self._cut(versions), batch_size)]
        return _summary(np.concatenate(draws).reshape(-1, len(self._samples)), single, return_std)

    def _cut(self, versions: Iterable[ImageSource]) -> Iterator[tuple[int, PatchSample]]:
        """Number and sample, of the distorted image alone, of each image and draw; one image is held at a time."""
        for source in versions:
            image = _read_like(self.name, self.reference, source)
            levels = pyramid(image, 1 + int(self._samples[0].scale.max()))
            for draw, sample in enumerate(self._samples):
                places = sample.position.numpy(), sample.scale.numpy()
                patches = cut_patches(levels, *places, sample.patches.shape[-1])
                yield draw, replace(sample, patches=torch.from_numpy(patches)[None])

    def _compare(self, chunk: list[tuple[int, PatchSample]]) -> np.ndarray:
        draws, samples = [draw for draw, _ in chunk], [sample for _, sample in chunk]
        reference, distorted = self._embeddings[draws], self._encode(samples)  # (b, 1, D) each
        # Rounding may depend on the place in a batch: an exact copy has the reference's embedding, so it scores exactly 0.
        copies = [torch.equal(sample.patches, self._samples[draw].patches) for draw, sample in chunk]
        distorted[copies] = reference[copies]
        return self.model.compare(reference, distorted)[:, 0].double().cpu().numpy()

    def _encode(self, samples: Sequence[PatchSample]) -> torch.Tensor:
        device = next(self.model.parameters()).device
        return self.model.encode(*(tensor.to(device) for tensor in stack(samples)))


def forward(
    model: VTAMIQ, inputs: Sequence[torch.Tensor], batch_size: int = 1, precision: str = "float32"
) -> np.ndarray:
    """Scores (n,) float64 of stacked samples of two images each (`stack`), so many at a time; not checked for NaN."""
    scores = []
    with _inference(model, precision) as device:
        for batch in zip(*(tensor.split(batch_size) for tensor in inputs), strict=True):
            scores.append(model(*(tensor.to(device, non_blocking=True) for tensor in batch))[:, 0].double().cpu())
    return torch.cat(scores).numpy()


def stack(samples: Sequence[PatchSample]) -> list[torch.Tensor]:
    """`patches` (n, K, N, 3, P, P), `uv` (n, N, 2) and `scale` (n, N) of n samples."""
    return [torch.stack([getattr(sample, name) for sample in samples]) for name in ("patches", "uv", "scale")]


def collate_draws(items: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Stacked samples of several pairs, one after the other."""
    return [torch.cat(parts) for parts in zip(*items, strict=True)]


def pair_samples(images: Any, caps: CAPS, repeats: int, seed: int, source: Any) -> Iterator[PatchSample]:
    """The `repeats` samples that the score of an item's images (K, H, W, 3) uses; `source` names it in errors."""
    try:
        yield from caps.draws(images, seed, range(repeats))
    except ImageError as error:  # CAPS does not know where its images come from
        raise ImageError(f"{describe(source)}: {error}") from error


@contextlib.contextmanager
def _inference(model: VTAMIQ, precision: str) -> Iterator[torch.device]:
    """Inference and evaluation mode in that precision, on the model's device."""
    device = next(model.parameters()).device
    with torch.inference_mode(), evaluation(model), half_precision(device, precision):
        yield device


def _samples(
    references: list[ImageSource], versions: list[ImageSource], caps: CAPS, repeats: int, seed: int
) -> Iterator[PatchSample]:
    """Samples of each pair and draw, pair by pair; a reference shared by all is read once."""
    for k, source in enumerate(versions):
        if k < len(references):
            name, reference = references[k], read_image(references[k])
        yield from pair_samples([reference, _read_like(name, reference, source)], caps, repeats, seed, source)


def _read_like(name: Any, reference: np.ndarray, source: ImageSource) -> np.ndarray:
    """A distorted image; ImageError unless it has its reference's size."""
    image = read_image(source)
    check_same_size(name, reference, source, image)
    return image


def _sources(reference: Any, distorted: Any) -> tuple[list[ImageSource], list[ImageSource], bool]:
    """References (one for all, or one each), distorted images, and whether one score is asked for."""
    single = not _is_sequence(distorted)
    versions = [distorted] if single else list(distorted)
    if not versions:
        raise ValueError("there is no distorted image to score")
    if not _is_sequence(reference):
        return [reference], versions, single
    references = list(reference)
    if single:
        raise ValueError("several references need as many distorted images, but there is one distorted image")
    if len(references) != len(versions):
        raise ValueError(f"{len(references)} references cannot be paired with {len(versions)} distorted images")
    return references, versions, single


def _is_sequence(source: Any) -> bool:
    return isinstance(source, list | tuple) or (isinstance(source, np.ndarray | torch.Tensor) and source.ndim == 4)


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield chunk


def _summary(draws: np.ndarray, single: bool, return_std: bool):
    """Mean and standard error over draws (M, repeats), as `score` returns them. CheckpointError if one is not finite."""
    if not np.isfinite(draws).all():
        raise CheckpointError(NOT_FINITE)
    mean, error = mean_and_error(draws)
    if single:
        mean, error = float(mean[0]), float(error[0])
    return (mean, error) if return_std else mean


def mean_and_error(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the last axis and its standard error, NaN for a single draw."""
    repeats = draws.shape[-1]
    mean = draws.mean(axis=-1)
    return mean, draws.std(axis=-1, ddof=1) / np.sqrt(repeats) if repeats > 1 else np.full_like(mean, np.nan)


def _check_draws(repeats: int, seed: int, batch_size: int = 1) -> None:
    check_integer("repeats", repeats, 1)
    check_integer("batch_size", batch_size, 1)
    check_integer("seed", seed, 0)


def check_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer, at least {least}, got {value!r}")
