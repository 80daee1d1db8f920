"""Every figure as one function: data in, `matplotlib.figure.Figure` out. Nothing is read or computed twice here.

The figures belong to nobody: there is no pyplot state, so nothing leaks, and a notebook shows a returned figure once.
`save_figure` writes a figure with the data that it was drawn from beside it. All share the style `vtamiq.mplstyle`.

The first part has samples and images, the second charts, the third the two diagrams of the network, which are drawn from
a model as it is: another configuration gives another picture.
"""

import io
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps, rcParams, style
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path as Line
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from PIL import Image
from torch import nn

from vtamiq.caps import PatchSample
from vtamiq.configs import did_you_mean
from vtamiq.images import check_uint8_rgb
from vtamiq.model import VTAMIQ, Adapter, VTAMIQConfig

__all__ = [
    "bars",
    "contact_sheet",
    "draws_spread",
    "learning_curves",
    "pair_scores",
    "patch_canvas",
    "patch_coverage",
    "patch_density",
    "patch_sampling",
    "patch_sampling_multiscale",
    "prediction_scatter",
    "sampling_components",
    "save_figure",
    "seen_patches",
    "uv_indexing",
    "vit_diagram",
    "vtamiq_diagram",
]

log = logging.getLogger(__name__)

PAGE = 7.0  # inches, the text width of a two-column page
COLUMN = 3.5
MAX_BYTES = {"svg": 1_500_000, "png": 1_000_000}
MAX_OUTLINES = 500  # more patches than this are told apart without outlines
SHEET_PIXELS = 300_000  # of all pictures on a contact sheet; more would exceed `MAX_BYTES` at 200 dpi
MAX_NUMBERS = 25  # more patches than this are told apart without numbers
MARKERS = "osD^vPX"
MAX_MARKED = 25  # epochs; curves of more are lines without markers
STATISTICS = {
    "srocc": "SROCC",
    "krocc": "KROCC",
    "plcc": "PLCC",
    "plcc_fitted": "PLCC fitted",
    "rmse_fitted": "RMSE fitted",
    "n": "n",
}

_STYLE = style.context(Path(__file__).with_name("vtamiq.mplstyle"))  # a context manager and a decorator


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the common style, and fix the layout: left alone it would creep a little with every time of drawing, and
    with it the bytes of the files."""

    @wraps(draw)
    @_STYLE
    def styled(*args: Any, **options: Any) -> Figure:
        figure = draw(*args, **options)
        engine = figure.get_layout_engine()
        if isinstance(engine, ConstrainedLayoutEngine):
            for _ in range(3):
                engine.execute(figure)
            figure.set_layout_engine("none")
        return figure

    return styled


class _ShownFigure(Figure):
    """A figure that a notebook shows as the value of a cell, also where nobody has loaded Matplotlib's inline backend."""

    def _repr_png_(self) -> bytes:
        return _draw(self, "png", self.dpi)


def _figure(width: float, height: float, **options: Any) -> Figure:
    return _ShownFigure(figsize=(width, height), **options)


# ---------------------------------------------------------------------------------------------------------------- saving


@_STYLE
def save_figure(
    figure: Figure,
    folder: str | Path,
    name: str,
    data: pd.DataFrame | Mapping[str, Any] | None = None,
    *,
    dpi: float = 200,
) -> list[Path]:
    """Write `name.svg`, `name.png` and the data that the figure was drawn from; the same figure gives the same bytes.

    Args:
        folder: created if missing.
        name: of the files, without an ending.
        data: a table becomes `name.csv` (without its index), a mapping `name.json` (NaN becomes null).
        dpi: of the PNG and of pictures within the SVG; less if they would exceed 1 and 1.5 MB, as with many photographs.

    Returns:
        The paths: SVG, PNG, and the data's if there are any.

    Raises:
        ValueError: a name with a folder or ending in it, or data of another kind.
    """
    if not name or Path(name).name != name or name.endswith((".svg", ".png", ".csv", ".json")):
        raise ValueError(f"name must be a plain file name without ending, got {name!r}")
    if not (data is None or isinstance(data, pd.DataFrame | Mapping)):
        raise ValueError(f"data must be a DataFrame or a mapping, got {type(data).__name__}")
    drawn = _draw_within_limits(figure, dpi)
    stem = Path(folder) / name
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{name}.{kind}") for kind in drawn]
    for path, content in zip(paths, drawn.values(), strict=True):
        path.write_bytes(content)
    if isinstance(data, pd.DataFrame):
        paths.append(stem.with_name(f"{name}.csv"))
        data.to_csv(paths[-1], index=False, lineterminator="\n")
    elif data is not None:
        paths.append(stem.with_name(f"{name}.json"))
        text = json.dumps(_plain(data), indent=2, ensure_ascii=False, allow_nan=False)
        paths[-1].write_text(text + "\n", encoding="utf-8", newline="\n")
    return paths


def _draw(figure: Figure, kind: str, dpi: float) -> bytes:
    """The figure as "svg" or "png", without date and version, so that the same figure gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
    figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def _draw_within_limits(figure: Figure, dpi: float) -> dict[str, bytes]:
    """Both kinds at one resolution: `dpi`, or the less that keeps them within `MAX_BYTES` (but at least 50)."""
    while True:
        drawn = {kind: _draw(figure, kind, dpi) for kind in MAX_BYTES}
        excess = max(len(drawn[kind]) / limit for kind, limit in MAX_BYTES.items())
        if excess <= 1 or dpi <= 50:
            return drawn
        dpi = max(50, math.floor(dpi * 0.95 / math.sqrt(excess)))  # bytes grow with the number of pixels
        log.info("drawing at %d dpi, to keep the files small", dpi)


def _plain(value: Any) -> Any:
    """Numbers and arrays of NumPy, tuples, paths and NaN as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float) else str(value)


# ------------------------------------------------------------------------------------------------------ images and panels


def _check_images(images: Sequence[np.ndarray], least: int = 1) -> list[np.ndarray]:
    images = [check_uint8_rgb(image, f"image {k}") for k, image in enumerate(images)]
    if len(images) < least:
        raise ValueError(f"at least {least} images are needed, got {len(images)}")
    return images


def _check_length(what: str, values: Sequence[Any], length: int) -> None:
    if len(values) != length:
        raise ValueError(f"{what}: {length} are needed, got {len(values)}")


def _check_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in table:
            raise ValueError(f"the table has no column `{name}`{did_you_mean(name, table)}; it has {', '.join(table)}")
    if table.empty:
        raise ValueError("the table is empty")


def _panels(rows: int, columns: int, width: float, aspect: float, extra: float = 0.26) -> tuple[Figure, list[Axes]]:
    """A grid of bare panels for pictures of the given aspect (height / width), `extra` inches for each row's captions."""
    figure = _figure(width, rows * (width / columns * aspect + extra))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        _bare(ax)
    return figure, axes


def _columns(panels: int) -> int:
    return 2 if panels == 4 else min(panels, 3)


