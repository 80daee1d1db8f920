"""Score image pairs with a model: one reference against one or many distorted versions, or pair by pair.

A score is made from a few hundred patches, so the network costs the same for every size of image; reading the images and
finding the places to look at grow with the number of pixels, the latter by less (`CAPS.map_pixels`). One pair is held
at a
time. Beside the images and the model, finding the places takes less than 5 MB up to 24 megapixels (by SSIM 25), and
beyond
grows with the width of an image alone; with several scales, whose images are pooled as a whole, 13 bytes a pixel.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from vtamiq.caps import CAPS, PatchSample, caps_for, extract_patches, pool
from vtamiq.images.reading import ImageError, ImageSource, check_same_size, describe, read_image, read_images
from vtamiq.model.checkpoints import CheckpointError
from vtamiq.model.inference import NOT_FINITE, check_model, half_precision
from vtamiq.model.modes import evaluation
from vtamiq.model.network import VTAMIQ

__all__ = ["ReferenceEmbedding", "forward", "score"]


def score(
    reference: "ImageSource | Sequence[ImageSource]",
    distorted: "ImageSource | Sequence[ImageSource]",
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

    Deterministic: the same images, model and seed give the same score, whatever else is scored in the same call (with
    larger batches, up to rounding). A perfect copy scores exactly 0 if the model has `zero_anchor` and `caps` is aligned;
    nothing keeps a model from giving a nearly perfect one a score slightly below 0. May be called from several threads at
    once.

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
        shared_positions: look at all versions of one reference at the same places, drawn from the mean of their
            differences, so that the reference is embedded once. Scores then depend on which versions are scored together,
            and all versions are held in memory, about 9 bytes a pixel each. See `ReferenceEmbedding`.
        batch_size: patch samples that go through the network at once; more than 1 pays on a GPU, and for
            many versions of one reference (about 4) on a CPU too.
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
        if len(references) > 1 or _is_sequence(reference):
            raise ValueError(
                "shared_positions is for one reference with several versions, not for a list of references"
            )
        images = list(read_images([*references, *versions]))  # read once: they guide the places and are scored
        settings = {"model": model, "repeats": repeats, "seed": seed, "caps": caps, "precision": precision}
        embedding = ReferenceEmbedding(images[0], guides=images[1:], **settings)
        draws = embedding.draws(images[1:], batch_size)
    else:
        caps = caps_for(model, caps)
        samples = _samples(references, versions, caps, repeats, seed)
        draws = forward(model, samples, batch_size, precision).reshape(len(versions), repeats)
    return _summary(draws, single, return_std)


class ReferenceEmbedding:
    """One reference, embedded once, to be compared with any number of its versions at the same places.

    `score` looks at each pair where its two images differ, so each pair has places of its own and the reference must be
    embedded anew for each. Here the places are drawn once: where `guides`, versions that stand for those to come, differ
    from the reference on average; without guides from the centre bias and the uniform map alone. A version's score then
    does not depend on the others. It is another estimate than that of `score`; with the one version itself as the
    guide it
    is the same. A search for the best of many encodings wants this: all are compared at the same
    places, and differences between them are less noisy. May be used from several threads at once.

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
        self.model, self.repeats, self.precision = check_model(model), repeats, precision
        _check_draws(repeats, seed)
        caps = caps_for(self.model, caps)
        if not caps.aligned:
            raise ValueError("ReferenceEmbedding compares images at the same places, but caps.aligned is off")
        images = list(read_images([reference, *guides]))
        self.name, self.reference = describe(reference), images[0]
        cut = (_cut(caps, images, reference, seed, draw) for draw in range(repeats))
        self._samples = [replace(sample, patches=sample.patches[:1].clone()) for sample in cut]  # guides are done with
        first = (sample.patches[0] for sample in self._samples)
        self._embeddings = torch.cat([self._encode([draw], [patches]) for draw, patches in enumerate(first)])

    def score(
        self, distorted: "ImageSource | Sequence[ImageSource]", *, return_std: bool = False, batch_size: int = 1
    ) -> float | np.ndarray | tuple[float, float] | tuple[np.ndarray, np.ndarray]:
        """Scores of one or several versions; arguments, results and errors as those of `vtamiq.score`."""
        _check_draws(self.repeats, 0, batch_size)
        _, versions, single = _sources(self.reference, distorted)
        return _summary(self.draws(versions, batch_size), single, return_std)

    def draws(self, versions: Iterable[ImageSource], batch_size: int = 1) -> np.ndarray:
        """Scores (M, repeats) of each version and draw."""
        scores = [self._compare(chunk) for chunk in _chunks(self._patches(versions), batch_size)]
        return np.concatenate(scores).reshape(-1, self.repeats)

    def _patches(self, versions: Iterable[ImageSource]) -> Iterator[tuple[int, torch.Tensor]]:
        """(draw, patches (N, 3, P, P)) of each version and draw; one version is held at a time."""
        for version in versions:
            image = read_image(version)
            check_same_size(self.name, self.reference, version, image)
            for draw, sample in enumerate(self._samples):
                yield draw, patches_at(image, sample)

    def _compare(self, chunk: list[tuple[int, torch.Tensor]]) -> np.ndarray:
        draws, patches = zip(*chunk, strict=True)
        embeddings = self._encode(draws, patches)  # (b, 1, D)
        with torch.inference_mode(), evaluation(self.model), half_precision(embeddings.device, self.precision):
            q = self.model.compare(self._embeddings[list(draws)], embeddings)[:, 0].double().cpu().numpy()
        if not self.model.config.zero_anchor:
            return q
        copies = [torch.equal(self._samples[draw].patches[0], cut) for draw, cut in chunk]
        return np.where(copies, 0.0, q)  # as in VTAMIQ.forward: an exact copy is exactly 0

    def _encode(self, draws: Iterable[int], patches: Sequence[torch.Tensor]) -> torch.Tensor:
        device = next(self.model.parameters()).device
        samples = [self._samples[draw] for draw in draws]
        inputs = (
            torch.stack(patches)[:, None],
            *(torch.stack([getattr(s, n) for s in samples]) for n in ("uv", "scale")),
        )
        with torch.inference_mode(), evaluation(self.model), half_precision(device, self.precision):
            return self.model.encode(*(tensor.to(device) for tensor in inputs))


