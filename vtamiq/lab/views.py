"""What the explorers show, as plain functions: where patches fall, where a model looks, what it scores.

`sampling_view`, `attention_view` and `score_view` compute all that is shown in one state of `vtamiq.lab.explore` and
return
it as a `View`, which shows itself as a picture where there are no widgets. Pictures are put together with NumPy, which
is much quicker than drawing a figure.
"""

import hashlib
import io
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import get_data_path
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw, ImageFont

from vtamiq.attention.maps import (
    METHODS,
    SIGNED,
    Capture,
    Maps,
    average_maps,
    capture,
    even_shares,
    gradient_rollout,
    occlusion,
    patch_difference,
    repair,
    rollout,
    token_attention,
)
from vtamiq.caps import CAPS, MAX_SCALES, PatchSample, caps_for, difference_map
from vtamiq.images.reading import ImageSource, read_images
from vtamiq.model.inference import DEFAULT_LABELS, check_model
from vtamiq.model.network import VTAMIQ
from vtamiq.plots.attention import DIVERGING, UNSIGNED, map_colours, map_limits
from vtamiq.plots.sampling import MAX_OUTLINES, patch_coverage, patches_of_image, see_through_patches
from vtamiq.plots.style import check_images, common_style, cycle_colours
from vtamiq.scoring.scores import score
from vtamiq.utils.configs import did_you_mean

__all__ = ["Bar", "Panel", "View", "attention_view", "sampling_view", "score_view"]

SHOWN_SIDE = 720  # pixels, the longest side of a picture on the screen
MAP_STRENGTH = 0.65  # of the colours of a map over an image; the rest is the image in grey


# ------------------------------------------------------------------------------------------------------------------ views


@dataclass(frozen=True)
class Bar:
    """What the colours of a map mean: a colour map of Matplotlib, its first and last value, and their unit."""

    colours: str
    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Panel:
    """A picture (H, W, 3) uint8 with its title, and the meaning of its colours if it is a map."""

    title: str
    image: np.ndarray
    bar: Bar | None = None


@dataclass(frozen=True)
class View:
    """All that an explorer shows in one state."""

    panels: tuple[Panel, ...]  # pictures of one size
    numbers: dict[str, float]
    summary: str  # the numbers in a sentence

    def picture(self, columns: int = 2) -> np.ndarray:
        """Panels with their titles, and the sentence below, as one picture (H', W', 3) uint8."""
        factor = -(-320 // self.panels[0].image.shape[1])  # room for the titles
        images = [Image.fromarray(shown(panel.image.repeat(factor, 0).repeat(factor, 1))) for panel in self.panels]
        (width, height), gap, line = images[0].size, 12, 22
        rows = -(-len(images) // columns)
        sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + line + gap) + line + gap), "white")
        draw, font = ImageDraw.Draw(sheet), _font(12)
        for number, (panel, image) in enumerate(zip(self.panels, images, strict=True)):
            left, top = gap + number % columns * (width + gap), gap // 2 + number // columns * (height + line + gap)
            draw.text((left, top + 2), _fitting(panel.title + _bar_text(panel.bar), font, width), "black", font)
            sheet.paste(image, (left, top + line))
        draw.text((gap, sheet.height - line), _fitting(self.summary, font, sheet.width - 2 * gap), "black", font)
        return np.asarray(sheet)

    def _repr_png_(self) -> bytes:
        return encoded(self.picture(), "PNG")


def sampling_view(images: Sequence[np.ndarray], caps: CAPS, seed: int = 0) -> View:
    """Reference, distorted image, where patches are likely, and the patches that one draw takes.

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
    sizes, counts = np.unique(sample.scale.numpy().ravel()[: caps.num_patches], return_counts=True)
    sizes = [f"{n:,} of {caps.patch_size * 2**s} px" for s, n in zip(sizes.tolist(), counts.tolist(), strict=True)]
    numbers = {"patches": caps.num_patches, "pixels_seen": float((coverage > 0).mean()), "difference_seen": seen}
    summary = f"{caps.num_patches:,} patches ({', '.join(sizes)}) see {numbers['pixels_seen']:.0%} of the pixels, " + (
        f"and {seen:.1f} × the mean difference" if np.isfinite(seen) else "and the images are the same"
    )
    limits = (0.0, float(density.max()))
    panels = (
        *_pictures(*pair),
        Panel("where patches are likely", _coloured(density, limits), Bar(UNSIGNED, *limits, "1 = even")),
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
    """Reference, distorted image, and a map of each laid over it in common colours; with the score.

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
    pair = read_images([reference, distorted])
    known, trained = Known(check_model(model)), said_of(model, trained)
    return view_attention(known, pair, method, block, head, draws, caps, seed, trained)


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
    """Reference, distorted image, their difference, and a map of the model over the distorted image; with the score.

    Numbers: `q` and its `standard_error` over the draws (NaN for one), as `vtamiq.score` has them, and `difference`, the
    mean over the pixels of the length of the colour difference (colours in [0, 1]).

    Args:
        reference, distorted: anything `read_image` takes, of one size.
        model: a trained VTAMIQ; None takes the one that ships with the package, and says so.
        repeats: draws of patches that score and map are means of.
        method: of the map, see `vtamiq.attention_maps`.
        caps, seed: as for `vtamiq.score`.
        trained: what the model was trained on, for the sentence; say so if labels were synthetic.

    Raises:
        ImageError, CheckpointError, ValueError, TypeError: as `vtamiq.score` and `vtamiq.attention_maps`.
    """
    pair = read_images([reference, distorted])
    known, trained = Known(check_model(model)), said_of(model, trained)
    return view_score(known, pair, method, repeats, caps, seed, trained)