def _bare(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def _aspect(image: np.ndarray) -> float:
    return image.shape[0] / image.shape[1]


@_styled
def sampling_components(
    images: Sequence[np.ndarray],
    components: Mapping[str, np.ndarray],
    probability: np.ndarray,
    *,
    weights: Mapping[str, float] | None = None,
) -> Figure:
    """Where CAPS looks and why: reference, distorted image, the three maps and the probability that they add up to.

    Args:
        images: reference and distorted, (H, W, 3) uint8; further ones are not shown.
        components: `CAPS.components(images)`, three maps (H, W) in [0, 1].
        probability: `CAPS.probability(images)`, (H, W), shown in multiples of the uniform probability.
        weights: of the components, for their titles.
    """
    reference, distorted, *_ = _check_images(images, least=2)
    _check_length("components", components, 3)
    for name, values in {**components, "probability": probability}.items():
        if values.shape != reference.shape[:2]:
            raise ValueError(f"map {name!r} must be {reference.shape[:2]} like the images, got {values.shape}")
    figure, axes = _panels(2, 3, PAGE, _aspect(reference))
    axes[0].imshow(reference)
    axes[1].imshow(distorted)
    titles = ["reference", "distorted"]
    density = axes[2].imshow(probability * probability.size, vmin=0, cmap="magma")
    titles.append("probability of a patch (1 = uniform)")
    for ax, (name, values) in zip(axes[3:], components.items(), strict=True):
        component = ax.imshow(values, vmin=0, vmax=1)
        titles.append(name if weights is None else f"{name}, weight {weights[name]:g}")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
    for mappable, ax in ((density, axes[2]), (component, axes[5])):
        bar = figure.colorbar(mappable, cax=ax.inset_axes((1.02, 0, 0.035, 1)), ticks=MaxNLocator(5))
        bar.outline.set_visible(False)
    return figure


def patch_canvas(image: np.ndarray, sample: PatchSample, *, index: int = 0, scale: int | None = None) -> np.ndarray:
    """The patches at their places, (H, W, 4) uint8: RGB and alpha, 255 where a patch lies and 0 elsewhere.

    Args:
        image: the image that the patches were cut from, (H, W, 3) uint8.
        index: which of the sample's K images.
        scale: paint the patches of this scale only. A pixel of scale s covers 2^s × 2^s pixels; fine scales lie on top.

    Raises:
        ValueError: the patches do not fit on the image, or the sample has no such image.
    """
    check_uint8_rgb(image, "image")
    patches, position, scales = _of_image(sample, index)
    canvas = np.zeros((*image.shape[:2], 4), np.uint8)
    for s in sorted(set(scales.tolist()), reverse=True):
        if scale in (None, s):
            cut = patches[scales == s].repeat(2**s, axis=1).repeat(2**s, axis=2)  # (n, side, side, 3)
            rows, columns = (position[scales == s].T * 2**s)[..., None] + np.arange(cut.shape[1])  # (n, side) each
            if rows.max() >= image.shape[0] or columns.max() >= image.shape[1]:
                raise ValueError(f"patches reach beyond the image of {image.shape[:2]}: the sample is of another one")
            canvas[rows[:, :, None], columns[:, None, :], :3] = cut
            canvas[rows[:, :, None], columns[:, None, :], 3] = 255
    return canvas


def patch_coverage(image: np.ndarray, sample: PatchSample, *, index: int = 0) -> np.ndarray:
    """By how many patches each pixel is seen, (H, W) int; arguments as in `patch_canvas`."""
    _, position, scales = _of_image(sample, index)
    top_left, side = position * 2 ** scales[:, None], sample.patches.shape[-1] * 2 ** scales[:, None]
    if (top_left + side > image.shape[:2]).any():
        raise ValueError(f"patches reach beyond the image of {image.shape[:2]}: the sample is of another one")
    edges = np.zeros((image.shape[0] + 1, image.shape[1] + 1), np.int64)  # running sums turn corners into squares
    for corner, sign in (((0, 0), 1), ((0, 1), -1), ((1, 0), -1), ((1, 1), 1)):
        np.add.at(edges, tuple((top_left + side * corner).T), sign)
    return edges.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]


def _through_patches(image: np.ndarray, canvas: np.ndarray) -> np.ndarray:
    """The canvas over a pale ghost of the image, (H, W, 3) uint8."""
    grey = image @ np.array([0.299, 0.587, 0.114])
    ghost = (232 + 0.07 * grey).astype(np.uint8)[..., None]
    return np.where(canvas[..., 3:] > 0, canvas[..., :3], ghost)


