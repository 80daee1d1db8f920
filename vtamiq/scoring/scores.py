"""Score image pairs with a model: one reference against one or many distorted images, or pair by pair."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vtamiq.caps import CAPS, PatchSample, caps_for, cut_patches, pyramid
from vtamiq.images.reading import (
    WHITE,
    Background,
    ImageError,
    ImageSource,
    check_background,
    check_same_size,
    composite,
    describe,
    is_sequence,
    read_samples,
)  # fmt: skip
from vtamiq.model.checkpoints import CheckpointError
from vtamiq.model.inference import NOT_FINITE, check_model, half_precision
from vtamiq.model.modes import evaluation, uncompiled
from vtamiq.model.network import VTAMIQ

COMPUTES = 2  # raise when the same settings give other scores: what was scored before is then not resumed or read again
Sources: TypeAlias = "ImageSource | Sequence[ImageSource]"


@uncompiled
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
    background: Background = WHITE,
) -> float | np.ndarray | tuple[float, float] | tuple[np.ndarray, np.ndarray]:
    """Perceived distortion of `distorted` against `reference`: lower is better.

    The same pair, model and seed have the same score here, in `score_table` and in `predict`, whatever else is scored with
    them (in larger batches, up to rounding) and whatever torch is set to. A perfect copy scores exactly 0 if the model has
    `zero_anchor` and `caps` is aligned; a nearly perfect one may score slightly below 0. Threads may share a model.

    >>> score(reference, distorted) > 0  # paths, PIL images, arrays or tensors; by the model that ships with the package
    True
    >>> q = score(reference, distorted, model=model)
    >>> score(reference, [reference, distorted], model=model).tolist() == [0.0, q]
    True
    >>> mean, error = score(reference, distorted, model=model, repeats=8, return_std=True)

    Args:
        reference: anything `read_image` takes; or a list of references, one for each distorted image.
        distorted: one image, or several of their references' sizes: a list or column of a table, an array (M, H, W, C) or
            a tensor (M, C, H, W).
        model: a trained VTAMIQ; None takes `vtamiq-tiny`, which ships with the package. Used in evaluation mode on the
            device where it is; its mode is restored. What `torch.compile` made scores uncompiled.
        repeats: draws of patches that are averaged.
        caps: patch sampling; None takes `CAPS()` with what the model prescribes.
        return_std: also return the standard error of the mean over the draws (NaN for one draw).
        shared_positions: compare all distorted images of one reference at the same places: a `ReferenceEmbedding` with all
            of them as guides. Scores then depend on which images are scored together, and all are held in memory.
        batch_size: patch samples that go through the network at once; more than 1 pays on a GPU.
        precision: "float32", or "float16" or "bfloat16" for autocast.
        background: 8-bit RGB colour behind transparent pixels, or "checker". If the transparency of the two images
            differs, the score is the mean of those over the background and over its opposite, since over one alone a white
            logo on white equals nothing.

    Returns:
        A float for one distorted image, an array (M,) for several; with `return_std` a pair of these.

    Raises:
        ImageError: an image cannot be read, is smaller than a patch, or differs in size from its reference.
        CheckpointError: the scores are not finite, or no model is given and the one that ships is missing.
        ValueError: an argument is out of range, an empty list, or lists of different lengths.
        TypeError: `model` is something else.
    """
    model, background = check_model(model), check_background(background)
    for name, value, least in (("repeats", repeats, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        check_integer(name, value, least)
    references, versions, single = _sources(reference, distorted)
    if shared_positions:
        if is_sequence(reference):
            raise ValueError("shared_positions is for one reference, not for a list of references")
        settings = {"repeats": repeats, "seed": seed, "caps": caps, "precision": precision, "background": background}
        guides = [read_samples(version) for version in versions]  # read once: they guide the places and are scored
        embedding = ReferenceEmbedding(reference, model=model, guides=guides, **settings)
        return embedding.score(guides[0] if single else guides, return_std=return_std, batch_size=batch_size)
    views: list[int] = []  # of each pair
    samples = _samples(references, versions, background, views, caps_for(model, caps), repeats, seed)
    scores = [forward(model, stack(chunk), batch_size, precision) for chunk in _chunks(samples, batch_size)]
    return _summary(draws_of(np.concatenate(scores), views, repeats), single, return_std)


def _samples(
    references: list, versions: list, background: Background, views: list[int], caps: CAPS, repeats: int, seed: int
) -> Iterator[PatchSample]:
    """Samples of each pair, view and draw, pair by pair; `views` is filled. A reference shared by all is read once."""
    for k, source in enumerate(versions):
        if k < len(references):
            name, reference = references[k], read_samples(references[k])
        pair = pair_views(name, reference, source, read_samples(source), background)
        views.append(len(pair))
        for images in pair:
            yield from pair_samples(images, caps, repeats, seed, source)


class ReferenceEmbedding:
    """One reference, embedded once, to be compared with any number of distorted images at the same places.

    The places are drawn once: where `guides`, images that stand for those to come, differ from the reference on average;
    without guides from the centre bias and the uniform map alone. With the one image itself as the guide a score is that of
    `score`. Differences between scores at the same places are less noisy: for a search for the best of many encodings.

    >>> embedding = ReferenceEmbedding(reference, model=model, guides=[distorted])
    >>> abs(embedding.score(distorted) - score(reference, distorted, model=model)) < 1e-5
    True

    Args:
        reference: anything `read_image` takes.
        model, repeats, seed, caps, precision, background: as for `score`. Later changes of the model's weights need a new
            embedding.
        guides: images of the reference's size.

    Raises:
        ImageError, CheckpointError, ValueError, TypeError: as for `score`; ValueError also if `caps.aligned` is off.
    """

    @uncompiled
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
        background: Background = WHITE,
    ):
        self.model, self.precision, self.background = check_model(model), precision, check_background(background)
        check_integer("repeats", repeats, 1)
        check_integer("seed", seed, 0)
        caps = caps_for(self.model, caps)
        if not caps.aligned:
            raise ValueError("ReferenceEmbedding compares images at the same places, but caps.aligned is off")
        images = [read_samples(source) for source in (reference, *guides)]
        self.name, self.reference, self.repeats = describe(reference), images[0], repeats
        for guide, image in zip(guides, images[1:], strict=True):
            check_same_size(self.name, images[0], guide, image)
        transparent = any((_alpha(image) < 255).any() for image in images)  # else its views are one
        self._samples = []  # of the reference: views, then draws
        for opposite in (False, True)[: 1 + transparent]:
            seen = [composite(image, self.background, opposite) for image in images]
            samples = pair_samples(seen, caps, repeats, seed, reference)
            self._samples += [replace(sample, patches=sample.patches[:1].clone()) for sample in samples]
        with _inference(self.model, precision):
            self._embeddings = torch.cat([self._encode([sample]) for sample in self._samples])  # (samples, 1, D)

    @uncompiled
    def score(
        self, distorted: Sources, *, return_std: bool = False, batch_size: int = 1
    ) -> float | np.ndarray | tuple[float, float] | tuple[np.ndarray, np.ndarray]:
        """Scores of one or several distorted images; arguments, results and errors as those of `vtamiq.score`."""
        check_integer("batch_size", batch_size, 1)
        _, versions, single = _sources(self.reference, distorted)
        views: list[int] = []
        with _inference(self.model, self.precision):
            scores = [self._compare(chunk) for chunk in _chunks(self._cut(versions, views), batch_size)]
        return _summary(draws_of(np.concatenate(scores), views, self.repeats), single, return_std)

    def _cut(self, versions: Iterable[ImageSource], views: list[int]) -> Iterator[tuple[int, PatchSample]]:
        """Samples of each distorted image, each with the number of the reference's at the same places."""
        for source in versions:
            pair = pair_views(self.name, self.reference, source, read_samples(source), self.background)
            views.append(len(pair))
            for view, (_, image) in enumerate(pair):
                levels = pyramid(image, 1 + int(self._samples[0].scale.max()))
                for draw in range(self.repeats):
                    number = (view * self.repeats + draw) % len(self._samples)
                    sample = self._samples[number]
                    places = sample.position.numpy(), sample.scale.numpy()
                    patches = cut_patches(levels, *places, sample.patches.shape[-1])
                    yield number, replace(sample, patches=torch.from_numpy(patches)[None])

    def _compare(self, chunk: list[tuple[int, PatchSample]]) -> np.ndarray:
        numbers, samples = [number for number, _ in chunk], [sample for _, sample in chunk]
        reference, distorted = self._embeddings[numbers], self._encode(samples)  # (b, 1, D) each
        # Rounding may depend on the place in a batch: an exact copy has the reference's embedding, so it scores exactly 0.
        copies = [torch.equal(sample.patches, self._samples[number].patches) for number, sample in chunk]
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