def said_of(model: VTAMIQ | None, trained: str) -> str:
    """What is said beside every score: `trained`, or of the model that ships which it is and what it learnt from."""
    return trained or ("" if model is not None else DEFAULT_LABELS)


def view_attention(
    known: "Known",
    pair: np.ndarray,
    method: str,
    block: int | None,
    head: int | None,
    draws: int,
    caps: CAPS | None,
    seed: int,
    trained: str,
) -> View:
    averaged = known.maps(pair, method, block, head, draws, caps, seed)
    numbers = known.score(pair, draws, caps, seed)
    numbers |= {"stability": float(averaged.stability.min()), "pixels_seen": float(averaged.coverage.min())}
    limits, bar = _meaning(averaged.maps, method)
    what = method
    if method == "attention":
        blocks = len(known.model.encoder.blocks)
        what = f"attention in block {(blocks - 1 if block is None else block % blocks) + 1}"
        what += ", all heads" if head is None else f", head {head + 1}"
    summary = _scored(numbers, draws, known.caps(caps).num_patches, trained)
    if draws > 1:
        summary += f"; stability of the map {numbers['stability']:.2f}"
    panels = [
        Panel(f"{what} ({name})", _overlay(image, values, limits), bar)
        for name, image, values in zip(("reference", "distorted"), pair, averaged.maps, strict=True)
    ]
    return View((*_pictures(*pair), *panels), numbers, summary)


def view_score(
    known: "Known", pair: np.ndarray, method: str, repeats: int, caps: CAPS | None, seed: int, trained: str
) -> View:
    numbers = known.score(pair, repeats, caps, seed)
    values = known.maps(pair, method, None, None, repeats, caps, seed).maps[1]
    difference = difference_map(*pair, "absolute")
    numbers["difference"] = float(difference.mean())
    limits, bar = _meaning(values, method)
    ends = map_limits([difference], signed=False)
    panels = (
        *_pictures(*pair),
        Panel("pixel difference", _coloured(difference, ends), Bar(UNSIGNED, *map(float, ends), "black to white = √3")),
        Panel(f"{method} (distorted)", _overlay(pair[1], values, limits), bar),
    )
    return View(panels, numbers, _scored(numbers, repeats, known.caps(caps).num_patches, trained))


def _scored(numbers: Mapping[str, float], draws: int, patches: int, trained: str) -> str:
    """Score, spread, what they come from, in a sentence."""
    spread = f" ± {numbers['standard_error']:.3f}" if draws > 1 else ""
    source = (
        f"standard error of {draws} draws of {patches:,} patches" if draws > 1 else f"one draw of {patches:,} patches"
    )
    return f"q = {numbers['q']:z.3f}{spread} ({source}{f'; {trained}' if trained else ''})"