def _of_image(sample: PatchSample, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patches (N, P, P, 3), position (N, 2) and scale (N,) of one image, shared with the others or not."""
    if not 0 <= index < len(sample.patches):
        raise ValueError(f"the sample has {len(sample.patches)} images, index {index} is none of them")
    aligned = sample.scale.ndim == 1
    position, scale = (sample.position, sample.scale) if aligned else (sample.position[index], sample.scale[index])
    return sample.patches[index].permute(0, 2, 3, 1).numpy(), position.numpy(), scale.numpy()


def _outline(
    ax: Axes,
    sample: PatchSample,
    index: int,
    colours: Mapping[int, str],
    widths: Mapping[int, float] | None = None,
) -> None:
    """Frame the patches at their footprint on the full image, those of one scale if they are few.

    Args:
        colours: scale → colour; other scales get no frames.
        widths: scale → line width in points, where it is not 0.4.
    """
    _, position, scales = _of_image(sample, index)
    for s, colour in colours.items():
        chosen = position[scales == s] * 2**s
        if 0 < len(chosen) <= MAX_OUTLINES:
            look = {"edgecolor": colour, "linewidth": (widths or {}).get(s, 0.4)}
            ax.add_collection(_squares(chosen, sample.patches.shape[-1] * 2**s, **look))


def _squares(top_left: np.ndarray, side: float | np.ndarray, **options: Any) -> PolyCollection:
    """Squares around whole pixels, (n, 2) rows and columns, of one side or of (n, 1, 1); one artist however many."""
    corners = np.array([[0, 0], [0, 1], [1, 1], [1, 0]]) * side - 0.5
    vertices = (top_left[:, None, :] + corners)[..., ::-1]  # (n, 4, 2) as x, y
    return PolyCollection(vertices, **{"facecolor": "none", "linewidth": 0.4} | options)


def _cycle_colours(count: int) -> list[str]:
    return list(islice(cycle(rcParams["axes.prop_cycle"].by_key()["color"]), count))


@_styled
def patch_sampling(
    image: np.ndarray, samples: Mapping[int | str, PatchSample], *, columns: int | None = None, index: int = 0
) -> Figure:
    """The image through the drawn patches alone, one panel per sample.

    Args:
        image: (H, W, 3) uint8, image `index` of every sample.
        samples: a number of patches (or any title) → sample.
        columns: panels in a row; default all, up to three.
    """
    if not samples:
        raise ValueError("there is no sample to draw")
    columns = columns or _columns(len(samples))
    figure, axes = _panels(-(-len(samples) // columns), columns, PAGE, _aspect(image))
    for ax, (key, sample) in zip(axes, samples.items(), strict=False):
        ax.imshow(_through_patches(image, patch_canvas(image, sample, index=index)))
        _outline(ax, sample, index, dict.fromkeys(range(16), "#404040"))
        ax.set_title(key if isinstance(key, str) else f"{key:,} patches")
    return figure


@_styled
def patch_density(image: np.ndarray, sample: PatchSample, *, index: int = 0) -> Figure:
    """A sample so dense that patches hide each other: the image through them, and how many of them see each pixel."""
    figure, (left, right) = _panels(1, 2, PAGE, _aspect(image))
    left.imshow(_through_patches(image, patch_canvas(image, sample, index=index)))
    left.set_title(f"{sample.patches.shape[1]:,} patches")
    counts = right.imshow(patch_coverage(image, sample, index=index), vmin=0, cmap="magma")
    right.set_title("patches that see a pixel")
    bar = figure.colorbar(counts, cax=right.inset_axes((1.02, 0, 0.03, 1)), ticks=MaxNLocator(5, integer=True))
    bar.outline.set_visible(False)
    return figure


@_styled
def patch_sampling_multiscale(image: np.ndarray, sample: PatchSample, *, index: int = 0) -> Figure:
    """One panel per scale, patches at their footprint of P·2^s pixels on the full image, and one with all scales.

    There the coarser the scale the thicker its frames, and the finest has none: it would hide the others.
    """
    of_patch = _of_image(sample, index)[2]
    scales, counts = np.unique(of_patch, return_counts=True)
    colours = dict(zip(scales.tolist(), _cycle_colours(len(scales)), strict=True))
    side = sample.patches.shape[-1]
    titles = {
        scale: f"scale {scale}: {count:,} patches of {side * 2**scale} px"
        for scale, count in zip(colours, counts.tolist(), strict=True)
    } | {None: f"all scales: {len(of_patch):,} patches"}
    columns = _columns(len(titles))
    figure, axes = _panels(-(-len(titles) // columns), columns, PAGE, _aspect(image))
    for ax, (scale, title) in zip(axes, titles.items(), strict=False):
        ax.imshow(_through_patches(image, patch_canvas(image, sample, index=index, scale=scale)))
        if scale is None:
            coarser = dict(list(colours.items())[1:])
            _outline(ax, sample, index, coarser, {s: 0.4 * n for n, s in enumerate(coarser, 2)})
        else:
            _outline(ax, sample, index, {scale: colours[scale]})
        ax.set_title(title, color=colours.get(scale, "black"))
    return figure


@_styled
def uv_indexing(
    image: np.ndarray, sample: PatchSample, grid: int, *, class_token_position: bool = True, index: int = 0
) -> Figure:
    """How (u, v) picks the row of the position table: patches on the image, and their cells in the regular grid.

    Up to 25 patches are numbered in the order of the sample; more are told apart by the colour of their row.

    Args:
        image: (H, W, 3) uint8.
        sample: patches of that image.
        grid: G, cells per side of the position table (`model.encoder.grid`).
        class_token_position: whether row 0 belongs to the class token, so that patches start at row 1.
    """
    if grid < 1:
        raise ValueError(f"needs a grid of at least 1 cell, got {grid}")
    _, position, scale = _of_image(sample, index)
    uv = (sample.uv if sample.uv.ndim == 2 else sample.uv[index]).numpy()
    cell = np.minimum((uv * grid).astype(int), grid - 1) @ (grid, 1)  # (N,), row by row
    numbered = len(uv) <= MAX_NUMBERS
    of_cell = colormaps[rcParams["image.cmap"]](np.linspace(0, 1, grid**2), bytes=True)[:, :3]  # (G·G, 3)
    colours = _cycle_colours(len(uv)) if numbered else [to_hex(colour / 255) for colour in of_cell[cell]]

    wide = 1 / _aspect(check_uint8_rgb(image, "image"))
    figure = _figure(PAGE, (PAGE - 1.0) / (wide + 1) + 0.5)
    left, right = figure.subplots(1, 2, width_ratios=(wide, 1))
    left.imshow(255 - (255 - image) // 2)
    corners, sides = position * 2 ** scale[:, None], sample.patches.shape[-1] * 2**scale
    look = {"edgecolor": colours, "facecolor": [f"{colour}{'59' if numbered else '8C'}" for colour in colours]}
    squares = _squares(corners, sides[:, None, None], linewidth=1 if numbered else 0.3, **look)
    if numbered:
        squares.set_path_effects([withStroke(linewidth=2.6, foreground="white")])  # seen on grounds of their colour
    left.add_collection(squares)
    left.set_title("patches at any place of the image" if numbered else f"{len(uv):,} patches")

    shade = np.full((grid**2, 3), 250, np.uint8)
    shade[cell] = 210 if numbered else of_cell[cell]
    right.imshow(shade.reshape(grid, grid, 3), extent=(0, 1, 1, 0), interpolation="nearest")
    lines = np.arange(grid + 1) / grid
    right.hlines(lines, 0, 1, color="#C8C8C8", linewidth=0.4)
    right.vlines(lines, 0, 1, color="#C8C8C8", linewidth=0.4)
    right.set(xlabel="v →", ylabel="← u")
    first = int(class_token_position)
    if numbered:
        _number_cells(left, right, corners, sides, uv, cell + first, colours)
        right.set_title(f"row {'1 + ' if first else ''}{grid}⌊{grid}u⌋ + ⌊{grid}v⌋ of the table")
    else:
        right.set_title(f"they pick {len(set(cell.tolist())):,} of {grid**2:,} rows of the position table")
    if grid <= 10:
        for k in range(grid**2):
            at = (k % grid + 0.95) / grid, (k // grid + 0.95) / grid
            right.text(*at, k + first, size=7, color="#777777", ha="right", va="bottom")
    _bare(left)
    _bare(right)
    return figure


def _number_cells(
    left: Axes, right: Axes, corners: np.ndarray, sides: np.ndarray, uv: np.ndarray, row: np.ndarray, colours: list[str]
) -> None:
    """The same number beside each patch on the image and its (u, v) in the table, and a list of the rows."""
    numbers = [str(n) for n in range(1, len(uv) + 1)]
    right.scatter(uv[:, 1], uv[:, 0], s=12, c=colours, zorder=3, clip_on=False)
    colours = [to_hex(np.multiply(to_rgb(colour), 0.68)) for colour in colours]  # yellow text is hard to read
    step = 0.07 * min(1, 14 / len(row))
    for n, k in enumerate(row):
        right.text(1.04, 0.02 + step * n, f"{n + 1}: row {k}", size=7, color=colours[n], va="top")
    _name_points(left, corners + sides[:, None] / 2, sides / 2, numbers, colours)
    _name_points(right, uv, np.full(len(uv), 0.012), numbers, colours)


def _name_points(
    ax: Axes, points: np.ndarray, offsets: np.ndarray, names: Sequence[str], colours: Sequence[str]
) -> None:
    """A name beside each point (row, column): right of it, or left of it near the right edge."""
    middle = sum(ax.get_xlim()) / 2
    halo = [withStroke(linewidth=1.8, foreground="white")]
    for (y, x), offset, name, colour in zip(points, offsets, names, colours, strict=True):
        side = 1 if x < 1.5 * middle else -1
        look = {"size": 7, "weight": "bold", "color": colour, "va": "center", "zorder": 4, "path_effects": halo}
        shift = {"xytext": (2 * side, 0), "textcoords": "offset points", "ha": "left" if side > 0 else "right"}
        ax.annotate(name, (x + side * offset, y), **shift, **look)


@_styled
def pair_scores(
    images: Sequence[np.ndarray],
    scores: Sequence[float],
    *,
    titles: Sequence[str] | None = None,
    errors: Sequence[float] | None = None,
    columns: int | None = None,
) -> Figure:
    """A reference and its distorted versions, with the predicted score q below each version.

    Args:
        images: K images (H, W, 3) uint8, the reference first.
        scores: K−1 of them, or K if the reference compared with itself is to be shown too.
        titles: of the K images; default "reference", "distorted 1" and so on.
        errors: standard errors of the scores.
        columns: images in a row; default all, up to five.
    """
    images = _check_images(images, least=2)
    return _scored(images, scores, titles, errors, columns or min(5, len(images)))


@_styled
def seen_patches(
    images: Sequence[np.ndarray],
    sample: PatchSample,
    scores: Sequence[float] | None = None,
    *,
    titles: Sequence[str] | None = None,
    errors: Sequence[float] | None = None,
) -> Figure:
    """What the network sees of every image: its own patches alone, at the same places in all or not.

    Args:
        images: K images (H, W, 3) uint8 that the sample was drawn from, the reference first.
        scores: K−1 of them, or K if the reference has one too; default none.
        titles, errors: as in `pair_scores`.

    Raises:
        ValueError: the sample has another number of images, or patches beyond them, or a list has another length.
    """
    images = _check_images(images)
    _check_length("images", images, len(sample.patches))
    seen = [_through_patches(image, patch_canvas(image, sample, index=k)) for k, image in enumerate(images)]
    figure = _scored(seen, scores, titles, errors, _columns(len(images)))
    for k, ax in enumerate(figure.axes[: len(images)]):
        _outline(ax, sample, k, dict.fromkeys(range(16), "#404040"))
    return figure


def _scored(
    images: Sequence[np.ndarray],
    scores: Sequence[float] | None,
    titles: Sequence[str] | None,
    errors: Sequence[float] | None,
    columns: int,
) -> Figure:
    """Images with a title above and, where there is one, a score below; the reference may go without."""
    expected = (len(images) - 1, len(images))
    if scores is not None and len(scores) not in expected:
        raise ValueError(f"{len(images)} images need {expected[0]} or {expected[1]} scores, got {len(scores)}")
    texts = [f"q = {q:.3f}" for q in (() if scores is None else scores)]
    if errors is not None:
        _check_length("errors", errors, len(texts))
        texts = [f"{text} ± {error:.3f}" for text, error in zip(texts, errors, strict=True)]
    texts = [""] * (len(images) - len(texts)) + texts
    titles = titles or ["reference", *(f"distorted {k}" for k in range(1, len(images)))]
    _check_length("titles", titles, len(images))
    extra = 0.26 if scores is None else 0.4
    figure, axes = _panels(-(-len(images) // columns), columns, PAGE, _aspect(images[0]), extra=extra)
    for ax, image, title, text in zip(axes, images, titles, texts, strict=False):
        ax.imshow(image)
        ax.set_title(title)
        ax.set_xlabel(text)
    return figure


@_styled
def contact_sheet(
    cells: Sequence[Sequence[np.ndarray]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    reference: np.ndarray | None = None,
    crop: int | None = None,
    blocks: int = 1,
    title: str | None = None,
    width: float = PAGE,
) -> Figure:
    """A table of pictures, such as distortions × levels.

    Pictures are averaged down to the pixels that the sheet shows and a file holds, so that `save_figure` keeps the text
    sharp. Distortions as fine as noise and jitter fade with it: a small crop, 64 pixels of 72 pictures, shows them whole.

    Args:
        cells: rows of images (H, W, 3) uint8 of one size.
        rows, columns: names of the rows (at the left) and columns (at the top).
        reference: image (H, W, 3) uint8 to compare with, shown as the first column.
        crop: side in pixels of the central square that is shown instead of the whole picture.
        blocks: parts that stand side by side, for a table of many rows.
        title: above all.
        width: of the figure in inches.

    Raises:
        ValueError: names and cells, or the sizes of the images, differ, or the crop does not fit.
    """
    _check_length("rows of cells", cells, len(rows))
    for name, row in zip(rows, cells, strict=True):
        _check_length(f"images of row {name!r}", row, len(columns))
    if reference is not None:
        columns, cells = ["ref.", *columns], [[reference, *row] for row in cells]
    images = _check_images([image for row in cells for image in row])
    if len({image.shape for image in images}) != 1:
        raise ValueError(f"the images of a contact sheet have one size, got {sorted({i.shape for i in images})}")
    per_block = -(-len(rows) // blocks)
    parts = [slice(k, k + per_block) for k in range(0, len(rows), per_block)]
    margin = max(_text_width(name, rcParams["ytick.labelsize"]) for name in rows) + 0.1
    inches = (width / len(parts) - margin) / len(columns)
    images = _as_shown(images if crop is None else [_centre(image, crop) for image in images], inches)

    height, side = images[0].shape[:2]
    table = np.stack(images).reshape(len(rows), len(columns), height, side, 3)
    gap = max(1, side // 25)
    pitch = np.array([height, side]) + gap
    figure = _figure(width, per_block * pitch[0] * inches / pitch[1] + (0.5 if title else 0.28))
    for ax, part in zip(figure.subplots(1, len(parts), squeeze=False).flat, parts, strict=True):
        mosaic = _mosaic(table[part], gap)
        mosaic = np.pad(mosaic, ((0, per_block * pitch[0] - len(mosaic)), (0, 0), (0, 0)), constant_values=255)
        ax.imshow(mosaic, interpolation="nearest")  # smooth enlargement would need four times the bytes
        _bare(ax)
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.set_xticks((np.arange(len(columns)) + 0.5) * pitch[1] - 0.5, labels=columns)
        ax.set_yticks((np.arange(len(rows[part])) + 0.5) * pitch[0] - 0.5, labels=rows[part])
    figure.suptitle(title)
    return figure


def _as_shown(images: Sequence[np.ndarray], inches: float) -> list[np.ndarray]:
    """Images averaged down to a width of `inches` at 200 dpi, or the less that keeps all below `SHEET_PIXELS`."""
    height, side = images[0].shape[:2]
    wide = int(min(200 * inches, math.sqrt(SHEET_PIXELS / len(images) * side / height)))
    if wide >= side:
        return list(images)
    size = wide, max(1, round(wide * height / side))
    return [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.HAMMING)) for image in images]


def _centre(image: np.ndarray, side: int) -> np.ndarray:
    """The central square of that many pixels."""
    if not 1 <= side <= min(image.shape[:2]):
        raise ValueError(f"crop must be from 1 to {min(image.shape[:2])} pixels, got {side}")
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return image[top : top + side, left : left + side]


def _mosaic(table: np.ndarray, gap: int) -> np.ndarray:
    """Pictures (rows, columns, H, W, 3) as one, `gap` white pixels between them."""
    before = gap // 2, gap - gap // 2
    cells = np.pad(table, ((0, 0), (0, 0), before, before, (0, 0)), constant_values=255)
    rows, columns, height, width, _ = cells.shape
    return cells.swapaxes(1, 2).reshape(rows * height, columns * width, 3)


# ----------------------------------------------------------------------------------------------------------------- charts


@_styled
def prediction_scatter(
    prediction: Sequence[float],
    score: Sequence[float],
    fit: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    groups: Sequence[str] | None = None,
    labels: tuple[str, str] = ("prediction q", "score"),
    title: str | None = None,
    statistics: Mapping[str, float] | None = None,
) -> Figure:
    """Predictions against scores, with the fitted curve.

    Args:
        prediction, score: (n,) each.
        fit: from predictions to scores, such as `correlations.LogisticFit`; a fit that failed is left out.
        groups: (n,) names, for example of distortions; each gets a colour and marker, filled and open by turns.
        labels: of the two axes.
        title: say here what the scores are, above all if they are synthetic labels.
        statistics: as `correlations` returns them; those of `STATISTICS` stand beside the axes.
    """
    x, y = np.asarray(prediction, dtype=float), np.asarray(score, dtype=float)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(f"prediction and score must be (n,) alike and not empty, got {x.shape} and {y.shape}")
    finite = np.isfinite(x) & np.isfinite(y)
    if not finite.all():
        raise ValueError(f"{(~finite).sum()} of {len(x)} pairs are not finite, the first at {np.argmin(finite)}")
    names = pd.Series("" if groups is None else groups, index=range(len(x)) if groups is None else None).astype(str)
    _check_length("groups", names, len(x))
    kinds = list(names.unique())

    numbers = [] if statistics is None else _statistics_lines(statistics)
    entries = len(kinds) if len(kinds) > 1 else 0
    figure = _figure(COLUMN + 1.4 * bool(entries or numbers), max(2.7, 0.12 * (entries + len(numbers)) + 0.6))
    ax = figure.subplots()
    size = np.clip(4000 / len(x), 6, 14)
    for kind, look in zip(kinds, _point_looks(len(kinds)), strict=True):
        of_kind = (names == kind).to_numpy()
        ax.scatter(x[of_kind], y[of_kind], s=size, label=kind, rasterized=len(x) > 2000, **look)
    if fit is not None and getattr(fit, "success", True):
        along = np.linspace(x.min(), x.max(), 200)
        ax.plot(along, fit(along), color="black", label="logistic fit")
    if entries:
        figure.legend(loc="outside right upper", fontsize=7 if entries <= 16 else 6, labelspacing=0.3)
    if numbers:  # a legend of a title alone, since the layout leaves room for legends
        font = {"family": "DejaVu Sans Mono", "size": 6.5}
        loc = f"outside right {'lower' if entries else 'upper'}"
        figure.legend(handles=[], loc=loc, title="\n".join(numbers), title_fontproperties=font)
    ax.set(xlabel=labels[0], ylabel=labels[1], title=title)
    return figure


def _markers(count: int) -> list[str]:
    """One per group; shifted with every turn of the colours, so that a pair of colour and marker comes back late."""
    colours = len(rcParams["axes.prop_cycle"])
    return [MARKERS[(k % colours + k // colours) % len(MARKERS)] for k in range(count)]


def _point_looks(count: int) -> list[dict[str, Any]]:
    """Colours and markers of groups of points: filled in the first turn of the colours, open in the second, and so on."""
    turns = [k // len(rcParams["axes.prop_cycle"]) % 2 for k in range(count)]
    return [
        {
            "marker": marker,
            "facecolor": (colour, 0 if turn else 0.75),
            "edgecolor": colour,
            "linewidth": 0.9 if turn else 0.4,
        }
        for marker, colour, turn in zip(_markers(count), _cycle_colours(count), turns, strict=True)
    ]


def _statistics_lines(statistics: Mapping[str, float]) -> list[str]:
    """Names and values of the known statistics, as lines of equal width."""
    known = {label: statistics[key] for key, label in STATISTICS.items() if key in statistics}
    if not known:
        raise ValueError(f"statistics has none of {', '.join(STATISTICS)}; it has {', '.join(statistics)}")
    values = {label: f"{int(value):,}" if label == "n" else f"{value:.3f}" for label, value in known.items()}
    wide, long = max(map(len, values)), max(map(len, values.values()))
    return [f"{label:<{wide}} {value:>{long}}" for label, value in values.items()]


@_styled
def learning_curves(history: pd.DataFrame, *, best: str = "val_srocc", title: str | None = None) -> Figure:
    """Losses and errors at the left, correlations at the right, over epochs; the best epoch is marked.

    Args:
        history: a column `epoch` and any that start with `train_` or `val_`; those that end in srocc, krocc or plcc are
            correlations. NaN where nothing was measured.
        best: the column whose largest value marks the best epoch.
        title: above both; say here what the scores are, above all if they are synthetic labels.
    """
    _check_columns(history, ["epoch", best])
    curves = [name for name in history if str(name).startswith(("train_", "val_")) and history[name].notna().any()]
    correlation = [name for name in curves if name.endswith(("srocc", "krocc", "plcc"))]
    parts = [part for part in ([name for name in curves if name not in correlation], correlation) if part]
    legend = math.ceil(max(map(len, parts), default=0) / 2)  # lines
    figure = _figure(PAGE if len(parts) == 2 else COLUMN, 2.2 + 0.14 * legend + (0.2 if title else 0))
    colours = dict(zip(curves, _cycle_colours(len(curves)), strict=True))
    at = history.loc[history[best].idxmax()] if history[best].notna().any() else None
    for ax, part in zip(figure.subplots(1, len(parts), squeeze=False).flat, parts, strict=True):
        for name in part:
            known = history[["epoch", name]].dropna()
            dashed = "--" if name.startswith("val_") and part is not correlation else "-"
            look = {"color": colours[name], "marker": "o" if len(known) <= MAX_MARKED else None}
            ax.plot(known["epoch"], known[name], dashed, label=_curve_label(name), **look)
        if at is not None:
            ax.axvline(at["epoch"], color="#888888", linewidth=0.8, linestyle=":", zorder=1)
        if at is not None and best in part:
            ax.plot(at["epoch"], at[best], "*", color=colours[best], markersize=9, zorder=4)
            ax.set_title(f"best epoch {at['epoch']:g}: {_curve_label(best)} {at[best]:.3f}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        ax.set(xlabel="epoch", ylabel="correlation" if part is correlation else "loss or error")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, handlelength=2)  # no curve lies there
    figure.suptitle(title)
    return figure


def _curve_label(column: str) -> str:
    kind, _, name = column.partition("_")
    names = {"srocc": "SROCC", "krocc": "KROCC", "plcc": "PLCC", "mae": "MAE", "pearson": "Pearson"}
    return f"{ {'train': 'training', 'val': 'validation'}.get(kind, kind) } {names.get(name, name.replace('_', ' '))}"


@_styled
def bars(
    table: pd.DataFrame,
    *,
    name: str = "dist_name",
    value: str = "srocc",
    interval: tuple[str, str] | None = None,
    group: str | None = None,
    label: str | None = None,
    title: str | None = None,
) -> Figure:
    """Horizontal bars, the largest value at the top, for example SROCC per distortion.

    Args:
        table: one row per bar.
        name, value: columns with the bars' names and lengths.
        interval: two columns with the ends of an interval around each value.
        group: column that colours the bars, such as the family of a distortion.
        label: of the value axis; default the name of the column.
    """
    _check_columns(table, [name, value, *(interval or ()), *([group] if group else [])])
    table = table.dropna(subset=[value]).sort_values(value, kind="stable")
    kinds = list(table[group].unique()) if group else [None]
    colours = dict(zip(kinds, _cycle_colours(len(kinds)), strict=True))
    figure = _figure(COLUMN * 1.2, 0.6 + 0.155 * len(table) + (0.2 if title else 0))
    ax = figure.subplots()
    place = np.arange(len(table))
    for kind in kinds:
        of_kind = (table[group] == kind).to_numpy() if group else np.full(len(table), True)
        ax.barh(place[of_kind], table[value][of_kind], height=0.7, color=colours[kind], label=kind)
    ends = table[value].to_numpy()
    if interval is not None:
        low, high = (table[end].to_numpy() for end in interval)
        ax.hlines(place, low, high, color="black", linewidth=0.9)
        ends = np.maximum(ends, high)
    for y, end, number in zip(place, np.maximum(ends, 0), table[value], strict=True):
        ax.annotate(f"{number:.3f}", (end, y), (3, 0), textcoords="offset points", size=6.5, va="center")
    ax.set_yticks(place, labels=table[name])
    ax.set_ylim(-0.6, len(table) - 0.4)
    ax.margins(x=0.14)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set(xlabel=label or value, title=title)
    if group:
        figure.legend(loc="outside right upper")
        figure.set_figwidth(COLUMN * 1.55)
    return figure


@_styled
def draws_spread(
    table: pd.DataFrame,
    *,
    value: str = "mean",
    interval: tuple[str, str] = ("low", "high"),
    group: str | None = None,
    label: str = "standard deviation of q over draws",
    title: str | None = None,
) -> Figure:
    """How much a score depends on the draw of patches, against their number: a line with a band per group.

    Args:
        table: a row per number of patches (`num_patches`) and group.
        value, interval: columns with the line and the two edges of the band.
        group: column that tells lines apart, for example the kind of sampling.
    """
    _check_columns(table, ["num_patches", value, *interval, *([group] if group else [])])
    parts = list(table.groupby(group, sort=False)) if group else [(None, table)]
    figure = _figure(COLUMN, 2.5)
    ax = figure.subplots()
    for (kind, part), colour, marker in zip(parts, _cycle_colours(len(parts)), _markers(len(parts)), strict=True):
        part = part.sort_values("num_patches")
        ax.fill_between(part["num_patches"], part[interval[0]], part[interval[1]], color=colour, alpha=0.2, linewidth=0)
        ax.plot(part["num_patches"], part[value], color=colour, marker=marker, label=kind)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.set_xticks(sorted(table["num_patches"].unique()))
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    ax.set(xlabel="patches per image", ylabel=label, title=title)
    if group:
        ax.legend()
    return figure


# --------------------------------------------------------------------------------------------------- drawing of diagrams

TITLE_SIZE, DETAIL_SIZE, LINE = 7.5, 7.0, 1.25  # points, points, line height in font sizes
INK = "#333333"
COPY = 0.03  # inches, how far a copy peeps out
GAP = 0.12  # inches, the shortest arrow
OPERATOR = 0.17  # inches, the diameter of + and ×
PICTURE = 0.74, 0.6  # inches, room for an image: width, height
KINDS = {  # fill and edge, one meaning per colour throughout both diagrams
    "plain": ("#F2F2F2", "#777777"),
    "patch": ("#D5EDE5", "#009E73"),
    "linear": ("#D9E8F3", "#0072B2"),
    "attention": ("#FCEBCB", "#C98500"),
    "token": ("#FADFD0", "#D55E00"),
    "learned": ("#F4E3ED", "#B0568B"),
    "operator": ("#FFFFFF", INK),
    "panel": ("#FAFAFA", "#BBBBBB"),
}


def _look(kind: str) -> dict[str, Any]:
    fill, edge = KINDS[kind]
    return {"facecolor": fill, "edgecolor": edge, "linewidth": 0.8, "zorder": 2}


@dataclass(frozen=True)
class _Part:
    """What a box says: a title, lines of detail below it, and its kind; one box stands for `copies` in a row."""

    title: str
    detail: str = ""
    kind: str = "linear"
    copies: int = 1

    @property
    def lines(self) -> list[tuple[str, float]]:
        """Lines of text with their size in points."""
        details = [(line, DETAIL_SIZE) for line in self.detail.split("\n") if line]
        return [(line, TITLE_SIZE) for line in self.title.split("\n") if line] + details

    @property
    def width(self) -> float:
        if self.kind == "operator":
            return OPERATOR
        return max(_text_width(line, size) for line, size in self.lines) + 0.12

    @property
    def span(self) -> float:
        """Width with the copies that peep out behind."""
        return self.width + COPY * (min(self.copies, 3) - 1)

    @property
    def height(self) -> float:
        if self.kind == "operator":
            return OPERATOR
        return sum(size for _, size in self.lines) * LINE / 72 + 0.1


PLUS, TIMES, MINUS = (_Part(sign, kind="operator") for sign in "+×−")


@dataclass(frozen=True)
class _Box:
    """Where something was drawn, in inches: its centre and size."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> tuple[float, float]:
        return self.x - self.width / 2, self.y

    @property
    def right(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y

    @property
    def top(self) -> tuple[float, float]:
        return self.x, self.y + self.height / 2

    @property
    def bottom(self) -> tuple[float, float]:
        return self.x, self.y - self.height / 2

    @property
    def corner(self) -> tuple[float, float]:
        """Lower left, as Matplotlib wants it."""
        return self.left[0], self.bottom[1]


@cache
def _text_width(text: str, size: float) -> float:
    """Inches that a line takes."""
    return TextPath((0, 0), text, size=size).get_extents().width / 72 if text.strip() else 0.0


class _Sheet:
    """A drawing surface measured in inches, so that boxes fit their text at any size of the sheet."""

    def __init__(self, width: float, height: float):
        self.figure = _figure(width, height)
        self.figure.set_layout_engine("none")
        self.ax = self.figure.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(0, width), ylim=(0, height))
        self.ax.set_axis_off()
        self.ax.set_autoscale_on(False)
        self.width, self.height = width, height

    def text(self, x: float, y: float, text: str | _Part, **options: Any) -> None:
        """Lines around (x, y). Each is set on its own baseline, so that boxes side by side have theirs level."""
        part = _Part("", text) if isinstance(text, str) else text
        top = y + sum(size for _, size in part.lines) * LINE / 144
        for line, size in part.lines:
            top -= size * LINE / 72
            look = {"size": size, "color": INK if size == DETAIL_SIZE else "black", "ha": "center", "zorder": 4}
            self.ax.text(x, top + 0.28 * size / 72, line, **look | options)

    def box(self, x: float, y: float, part: _Part, width: float | None = None, height: float | None = None) -> _Box:
        """A part centred at (x, y), as large as its text asks for or as told."""
        box = _Box(x, y, width or part.width, height or part.height)
        if part.kind == "operator":
            self.ax.add_patch(Circle((x, y), box.width / 2, **_look(part.kind)))
            self.ax.text(x, y - 0.002, part.title, size=8.5, ha="center", va="center_baseline", zorder=4)
            return box
        for k in reversed(range(min(part.copies, 3))):
            self._rounded(_Box(x + COPY * k, y - COPY * k, box.width, box.height), **_look(part.kind))
        self.text(x, y, part)
        return box

    def panel(self, left: float, bottom: float, width: float, height: float, title: str = "") -> _Box:
        """A light field for a part of the drawing, titled in its top left corner."""
        box = _Box(left + width / 2, bottom + height / 2, width, height)
        self._rounded(box, **_look("panel") | {"linewidth": 0.6, "zorder": 0})
        self.text(left + 0.07, bottom + height - 0.12, _Part(title), ha="left", weight="bold")
        return box

    def _rounded(self, box: _Box, **look: Any) -> None:
        shape = "round,pad=0,rounding_size=0.04"
        self.ax.add_patch(FancyBboxPatch(box.corner, box.width, box.height, boxstyle=shape, **look))

    def cells(self, box: _Box, rows: int, columns: int, kind: str, spacing: float = 0.0) -> None:
        """A box divided into rows × columns cells: a feature vector, a row of tokens."""
        width, height = box.width / columns, box.height / rows
        for k in range(rows * columns):
            corner = box.corner[0] + k % columns * width + spacing / 2, box.corner[1] + k // columns * height
            self.ax.add_patch(Rectangle(corner, width - spacing, height, **_look(kind)))

    def arrow(self, *points: tuple[float, float], head: bool = True, **options: Any) -> None:
        """A line through the points, with its head at the last one."""
        look = {"arrowstyle": "-|>,head_length=2.6,head_width=1.4" if head else "-", "mutation_scale": 1} | options
        line = FancyArrowPatch(path=Line(points), color=INK, linewidth=0.8, joinstyle="miter", zorder=1.5, **look)
        self.ax.add_patch(line)

    def picture(self, box: _Box, image: np.ndarray) -> None:
        (left, right), (bottom, top) = (box.left[0], box.right[0]), (box.bottom[1], box.top[1])
        self.ax.imshow(image, extent=(left, right, bottom, top), aspect="auto", zorder=2)
        self.ax.add_patch(Rectangle(box.corner, box.width, box.height, fill=False, linewidth=0.6, zorder=3))

    def chain(self, left: float, right: float, y: float, parts: Sequence[_Part], ends: bool = True) -> list[_Box]:
        """Parts from left to right with arrows between them, into the first and, if `ends`, out of the last."""
        centres = _spread([part.span for part in parts], left, right)
        boxes = [self.box(x - (part.span - part.width) / 2, y, part) for x, part in zip(centres, parts, strict=True)]
        stops = [_Box(left, y, 0, 0), *boxes, *([_Box(right, y, 0, 0)] if ends else [])]
        for start, end in pairwise(stops):
            self.arrow(start.right, end.left)
        return boxes

    def skip(self, start: float, end: _Box, y: float) -> None:
        """A residual connection: from the line at x = start, along the height y, into the circle `end`."""
        self.arrow((start, end.y), (start, y), (end.x, y), end.top if y > end.y else end.bottom)


def _spread(widths: Sequence[float], left: float, right: float) -> list[float]:
    """Centres of boxes between left and right, with equal gaps before, between and after them."""
    gap = (right - left - sum(widths)) / (len(widths) + 1)
    starts = left + gap * np.arange(1, len(widths) + 1) + np.cumsum([0, *widths[:-1]])
    return (starts + np.array(widths) / 2).tolist()


def _chain_width(widths: Sequence[float]) -> float:
    """The least width for `_spread`, with gaps long enough for an arrow."""
    return sum(widths) + GAP * (len(widths) + 1)


def _between(a: _Box, b: _Box) -> float:
    return (a.right[0] + b.left[0]) / 2


def _sketch() -> np.ndarray:
    """A landscape and its coarse version, (2, 96, 128, 3) uint8: stands for the image pair if none is given."""
    y, x = np.mgrid[0:96, 0:128] / 96.0
    picture = np.stack([0.45 + 0.4 * y, 0.65 + 0.25 * y, 0.95 - 0.1 * y], axis=-1)
    picture[np.hypot(y - 0.25, x - 1.0) < 0.11] = (1.0, 0.85, 0.35)
    for height, colour in ((0.5, (0.45, 0.55, 0.6)), (0.66, (0.3, 0.5, 0.35)), (0.84, (0.2, 0.36, 0.24))):
        picture[y > height + 0.09 * np.sin(5 * x + 9 * height) + 0.03 * np.sin(17 * x)] = colour
    coarse = picture[::8, ::8].repeat(8, axis=0).repeat(8, axis=1)
    return (np.stack([picture, coarse]) * 255).astype(np.uint8)


def _cut_patches(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Nine patches as one picture of 3 × 3 tiles, their top left corners (9, 2) and their side in pixels."""
    side = min(image.shape[:2]) // 7
    thirds = np.stack(np.divmod(np.arange(9), 3), axis=1) + np.random.default_rng(3).uniform(0.1, 0.9, (9, 2))
    top_left = (thirds / 3 * (np.array(image.shape[:2]) - side)).astype(int)
    rows, columns = top_left.T[..., None] + np.arange(side)  # (9, side) each
    patches = image[rows[:, :, None], columns[:, None, :]]
    return _mosaic(patches.reshape(3, 3, side, side, 3), max(2, side // 3)), top_left, side


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _length(tokens: nn.Parameter | None) -> int:
    """Of an optional row of learned tokens (1, n, D)."""
    return 0 if tokens is None else tokens.shape[1]


# --------------------------------------------------------------------------------------------------------- VTAMIQ diagram


@_styled
def vtamiq_diagram(model: VTAMIQ, images: Sequence[np.ndarray] | None = None) -> Figure:
    """The whole network as it is: image pair → patches → shared encoder → difference → DiffNet → quality head → q.

    Every number is read from the model, and optional parts are there if the model has them.

    Args:
        images: reference and distorted for the two pictures, of one size; default a sketch.
    """
    images = _check_images(_sketch() if images is None else images, least=2)[:2]
    panels = _diffnet_panels(model)
    parts = _main_parts(model)
    widths = {"images": PICTURE[0]} | {name: part.width for name, part in parts.items()}
    panel_widths = [_chain_width([part.span for part in chain]) for chain in panels.values()]
    width = max(PAGE, _chain_width(list(widths.values())), sum(panel_widths) + 0.1 * (len(panels) + 1))
    base = 1.42 if panels else 0.0
    sheet = _Sheet(width, base + 1.86)
    x = dict(zip(widths, _spread(list(widths.values()), 0, width), strict=True))

    tokens = _draw_streams(sheet, images, parts, x, base + 0.93)
    line = _draw_decoder(sheet, model, parts, x, tokens)
    if panels:
        _draw_diffnet(sheet, panels, panel_widths, line["diffnet"])
    return sheet.figure


def _main_parts(model: VTAMIQ) -> dict[str, _Part]:
    """What stands in the main line from left to right, with the optional parts that this model has."""
    encoder, head = model.encoder, model.head
    P, width = encoder.patch_size, encoder.class_token.shape[-1]
    scales = 1 if encoder.scale_table is None else len(encoder.scale_table)
    lines = ["(shared)", _count(len(encoder.blocks), "block"), f"width {width}"]
    lines += [_count(encoder.blocks[0].attn.num_heads, "head"), _count(_length(encoder.registers), "register")]
    parts = {
        "caps": _Part("CAPS", f"same\nplaces\nin both,\n{_count(scales, 'scale')}", "patch"),
        "patches": _Part("", f"N × 3 × {P} × {P}\nat (u, v{', s' if scales > 1 else ''})"),
        "encoder": _Part("ViT encoder", "\n".join(lines)),
        "tokens": _Part("", str(width)),
        "difference": MINUS,
    }
    if model.difference_scale is not None:
        parts["scale"] = _Part("scale γ", str(model.difference_scale.numel()), "plain")
    if model.difference_gate is not None:
        parts["gate"] = TIMES
    if model.config.num_groups:
        groups = model.diffnet.groups
        blocks = _count(len(groups[0].blocks), "block")
        parts["diffnet"] = _Part("DiffNet", f"{_count(len(groups), 'group')} ×\n{blocks}", "attention")
    sizes = f"{head.hidden.in_features} → {head.hidden.out_features} → {head.output.out_features}"
    dropout = f"\ndropout {head.dropout.p:g}" if head.dropout.p else ""
    parts["head"] = _Part("quality head", sizes + dropout, "token")
    if model.config.zero_anchor:
        parts["anchor"] = _Part("− q(0)", "zero\nanchor", "plain")
    return parts | {"q": _Part("", "better")}


def _draw_streams(
    sheet: _Sheet, images: Sequence[np.ndarray], parts: Mapping[str, _Part], x: Mapping[str, float], middle: float
) -> list[_Box]:
    """From the two images to their class tokens, whose boxes are returned."""
    caps = sheet.box(x["caps"], middle, parts["caps"], height=1.5)
    encoder = sheet.box(x["encoder"], middle, parts["encoder"], height=1.5)
    sheet.text(x["patches"], middle, parts["patches"])
    tokens = []
    for image, name, side in zip(images, ("reference", "distorted"), (1, -1), strict=True):
        y = middle + side * 0.45
        inches = min(PICTURE[0] / image.shape[1], PICTURE[1] / image.shape[0])  # per pixel
        picture = _Box(x["images"], y, image.shape[1] * inches, image.shape[0] * inches)
        sheet.picture(picture, image)
        sheet.text(picture.x, y + side * (picture.height / 2 + 0.09), name)
        tiles, top_left, pixels = _cut_patches(image)
        for row, column in top_left * inches:
            corner = picture.left[0] + column, picture.top[1] - row - pixels * inches
            frame = {"fill": False, "edgecolor": "white", "linewidth": 0.6, "zorder": 3}
            sheet.ax.add_patch(Rectangle(corner, pixels * inches, pixels * inches, **frame))
        stack = _Box(x["patches"], y, 0.46, 0.46)
        sheet.picture(stack, tiles)
        tokens.append(_Box(x["tokens"], y, 0.13, 0.5))
        sheet.cells(tokens[-1], 7, 1, "token")
        sheet.arrow(picture.right, (caps.left[0], y))
        sheet.arrow((caps.right[0], y), stack.left)
        sheet.arrow(stack.right, (encoder.left[0], y))
        sheet.arrow((encoder.right[0], y), tokens[-1].left)
    sheet.text(x["tokens"], tokens[0].top[1] + 0.12, "class tokens")
    sheet.text(x["tokens"], tokens[1].bottom[1] - 0.09, parts["tokens"])
    return tokens


def _draw_decoder(
    sheet: _Sheet, model: VTAMIQ, parts: Mapping[str, _Part], x: Mapping[str, float], tokens: Sequence[_Box]
) -> dict[str, _Box]:
    """From the two class tokens to q; returns the boxes of this part of the main line."""
    middle = (tokens[0].y + tokens[1].y) / 2
    names = list(parts)
    names = names[names.index("difference") : -1]
    line = {name: sheet.box(x[name], middle, parts[name]) for name in names}
    difference = line["difference"]
    for token, end, sign, side in zip(tokens, (difference.top, difference.bottom), "+−", (1, -1), strict=True):
        sheet.arrow(token.right, (difference.x, token.y), end)
        sheet.text(difference.x + 0.11, middle + side * 0.17, sign)
    for start, end in pairwise(line.values()):
        sheet.arrow(start.right, end.left)
    sheet.arrow(line[names[-1]].right, (x["q"] - 0.1, middle))
    sheet.ax.text(x["q"], middle, "q", size=11, weight="bold", style="italic", ha="center", va="center_baseline")
    sheet.text(x["q"], middle - 0.27, f"{'lower' if model.lower_better else 'higher'} is\nbetter")
    if "gate" in line:
        part = _Part("difference gate", f"{_count(len(model.difference_gate.blocks), 'block')}, linear", "attention")
        centre = max(line["gate"].x, difference.x + 0.22 + part.width / 2)
        gate = sheet.box(centre, tokens[0].y + 0.02, part)
        sheet.arrow((difference.x, tokens[0].y), (gate.left[0], tokens[0].y))
        sheet.arrow((line["gate"].x, gate.bottom[1]), line["gate"].top)
    return line


def _diffnet_panels(model: VTAMIQ) -> dict[str, list[_Part]]:
    """Titles and chains of DiffNet, of its residual group, and of the channel-attention block in it; or nothing."""
    if not model.config.num_groups:
        return {}
    groups = model.diffnet.groups
    group, block = groups[0], groups[0].blocks[0]
    squeeze, D = block.attention.squeeze, model.diffnet.linear.out_features
    linear = _Part("linear", str(D))
    drop = [_Part("drop path", f"{group.drop_path.drop_prob:g}", "plain")] if group.drop_path.drop_prob else []
    sizes = f"{D} → {squeeze.out_features} → {D}\n{type(block.attention.activation).__name__}, sigmoid"
    attention = _Part("channel attention", sizes, "attention")
    groups = _Part("residual\ngroup", f"× {len(groups)}", "attention", len(groups))
    blocks = _Part("attention\nblock", f"× {len(group.blocks)}", "attention", len(group.blocks))
    return {
        "DiffNet": [groups, linear],
        "residual group": [blocks, linear, *drop, PLUS],
        "channel-attention block": [_Part("PReLU", kind="plain"), linear, attention, TIMES, PLUS],
    }


def _draw_diffnet(sheet: _Sheet, panels: Mapping[str, list[_Part]], widths: Sequence[float], diffnet: _Box) -> None:
    """DiffNet from its outside in, below the main line, whose box `diffnet` it explains."""
    margin, y = 0.1, 0.6
    spare = (sheet.width - margin * (len(panels) + 1) - sum(widths)) / len(panels)
    left = margin
    for (title, chain), width in zip(panels.items(), widths, strict=True):
        right = left + width + spare
        sheet.panel(left, 0.06, right - left, 1.2, title)
        boxes = sheet.chain(left, right, y, chain)
        if title != "DiffNet":
            sheet.skip((left + boxes[0].left[0]) / 2, boxes[-1], 0.17)
        if TIMES in chain:  # what comes out of the linear is multiplied by its own attention
            sheet.skip(_between(boxes[1], boxes[2]), boxes[3], 0.95)
        left = right + margin
    sheet.arrow(diffnet.bottom, (diffnet.x, 1.35), head=False, linestyle=":")
    sheet.arrow((margin, 1.35), (sheet.width - margin, 1.35), head=False, linestyle=":")


# ------------------------------------------------------------------------------------------------------------ ViT diagram


@_styled
def vit_diagram(model: VTAMIQ) -> Figure:
    """The patch encoder as it is: how patches become tokens, what a block does, and where the class token comes out."""
    encoder = model.encoder
    block = encoder.blocks[0]
    if not all(hasattr(block, name) for name in ("norm1", "attn", "ls1", "norm2", "mlp", "ls2")):
        raise ValueError(
            f"blocks of `{model.config.backbone}` are {type(block).__name__}s; only plain ViT blocks are drawn"
        )
    attention, mlp = _branch(block, "attn"), _branch(block, "mlp")
    final = _Part(_norm(encoder.norm), kind="plain")
    needed = _chain_width([part.width for part in (*attention, *mlp, final)]) + 0.9
    width = max(PAGE, needed, _embedding_width(encoder))
    sheet = _Sheet(width, 3.12)
    tokens = _draw_embedding(sheet, encoder)

    y, left, right = 0.47, 0.1, width - final.width - 0.96
    sheet.panel(left, 0.06, right - left, 1.2, f"transformer block × {len(encoder.blocks)}")
    sheet.text(right - 0.07, 1.14, _training_note(model.config), ha="right")
    boxes = sheet.chain(left, right, y, [*attention, *mlp], ends=False)
    first, last = boxes[: len(attention)], boxes[len(attention) :]
    sheet.skip((left + first[0].left[0]) / 2, first[-1], 0.9)
    sheet.skip(_between(first[-1], last[0]), last[-1], 0.9)
    sheet.arrow(tokens.bottom, (tokens.x, 1.37), (0.04, 1.37), (0.04, y), (left, y), head=False)

    norm = sheet.box(right + GAP + final.width / 2, y, final)
    out = _Box(width - 0.42, y, 0.13, 0.5)
    sheet.cells(out, 7, 1, "token")
    sheet.arrow(boxes[-1].right, norm.left)
    sheet.arrow(norm.right, out.left)
    sheet.text(out.x, out.top[1] + 0.15, "class token\nof the image")
    sheet.text(out.x, out.bottom[1] - 0.09, str(encoder.class_token.shape[-1]))
    return sheet.figure


def _branch(block: nn.Module, name: str) -> list[_Part]:
    """One residual branch of a transformer block, from its norm to its sum, with the optional parts that it has."""
    if name == "attn":
        norm, after, gamma = block.norm1, block.ls1, "γ₁"
        main = _Part("self-attention", f"{_count(block.attn.num_heads, 'head')} × {block.attn.head_dim}", "attention")
    else:
        norm, after, gamma = block.norm2, block.ls2, "γ₂"
        sizes = f"{block.mlp.fc1.in_features} → {block.mlp.fc1.out_features} → {block.mlp.fc2.out_features}"
        main = _Part("MLP", f"{sizes}\n{type(block.mlp.act).__name__}")
    adapters = [m for m in after.modules() if isinstance(m, Adapter)]
    scales = [m for m in after.modules() if hasattr(m, "gamma")]
    return [
        _Part(_norm(norm), kind="plain"),
        main,
        *(_Part("adapter", f"{m.down.in_features} → {m.down.out_features}\n→ {m.up.out_features}") for m in adapters),
        *(_Part(f"scale {gamma}", str(m.gamma.numel()), "plain") for m in scales),
        PLUS,
    ]


def _norm(module: nn.Module) -> str:
    return {"LayerNorm": "LN", "RmsNorm": "RMS", "Identity": "no norm"}.get(
        type(module).__name__, type(module).__name__
    )


def _training_note(config: VTAMIQConfig) -> str:
    """What acts on the blocks in training only, if anything does."""
    rates = {"MLP dropout": config.mlp_dropout, "drop path up to": config.encoder_drop_path}
    acting = [f"{name} {rate:g}" for name, rate in rates.items() if rate]
    return f"in training: {', '.join(acting)}" if acting else ""


def _tables(encoder: nn.Module) -> dict[str, _Part]:
    """What is looked up for a patch, by which key."""
    rows, D = encoder.position_table.shape
    first = "row 0: class token" if encoder.class_token_position else "row 0: first cell"
    tables = {
        "(u, v)": _Part("position table", f"{rows} × {D}\n{encoder.grid} × {encoder.grid} cells\n{first}", "learned")
    }
    if encoder.scale_table is not None:
        tables["s"] = _Part("scale table", f"{len(encoder.scale_table)} × {D}", "learned")
    return tables


def _token_groups(encoder: nn.Module) -> list[tuple[str, str, int, float]]:
    """Kind, name and number drawn of the tokens that enter the first block, and the inches that they take."""
    registers = _length(encoder.registers)
    groups = [("token", "class token", 1), ("learned", _count(registers, "register"), min(registers, 8))]
    groups = [group for group in groups if group[2]] + [("patch", "N patches", 7)]
    return [(kind, name, n, max(0.13 * n, _text_width(name, DETAIL_SIZE))) for kind, name, n in groups]


TABLE_LEFT, GRID_SIDE = 0.88, 0.56  # inches


def _embedding_width(encoder: nn.Module) -> float:
    """Inches that the upper half needs: tables with a sum each, and the row of tokens."""
    tables = sum(part.width + 0.72 for part in _tables(encoder).values())
    return TABLE_LEFT + GRID_SIDE + tables + _chain_width([width for *_, width in _token_groups(encoder)]) + 0.2


def _draw_embedding(sheet: _Sheet, encoder: nn.Module) -> _Box:
    """Upper half: patches, their projection, position and scale looked up in tables; returns the sequence of tokens."""
    P, y, below = encoder.patch_size, 2.66, 1.86
    stack = _Box(0.47, y, 0.46, 0.46)
    sheet.picture(stack, _cut_patches(_sketch()[0])[0])
    sheet.text(stack.x, stack.top[1] + 0.09, f"N × 3 × {P} × {P}")
    start, right = stack, TABLE_LEFT
    for key, part in _tables(encoder).items():
        position = key == "(u, v)"
        width = part.width + (GRID_SIDE + 0.09 if position else 0)
        left = right if position else right + 0.3
        table = sheet.box(left + width / 2, below, _Part("", kind="learned"), width, GRID_SIDE + 0.14)
        sheet.text(table.right[0] - part.width / 2, below, part)
        sheet.text(table.left[0] - 0.2 - _text_width(key, DETAIL_SIZE) / 2, below, key)
        sheet.arrow((table.left[0] - 0.17, below), table.left)
        if position:
            _draw_grid(sheet, _Box(left + 0.07 + GRID_SIDE / 2, below, GRID_SIDE, GRID_SIDE), encoder.grid)
            sizes = f"{encoder.patch_projection.in_features} → {encoder.patch_projection.out_features}"
            box = sheet.box(table.x, y, _Part("patch projection", sizes))
            sheet.arrow(start.right, box.left)
            start = box
        plus = sheet.box(table.right[0] + 0.24, y, PLUS)
        sheet.arrow(table.right, (plus.x, below), plus.bottom)
        sheet.arrow(start.right, plus.left)
        start, right = plus, plus.right[0]
    tokens = _draw_tokens(sheet, encoder, right + 0.26)
    sheet.arrow(start.right, (tokens.left[0], y))
    return tokens


def _draw_grid(sheet: _Sheet, box: _Box, grid: int) -> None:
    """The cells of the position table, one of them looked up."""
    (left, bottom), cell = box.corner, box.width / grid
    kind = _look("patch") | {"facecolor": KINDS["patch"][1], "linewidth": 0}
    sheet.ax.add_patch(Rectangle((left, bottom), box.width, box.height, color="white", zorder=2))
    row, column = (grid // 2 + 0.5) * cell, (grid * 2 // 3 + 0.5) * cell
    sheet.ax.add_patch(Rectangle((left + column - cell / 2, bottom + row - cell / 2), cell, cell, **kind))
    sheet.ax.plot(
        [left, left + column, left + column],
        [bottom + row, bottom + row, box.top[1]],
        color=kind["facecolor"],
        linewidth=0.9,
        zorder=4,
    )
    lines = np.arange(grid + 1) * cell
    look = {"color": KINDS["learned"][1], "linewidth": 0.25, "zorder": 3}
    sheet.ax.hlines(bottom + lines, left, left + box.width, **look)
    sheet.ax.vlines(left + lines, bottom, bottom + box.height, **look)


def _draw_tokens(sheet: _Sheet, encoder: nn.Module, left: float) -> _Box:
    """The sequence that enters the first block: class token, registers, patch tokens."""
    frame = sheet.panel(left, 1.5, sheet.width - 0.1 - left, 1.55)
    groups, y = _token_groups(encoder), 2.52
    centres = _spread([width for *_, width in groups], left, frame.right[0])
    for x, (kind, name, number, _) in zip(centres, groups, strict=True):
        sheet.cells(_Box(x, y, 0.13 * number, 0.46), 1, number, kind, spacing=0.02)
        sheet.text(x, y + 0.35, name)
        if kind == "token" and encoder.class_token_position:
            sheet.text(x, y - 0.33, "+ row 0")
    sheet.text(centres[-1] + 0.13 * 3.5 + 0.09, y, "…")
    registers = _length(encoder.registers)
    lines = [f"T = 1 + {f'{registers} + ' if registers else ''}N tokens of width {encoder.class_token.shape[-1]}"]
    if not isinstance(encoder.norm_pre, nn.Identity):
        lines.append(f"then {_norm(encoder.norm_pre)}")
    if encoder.embedding_dropout.p:
        lines.append(f"in training: dropout {encoder.embedding_dropout.p:g}")
    sheet.text(frame.x, 1.86, "\n".join(lines))
    return frame