def load(dataset: Dataset, batch_size: int, workers: int, collate: Callable) -> Iterator[Any]:
    """Batches of a dataset in order, whatever the caller's default device; his random numbers are left alone."""
    options = {"num_workers": workers, "collate_fn": collate, "generator": torch.Generator("cpu")}
    with torch.device("cpu"):
        return iter(DataLoader(dataset, batch_size=max(1, batch_size), **options))


def pair_views(
    name: Any, reference: np.ndarray, source: Any, distorted: np.ndarray, background: Background
) -> list[list[np.ndarray]]:
    """RGB images of a pair of `read_samples` over the background; if their alpha differs, over its opposite as well.

    Raises:
        ImageError: they differ in size; `name` and `source` say which they are.
    """
    check_same_size(name, reference, source, distorted)
    pair = reference, distorted
    differs = (_alpha(reference) != _alpha(distorted)).any()
    return [[composite(image, background, opposite) for image in pair] for opposite in (False, True)[: 1 + differs]]


def _alpha(samples: np.ndarray) -> np.ndarray:
    """(H, W, 1), or (1, 1, 1) if all is opaque."""
    return samples[:, :, 3:] if samples.shape[2] == 4 else np.full((1, 1, 1), 255, np.uint8)


def draws_of(scores: np.ndarray, views: Sequence[int], repeats: int) -> np.ndarray:
    """Draws (M, repeats) of M pairs from the scores of their 1 or 2 views, one after the other: the views' mean."""
    rows, starts = scores.reshape(-1, repeats), np.cumsum([0, *views])[:-1]
    return np.add.reduceat(rows, starts) / np.reshape(views, (-1, 1)) if len(views) else rows


def _sources(reference: Any, distorted: Any) -> tuple[list[ImageSource], list[ImageSource], bool]:
    """References (one for all, or one each), distorted images, and whether one score is asked for."""
    single = not is_sequence(distorted)
    versions = [distorted] if single else list(distorted)
    if not versions:
        raise ValueError("there is no distorted image to score")
    references = list(reference) if is_sequence(reference) else [reference]
    if is_sequence(reference) and (single or len(references) != len(versions)):
        raise ValueError(f"{len(references)} references cannot be paired with {len(versions)} distorted images")
    return references, versions, single


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


def check_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer, at least {least}, got {value!r}")
