"""What the explorers show, as plain functions: where patches fall, where a model looks, what it scores.

`sampling_view`, `attention_view` and `score_view` compute one state of an explorer of `vtamiq.lab.explore`. Pictures are
put together with NumPy, which is much quicker than drawing a figure.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import count
from typing import Any

import numpy as np
from matplotlib.colors import Colormap, to_rgb
from PIL import Image

from vtamiq.attention.maps import (
    SIGNED,
    Capture,
    Maps,
    average_maps,
    capture,
    check_method,
    even_shares,
    patch_weights,
    rollout,
    token_attention,
)
from vtamiq.caps import CAPS, MAX_SCALES, PatchSample, caps_for, difference_map
from vtamiq.images.reading import ImageSource, read_images
from vtamiq.model.inference import DEFAULT_LABELS, check_model
from vtamiq.model.network import VTAMIQ
from vtamiq.plots.attention import map_colours, map_limits
from vtamiq.plots.sampling import MAX_OUTLINES, patch_coverage, patches_of_image, see_through_patches
from vtamiq.plots.style import check_images, common_style, cycle_colours, tile
from vtamiq.scoring.scores import score

SHOWN_SIDE = 720  # pixels, the longest side of a picture on the screen
MAP_STRENGTH = 0.65  # of the colours of a map over an image; the rest is the image in grey
GAP = 12  # pixels between the panels of a picture


@dataclass(frozen=True)
class Bar:
    """What the colours of a map mean: values of the first and the last colour, and their unit."""

    low: float  # 0, or -high for a map with values of both signs
    high: float
    label: str

    @property
    def colours(self) -> Colormap:
        return map_colours(signed=self.low < 0)


@dataclass(frozen=True)
class Panel:
    """A picture (H, W, 3) uint8 with its title and, if it is a map, its colour bar."""

    title: str
    image: np.ndarray
    bar: Bar | None = None


@dataclass(frozen=True)
class View:
    """One state of an explorer: four pictures of one size, and numbers that `summary` says in a sentence."""

    panels: tuple[Panel, ...]
    numbers: dict[str, float]
    summary: str

    def picture(self) -> np.ndarray:
        """The panels two by two, (H', W', 3) uint8."""
        images = np.stack([shrunk(panel.image, SHOWN_SIDE) for panel in self.panels])
        return tile(images.reshape(2, 2, *images.shape[1:]), GAP)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        picture = encode(self.picture(), "JPEG", quality=88)
        return {"text/plain": self.summary, "image/jpeg": base64.b64encode(picture).decode()}


# ------------------------------------------------------------------------------------------------------------------ views


def sampling_view(images: Sequence[np.ndarray], caps: CAPS, seed: int = 0) -> View:
    """Show reference, distorted image, where patches are likely, and the patches that one draw takes.

    Numbers: `patches`; `pixels_seen`, the share of pixels that some patch sees; `difference_seen`, the mean difference
    between the images where the patches look, in multiples of its mean over all pixels (NaN for equal images).

    Args:
        images: reference and distorted, (H, W, 3) uint8 of one size; further ones are not shown.
        caps: how patches are drawn.
        seed: of the draw.

    Raises:
        ImageError: images are not uint8 RGB, differ in size, or are smaller than a patch.
    """
    pair = check_images(images, least=2)[:2]
    sample = caps(pair, seed)
    density = caps.probability(pair) * pair[0][..., 0].size
    coverage, difference = patch_coverage(pair[1], sample), difference_map(*pair, caps.difference_metric)
    seen = float((coverage * difference).sum() / coverage.sum() / difference.mean()) if difference.any() else np.nan
    numbers = {"patches": caps.num_patches, "pixels_seen": float((coverage > 0).mean()), "difference_seen": seen}
    scales, counts = np.unique(sample.scale.numpy().ravel()[: caps.num_patches], return_counts=True)
    sizes = [f"{n:,} of {caps.patch_size * 2**s} px" for s, n in zip(scales.tolist(), counts.tolist(), strict=True)]
    summary = f"{caps.num_patches:,} patches ({', '.join(sizes)}) see {numbers['pixels_seen']:.0%} of the pixels, and "
    summary += "the images are the same" if np.isnan(seen) else f"{seen:.1f} × the mean difference"
    bar = Bar(0.0, float(density.max()), "1 = even")
    panels = (
        *_originals(pair),
        Panel("where patches are likely", _coloured(density, bar), bar),
        Panel("the patches of this draw", _framed_patches(pair[1], sample, 1)),
    )
    return View(panels, numbers, summary)


def attention_view(
    model: VTAMIQ | None,
    reference: ImageSource,
    distorted: ImageSource,
    *,
    method: str = "rollout",
    block: int | None = None,
    head: int | None = None,
    draws: int = 4,
    caps: CAPS | None = None,
    seed: int = 0,
    trained: str = "",
) -> View:
    """Show reference, distorted image, and a map of each laid over it in common colours; with the score.

    Numbers: `q` and its `standard_error` over the draws (NaN for one), `stability` of the less stable map, and
    `pixels_seen` by some patch of some draw. Map and score are those of `vtamiq.attention_maps` and `vtamiq.score`.

    Args:
        model: a trained VTAMIQ; None takes the one that ships with the package, and says so.
        reference, distorted: anything `read_image` takes, of one size.
        method, block, head, draws, caps, seed: as in `vtamiq.attention_maps`; `block` and `head` count from 0.
        trained: what the model was trained on, for the sentence; say so if labels were synthetic.

    Raises:
        ValueError, ImageError: as `vtamiq.attention_maps`.
        CheckpointError, TypeError: as `vtamiq.score`.
    """
    study = Study(model, read_images([reference, distorted]), caps, seed, trained)
    return study.attention_view(method, block, head, draws)


def score_view(
    reference: ImageSource,
    distorted: ImageSource,
    *,
    model: VTAMIQ | None = None,
    repeats: int = 4,
    method: str = "gradient",
    caps: CAPS | None = None,
    seed: int = 0,
    trained: str = "",
) -> View:
    """Show reference, distorted image, their difference, and a map over the distorted image; with the score.

    Numbers: `q` and its `standard_error` over the draws (NaN for one), as `vtamiq.score` has them, and `difference`, the
    mean over the pixels of the length of the colour difference (colours in [0, 1]).

    Args:
        reference, distorted, model, caps, seed, trained: as in `attention_view`.
        repeats: draws of patches that score and map are means of.
        method: of the map, see `vtamiq.attention_maps`.

    Raises:
        ImageError, CheckpointError, ValueError, TypeError: as `vtamiq.score` and `vtamiq.attention_maps`.
    """
    return Study(model, read_images([reference, distorted]), caps, seed, trained).score_view(method, repeats)


class Study:
    """Views of one pair by one model, whose weights must not change: what it says is computed once.

    Arguments as in `attention_view`.
    """

    def __init__(self, model: VTAMIQ | None, pair: np.ndarray, caps: CAPS | None, seed: int, trained: str):
        self.model, self.pair, self.seed = check_model(model), pair, seed
        self.caps, self.trained = caps_for(self.model, caps), trained or (DEFAULT_LABELS if model is None else "")
        self._score = cache(partial(score, *pair, model=self.model, caps=self.caps, seed=seed, return_std=True))
        self._known = {}  # method → what `_weigh` says of each draw

    def attention_view(self, method: str, block: int | None, head: int | None, draws: int) -> View:
        averaged = self.maps(method, block, head, draws)
        numbers, summary = self.score(draws)
        numbers |= {"stability": float(averaged.stability.min()), "pixels_seen": float(averaged.coverage.min())}
        if draws > 1:
            summary += f"; stability of the map {numbers['stability']:.2f}"
        title, bar = method, _bar(averaged.maps, method)
        if method == "attention":
            blocks = len(self.model.encoder.blocks)
            title = f"attention in block {(blocks - 1 if block is None else block % blocks) + 1}"
            title += ", all heads" if head is None else f", head {head + 1}"
        panels = (
            *_originals(self.pair),
            Panel(f"{title} (reference)", _overlay(self.pair[0], averaged.maps[0], bar), bar),
            Panel(f"{title} (distorted)", _overlay(self.pair[1], averaged.maps[1], bar), bar),
        )
        return View(panels, numbers, summary)

    def score_view(self, method: str, draws: int) -> View:
        numbers, summary = self.score(draws)
        values, difference = self.maps(method, None, None, draws).maps[1], difference_map(*self.pair, "absolute")
        numbers["difference"] = float(difference.mean())
        ends = Bar(*map(float, map_limits([difference], signed=False)), "black to white = √3")
        bar = _bar(values, method)
        panels = (
            *_originals(self.pair),
            Panel("pixel difference", _coloured(difference, ends), ends),
            Panel(f"{method} (distorted)", _overlay(self.pair[1], values, bar), bar),
        )
        return View(panels, numbers, summary)

    def score(self, draws: int) -> tuple[dict[str, float], str]:
        """Score and its standard error, and a sentence that says where they come from."""
        q, error = self._score(repeats=draws)
        spread, source = (f" ± {error:.3f}", f"standard error of {draws} draws") if draws > 1 else ("", "one draw")
        trained = f"; {self.trained}" if self.trained else ""
        summary = f"q = {q:z.3f}{spread} ({source} of {self.caps.num_patches:,} patches{trained})"
        return {"q": q, "standard_error": error}, summary

    def maps(self, method: str, block: int | None, head: int | None, draws: int) -> Maps:
        """Maps of `vtamiq.attention_maps`."""
        check_method(method, block=block, head=head)
        known, numbers = self._known.setdefault("rollout" if method == "attention" else method, []), count()

        def weigh(sample: PatchSample) -> np.ndarray:
            if (number := next(numbers)) == len(known):
                known.append(_weigh(self.model, sample, method))
            captured, weights = known[number]
            if method == "attention":
                weights = even_shares(token_attention(captured, block=-1 if block is None else block, head=head))
            return weights

        return average_maps(weigh, self.pair, self.caps, draws=draws, seed=self.seed)


def _weigh(model: VTAMIQ, sample: PatchSample, method: str) -> tuple[Capture | None, np.ndarray]:
    """Weights (2, N); with those of rollout also the class token's attention in every block and head, of the same pass."""
    if method not in ("attention", "rollout"):
        return None, patch_weights(model, sample, method)
    captured = capture(model, sample)
    rows = tuple(maps[:, :, :1].clone() for maps in captured.attention)  # whole maps would take N times as much
    return replace(captured, attention=rows), even_shares(rollout(captured.attention)[:, 0, captured.prefix :])