def forward(
    model: VTAMIQ,
    samples: "Iterable[PatchSample] | Sequence[torch.Tensor]",
    batch_size: int = 1,
    precision: str = "float32",
) -> np.ndarray:
    """Scores (n,) float64 of samples of two images each, `batch_size` at a time; not checked for NaN.

    samples: one by one, or stacked: `patches` (n, 2, N, 3, P, P), `uv` and `scale`, or nothing.
    """
    device = next(model.parameters()).device
    scores = []
    with torch.inference_mode(), evaluation(model), half_precision(device, precision):
        for inputs in _batches(samples, batch_size):
            scores.append(model(*(tensor.to(device) for tensor in inputs))[:, 0].float().cpu())
    return torch.cat(scores).double().numpy() if scores else np.empty(0)


def _batches(samples: Any, batch_size: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """`patches, uv, scale` of `batch_size` samples at a time."""
    if isinstance(samples, list) and samples and isinstance(samples[0], torch.Tensor):
        yield from zip(*(tensor.split(batch_size) for tensor in samples), strict=True)
        return
    for chunk in _chunks(samples, batch_size):
        yield tuple(torch.stack([getattr(sample, name) for sample in chunk]) for name in ("patches", "uv", "scale"))


def patches_at(image: np.ndarray, sample: PatchSample) -> torch.Tensor:
    """Patches (N, 3, P, P) uint8 of another image (H, W, 3) at the places of an aligned sample, as `CAPS` cuts them."""
    patches = torch.empty_like(sample.patches[0])
    level = image
    for scale in range(int(sample.scale.max()) + 1):
        if scale > 0:
            level = pool(level)
        here = sample.scale == scale
        cut = extract_patches(level, sample.position[here].numpy(), patches.shape[-1])
        patches[here] = torch.from_numpy(np.rint(cut).astype(np.uint8))
    return patches


def sample_pair(
    reference: np.ndarray, distorted: np.ndarray, caps: CAPS, repeats: int, seed: int, source: Any
) -> Iterator[PatchSample]:
    """The `repeats` samples that the score of one pair of images (H, W, 3) is made from; `source` names it in errors."""
    for draw in range(repeats):
        yield _cut(caps, [reference, distorted], source, seed, draw)


def _cut(caps: CAPS, images: list[np.ndarray], source: Any, seed: int, draw: int) -> PatchSample:
    try:
        return caps(images, np.random.default_rng([seed, draw]))
    except ImageError as error:  # CAPS does not know where its images come from
        raise ImageError(f"{describe(source)}: {error}") from error


def _samples(
    references: list[ImageSource], versions: list[ImageSource], caps: CAPS, repeats: int, seed: int
) -> Iterator[PatchSample]:
    """Samples of each pair and draw, pair by pair; a reference shared by all is read once."""
    shared = read_image(references[0]) if len(references) == 1 else None
    for k, source in enumerate(versions):
        name = references[0] if shared is not None else references[k]
        reference = read_image(name) if shared is None else shared
        image = read_image(source)
        check_same_size(name, reference, source, image)
        yield from sample_pair(reference, image, caps, repeats, seed, source)


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
    for name, value, least in (("repeats", repeats, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} must be an integer, at least {least}, got {value!r}")