class Known:
    """What a model has said of images before, so that a move computes only what it changes; the newest answers are kept.

    Answers are found by the content of their patches or images. The model's weights must not change meanwhile.
    """

    def __init__(self, model: VTAMIQ, room: int = 256):
        self.model, self._kept = model, Kept(room)

    def caps(self, caps: CAPS | None) -> CAPS:
        return caps_for(self.model, caps)

    def score(self, pair: np.ndarray, draws: int, caps: CAPS | None, seed: int) -> dict[str, float]:
        def compute() -> dict[str, float]:
            options = {"model": self.model, "repeats": draws, "caps": caps, "seed": seed}
            return dict(zip(("q", "standard_error"), score(*pair, return_std=True, **options), strict=True))

        return dict(self._kept(("score", _digest(pair), draws, caps, seed), compute))

    def maps(
        self,
        pair: np.ndarray,
        method: str,
        block: int | None,
        head: int | None,
        draws: int,
        caps: CAPS | None,
        seed: int,
    ) -> Maps:
        """As `vtamiq.attention_maps` makes them, block and head counted from 0."""
        if method not in METHODS:
            raise ValueError(f"no method {method!r}{did_you_mean(method, METHODS)}; there are {', '.join(METHODS)}")
        if method != "attention" and (block, head) != (None, None):
            raise ValueError(f'block and head are for method="attention", {method!r} has no use for them')

        def weigh(sample: PatchSample) -> np.ndarray:
            if method == "attention":
                return even_shares(
                    token_attention(self._passed(sample)[0], block=-1 if block is None else block, head=head)
                )
            if method == "rollout":
                return self._passed(sample)[1]
            return self._kept((method, _sample_digest(sample)), lambda: _weights(self.model, sample, method))

        return average_maps(weigh, pair, self.caps(caps), draws=draws, seed=seed)

    def _passed(self, sample: PatchSample) -> tuple[Capture, np.ndarray]:
        """Of one pass: what the class token looks at in every block and head, and the rollout's weights."""

        def compute() -> tuple[Capture, np.ndarray]:
            captured = capture(self.model, sample)
            rows = tuple(maps[:, :, :1].clone() for maps in captured.attention)  # whole maps would take N times as much
            weights = even_shares(rollout(captured.attention)[:, 0, captured.prefix :])
            return replace(captured, attention=rows), weights

        return self._kept(("pass", _sample_digest(sample)), compute)


def _weights(model: VTAMIQ, sample: PatchSample, method: str) -> np.ndarray:
    """Weights (2, N) of the methods that need a computation of their own."""
    if method == "gradient":
        captured = capture(model, sample, gradient=True)
        return even_shares(gradient_rollout(captured.attention, captured.gradient)[:, 0, captured.prefix :])
    if method == "difference":
        return even_shares(np.stack([patch_difference(sample)] * 2))
    return np.stack([{"occlusion": occlusion, "quality": repair}[method](model, sample)] * 2)


class Kept:
    """The newest `room` results, by their keys."""

    def __init__(self, room: int):
        self._room, self._results = room, OrderedDict()

    def __call__(self, key: Any, compute: Callable[[], Any]) -> Any:
        if key not in self._results:
            self._results[key] = compute()
        self._results.move_to_end(key)
        if len(self._results) > self._room:
            self._results.popitem(last=False)
        return self._results[key]


def _digest(array: np.ndarray) -> bytes:
    return hashlib.blake2b(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes(), digest_size=16).digest()


def _sample_digest(sample: PatchSample) -> bytes:
    parts = (sample.patches, sample.uv, sample.scale)
    return b"".join(_digest(part.numpy()) for part in parts)


# --------------------------------------------------------------------------------------------------------------- pictures


def _pictures(reference: np.ndarray, distorted: np.ndarray) -> tuple[Panel, Panel]:
    return Panel("reference", reference), Panel("distorted", distorted)


def _coloured(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """A map (H, W) in the colours of `vtamiq.plots.attention`, (H, W, 3) uint8: diverging if the lower limit is below
    0."""
    low, high = limits
    places = np.ma.masked_invalid((values - low) / ((high - low) or 1.0))
    return map_colours(low < 0)(places, bytes=True)[..., :3]


def _overlay(image: np.ndarray, values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """A map over the image in grey, (H, W, 3) uint8."""
    grey = (image @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    return np.rint(MAP_STRENGTH * _coloured(values, limits) + (1 - MAP_STRENGTH) * grey).astype(np.uint8)


def _meaning(values: np.ndarray, method: str) -> tuple[tuple[float, float], Bar]:
    """First and last colour of maps, and what to say of them."""
    limits = map_limits([values], signed=method in SIGNED)
    label = "raises q" if method in SIGNED else "1 = even share"
    return limits, Bar(DIVERGING if limits[0] < 0 else UNSIGNED, *map(float, limits), label)


def _framed_patches(image: np.ndarray, sample: PatchSample, index: int) -> np.ndarray:
    """The image through its patches, with frames if they are few; of several scales the finest has none, since its frames
    would hide the others."""
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


@cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """As much of the text as fits."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _bar_text(bar: Bar | None) -> str:
    return f": {bar.low:.3g} to {bar.high:.3g} ({bar.label})" if bar else ""


def shown(image: np.ndarray) -> np.ndarray:
    """The image, averaged down if it is larger than a screen has room for."""
    return shrunk(image, SHOWN_SIDE)


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """The image with no side longer than that many pixels."""
    if max(image.shape[:2]) <= side:
        return image
    small = Image.fromarray(image)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(small)


def encoded(image: np.ndarray, kind: str) -> bytes:
    options = {"WEBP": {"lossless": True, "method": 0, "quality": 0}, "JPEG": {"quality": 88}}  # quickest; smaller
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind, **options.get(kind, {}))
    return buffer.getvalue()