# --------------------------------------------------------------------------------------------------------------- pictures


def _originals(pair: Sequence[np.ndarray]) -> tuple[Panel, Panel]:
    return Panel("reference", pair[0]), Panel("distorted", pair[1])


def _bar(values: np.ndarray, method: str) -> Bar:
    signed = method in SIGNED
    return Bar(*map(float, map_limits([values], signed)), "raises q" if signed else "1 = even share")


def _coloured(values: np.ndarray, bar: Bar) -> np.ndarray:
    """A map (H, W) in the colours of its bar, (H, W, 3) uint8."""
    places = np.ma.masked_invalid((values - bar.low) / ((bar.high - bar.low) or 1.0))
    return bar.colours(places, bytes=True)[..., :3]


def _overlay(image: np.ndarray, values: np.ndarray, bar: Bar) -> np.ndarray:
    """A map over the image in grey, (H, W, 3) uint8."""
    grey = (image @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    return np.rint(MAP_STRENGTH * _coloured(values, bar) + (1 - MAP_STRENGTH) * grey).astype(np.uint8)


def _framed_patches(image: np.ndarray, sample: PatchSample, index: int) -> np.ndarray:
    """The image through its patches, framed if they are few; of several scales the finest has no frames."""
    picture = see_through_patches(image, sample, index=index)
    _, position, scales = patches_of_image(sample, index)
    present = np.unique(scales).tolist()
    framed = dict(zip(present[1:], _frame_colours()[1:], strict=False)) or {present[0]: (64, 64, 64)}
    for scale, colour in framed.items():  # finest first, coarser ones on top
        corners = position[scales == scale] * 2**scale
        if len(corners) > MAX_OUTLINES:
            continue
        rows, columns = corners.T[..., None] + np.arange(sample.patches.shape[-1] * 2**scale)  # (n, side) each
        for edge in (0, -1) if len(present) == 1 else (0, 1, -2, -1):
            picture[rows[:, edge, None], columns] = colour
            picture[rows, columns[:, edge, None]] = colour
    return picture


@cache
def _frame_colours() -> list[tuple[int, ...]]:
    """One per scale, as in `patch_sampling_multiscale`."""
    with common_style():
        return [tuple(round(255 * part) for part in to_rgb(colour)) for colour in cycle_colours(MAX_SCALES)]


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """The image, averaged down where a side is longer than that many pixels."""
    small = Image.fromarray(image)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(small)


def encode(image: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind, **options)
    return buffer.getvalue()
