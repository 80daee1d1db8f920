"""Every figure as one function: data in, `matplotlib.figure.Figure` out. Nothing is read or computed twice here.

The figures belong to nobody: there is no pyplot state, so nothing leaks, and a notebook shows a returned figure once.
`save_figure` writes a figure with the data that it was drawn from beside it. All share the style `vtamiq.mplstyle`.

The first part has samples and images, the second charts. The diagrams of the network are in `vtamiq.plots.diagrams`.
"""

import inspect
import io
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial, wraps
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib import colormaps, rc_params_from_file, rcParams, style
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from PIL import Image

from vtamiq.caps import PatchSample
from vtamiq.images.reading import check_uint8_rgb
from vtamiq.plots.recipes import Recipe
from vtamiq.utils.configs import did_you_mean

__all__ = [
    "agreement_matrix",
    "bars",
    "contact_sheet",
    "draws_spread",
    "heatmap",
    "label_histograms",
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
]

log = logging.getLogger(__name__)

PAGE = 7.0  # inches, the text width of a two-column page
COLUMN = 3.5
MAX_BYTES = {"svg": 1_500_000, "png": 1_000_000}
MIN_DPI, MAX_DPI = 50, 2400
METADATA = {  # of files: nothing that differs from one time to the next
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
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

STYLE = Path(__file__).with_name("vtamiq.mplstyle")


def common_style(changes: Mapping[str, Any] | None = None) -> AbstractContextManager[None]:
    """The look that all figures share while the block lasts, with changes to it such as `read_style` returns."""
    return style.context([STYLE, dict(changes or {})])


def read_style(path: str | Path) -> dict[str, Any]:
    """Settings of a Matplotlib style file, which may be a few lines; keys unknown to Matplotlib are named as warnings.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no text, a setting with a bad value, or no setting at all.
    """
    try:
        settings = rc_params_from_file(str(Path(path)), fail_on_error=True, use_default_template=False)
    except ValueError as error:
        raise ValueError(f"{path} is no Matplotlib style file: {error}") from error
    if not settings:
        raise ValueError(f"{path} has no setting in it, such as `font.size: 9`")
    return dict(settings)


def _styled(
    draw: Callable[..., Figure], *, keep: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> Callable[..., Figure]:
    """A function that draws in the common style and notes on the figure how to draw it again.

    `keep` makes of the arguments what such a note shall hold: all that can be seen of them.
    """
    signature = inspect.signature(draw)
    name = f"{draw.__module__.removeprefix('vtamiq.')}.{draw.__name__}"

    @wraps(draw)
    def styled(*args: Any, **options: Any) -> Figure:
        arguments = signature.bind(*args, **options).arguments
        figure = draw_styled(draw, arguments)
        figure.recipe = Recipe(name, keep(arguments))
        return figure

    styled.recipe_name = name
    return styled


def draw_styled(
    draw: Callable[..., Figure], arguments: Mapping[str, Any], changes: Mapping[str, Any] | None = None
) -> Figure:
    """Draw in the common style, and fix the layout: left alone it would creep a little with every time of drawing, and
    with it the bytes of the files. Rounded, since its last bits differ from process to process, and names in an SVG are
    made of them."""
    with common_style(changes):
        figure = draw(**arguments)
        engine = figure.get_layout_engine()
        if isinstance(engine, ConstrainedLayoutEngine):
            for _ in range(3):
                engine.execute(figure)
            figure.set_layout_engine("none")
            for ax in figure.axes:
                ax.set_position(np.round(ax.get_position(original=True).bounds, 12).tolist(), which="original")
    return figure


class _ShownFigure(Figure):
    """A figure that a notebook shows as the value of a cell, also where nobody has loaded Matplotlib's inline backend."""

    def _repr_png_(self) -> bytes:
        return _draw(self, "png", self.dpi)


def _figure(width: float, height: float, **options: Any) -> Figure:
    return _ShownFigure(figsize=(width, height), **options)


# ---------------------------------------------------------------------------------------------------------------- saving


def save_figure(
    figure: Figure,
    folder: str | Path,
    name: str,
    data: pd.DataFrame | Mapping[str, Any] | None = None,
    *,
    kinds: Sequence[str] = ("svg", "png"),
    dpi: float | None = None,
    changes: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write `name.svg`, `name.png` and the data that the figure was drawn from; the same figure gives the same bytes.

    Args:
        folder: created if missing.
        name: of the files, without an ending.
        data: a table becomes `name.csv` (without its index), a mapping `name.json` (NaN becomes null).
        kinds: "svg", "png" and "pdf" (with its fonts embedded), all or some.
        dpi: of the PNG and of pictures within the others; None takes 200, or less where PNG or SVG would exceed 1 and
            1.5 MB, as with many photographs.
        changes: to the common style, as `read_style` returns them; give those that the figure was drawn with.

    Returns:
        The paths: those of `kinds`, and the data's if there are any.

    Raises:
        ValueError: a name with a folder or ending in it, data or a file of another kind, or a bad dpi.
    """
    if not name or Path(name).name != name or name.endswith((".svg", ".png", ".pdf", ".csv", ".json")):
        raise ValueError(f"name must be a plain file name without ending, got {name!r}")
    if not (data is None or isinstance(data, pd.DataFrame | Mapping)):
        raise ValueError(f"data must be a DataFrame or a mapping, got {type(data).__name__}")
    check_output(kinds, dpi)
    with common_style(changes):
        drawn = (
            _draw_within_limits(figure, kinds) if dpi is None else {kind: _draw(figure, kind, dpi) for kind in kinds}
        )
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
        text = json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False)
        paths[-1].write_text(text + "\n", encoding="utf-8", newline="\n")
    return paths


def check_output(kinds: Sequence[str], dpi: float | None) -> None:
    """Raise ValueError unless `save_figure` can write that."""
    if isinstance(kinds, str) or not kinds or not set(kinds) <= set(METADATA):
        raise ValueError(f"kinds must be some of {', '.join(METADATA)}, got {kinds!r}")
    if dpi is not None and not MIN_DPI <= dpi <= MAX_DPI:
        raise ValueError(f"dpi must lie between {MIN_DPI} and {MAX_DPI}, got {dpi}")


def _draw(figure: Figure, kind: str, dpi: float) -> bytes:
    """The figure as a file, without date and version, so that the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi, metadata=METADATA[kind])
    return buffer.getvalue()


def _draw_within_limits(figure: Figure, kinds: Sequence[str]) -> dict[str, bytes]:
    """All kinds at one resolution: 200 dpi, or the less that keeps SVG and PNG, asked for or not, within `MAX_BYTES`."""
    dpi = 200
    while True:
        drawn = {kind: _draw(figure, kind, dpi) for kind in MAX_BYTES}
        excess = max(len(drawn[kind]) / limit for kind, limit in MAX_BYTES.items())
        if excess <= 1 or dpi <= MIN_DPI:
            return {kind: drawn[kind] if kind in drawn else _draw(figure, kind, dpi) for kind in kinds}
        dpi = max(MIN_DPI, math.floor(dpi * 0.95 / math.sqrt(excess)))  # bytes grow with the number of pixels
        log.info("drawing at %d dpi, to keep the files small", dpi)


def plain(value: Any) -> Any:
    """Numbers and arrays of NumPy, tuples, paths and NaN as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
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


def _cropped(arguments: dict[str, Any]) -> dict[str, Any]:
    """Of the pictures of a contact sheet the part that it shows."""
    crop, reference = arguments.get("crop"), arguments.get("reference")
    if crop is None:
        return arguments
    cells = [[_centre(image, crop) for image in row] for row in arguments["cells"]]
    return arguments | {
        "cells": cells,
        "reference": None if reference is None else _centre(reference, crop),
        "crop": None,
    }


@partial(_styled, keep=_cropped)
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


def _text_width(text: str, size: float) -> float:
    """Inches that a line takes in the font of the style."""
    return _width_in(findfont(FontProperties()), text, size)


@cache
def _width_in(font: str, text: str, size: float) -> float:
    return TextPath((0, 0), text, size=size).get_extents().width / 72 if text.strip() else 0.0


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
            correlations, and stand with the accuracies (shares of preferences that are predicted). NaN where nothing was
            measured.
        best: the column whose largest value marks the best epoch.
        title: above both; say here what the scores are, above all if they are synthetic labels.
    """
    _check_columns(history, ["epoch", best])
    curves = [name for name in history if str(name).startswith(("train_", "val_")) and history[name].notna().any()]
    correlation = [name for name in curves if name.endswith(("srocc", "krocc", "plcc", "accuracy"))]
    parts = [part for part in ([name for name in curves if name not in correlation], correlation) if part]
    legend = math.ceil(max(map(len, parts), default=0) / 2)  # lines
    figure = _figure(PAGE if len(parts) == 2 else COLUMN, 2.2 + 0.14 * legend + (0.2 if title else 0))
    upper = "correlation or share" if any(name.endswith("accuracy") for name in correlation) else "correlation"
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
        ax.set(xlabel="epoch", ylabel=upper if part is correlation else "loss or error")
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
def heatmap(
    matrix: pd.DataFrame,
    *,
    label: str = "SROCC",
    labels: tuple[str, str] = ("", ""),
    marked: pd.DataFrame | None = None,
    limits: tuple[float, float] | None = None,
    title: str | None = None,
) -> Figure:
    """A matrix of numbers as colours with the numbers in them, for example trained on × tested on.

    Args:
        matrix: names of rows and columns are its index and columns; NaN leaves a cell empty.
        label: of the colours.
        labels: of the vertical and the horizontal axis.
        marked: of the same shape, texts to stand behind the numbers, or booleans for stars; to be explained in the title.
        limits: values of the first and last colour; by default the smallest and largest.
        title: say here what the scores are, above all if they are synthetic labels.
    """
    if matrix.empty:
        raise ValueError("the matrix is empty")
    if marked is not None and marked.shape != matrix.shape:
        raise ValueError(f"marked must have the shape {matrix.shape} of the matrix, got {marked.shape}")
    behind = pd.DataFrame("", matrix.index, matrix.columns) if marked is None else marked
    marks = behind.map(lambda mark: mark if isinstance(mark, str) else "*" * bool(mark)).to_numpy()
    values = matrix.to_numpy(dtype=float)
    texts = [
        ["" if math.isnan(v) else f"{v:.3f}{mark}" for v, mark in zip(*row, strict=True)]
        for row in zip(values, marks, strict=True)
    ]
    rows, columns = matrix.shape
    width = 1.5 + 0.065 * max(len(str(name)) for name in matrix.index) + 0.62 * columns
    figure = _figure(min(width, PAGE), 0.9 + 0.24 * rows + (0.2 * len(title.splitlines()) if title else 0))
    ax = figure.subplots()
    low, high = limits or (np.nanmin(values), np.nanmax(values))
    seaborn.heatmap(
        matrix.astype(float), ax=ax, annot=np.array(texts), fmt="", vmin=low, vmax=high, cmap="viridis",
        linewidths=0.5, annot_kws={"size": 7}, cbar_kws={"label": label},
    )  # fmt: skip
    ax.grid(False)
    ax.tick_params(length=0)
    ax.tick_params(axis="x", rotation=30 if columns > 3 else 0)
    ax.tick_params(axis="y", rotation=0)
    ax.set(ylabel=labels[0], xlabel=labels[1], title=title)
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


@_styled
def agreement_matrix(
    matrix: pd.DataFrame, *, label: str = "Spearman correlation", title: str | None = None, width: float = PAGE * 0.75
) -> Figure:
    """A square table of correlations as a heat map with its numbers, for example how far metrics agree.

    Args:
        matrix: (n, n), rows and columns of the same names in the same order, values in [-1, 1].
        label: of the colour bar.
        title: say here what was correlated, above all if it is synthetic.
        width: of the figure in inches.
    """
    names = list(matrix.columns)
    if not names or list(matrix.index) != names:
        raise ValueError(f"rows and columns must have the same names, got {list(matrix.index)} and {names}")
    values = matrix.to_numpy(dtype=float)
    if not (np.abs(values) <= 1 + 1e-9).all():  # NaN fails too
        raise ValueError("correlations must lie in [-1, 1]")
    figure = _figure(width, width * 0.86 + (0.2 if title else 0))
    ax = figure.subplots()
    low = min(math.floor(10 * values.min()) / 10, 0.9)
    shown = ax.imshow(values, vmin=low, vmax=1, cmap="viridis", aspect="auto")  # the layout cuts names off square axes
    for (row, column), value in np.ndenumerate(values):
        dark = (value - low) / (1 - low) < 0.6
        text = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else "1"
        ax.text(column, row, text, ha="center", va="center", size=6.5, color="white" if dark else "black")
    ax.set_xticks(range(len(names)), labels=names, rotation=45, ha="left", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), labels=names)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    figure.colorbar(
        shown, ax=ax, label=label, shrink=0.8, ticks=MaxNLocator(6, steps=[1, 2, 5, 10])
    ).outline.set_visible(False)
    figure.suptitle(title)
    return figure


@_styled
def label_histograms(
    counts: pd.DataFrame,
    *,
    labels: tuple[str, str] = ("distortion as measured, share of its largest", "rank"),
    title: str | None = None,
) -> Figure:
    """What equalisation does to labels: a panel for each of them, its histogram before (outline) and after (filled).

    Args:
        counts: `label_counts`: a row per label and bin, with `label`, `low`, `high`, `before`, `after`.
        labels: of the two histograms.
        title: say here that the labels are synthetic, if they are.
    """
    _check_columns(counts, ["label", "low", "high", "before", "after"])
    parts = list(counts.groupby("label", sort=False))
    columns = min(4, len(parts))
    rows = -(-len(parts) // columns)
    figure = _figure(PAGE, 1.25 * rows + (0.75 if title else 0.5))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for ax, (name, part) in zip(grid.flat, parts, strict=False):
        edges = [*part["low"], part["high"].iloc[-1]]
        ax.stairs(part["after"], edges, fill=True, color=_cycle_colours(1)[0], alpha=0.6, label=labels[1])
        if part["before"].notna().all():
            ax.stairs(part["before"], edges, color="#555555", linewidth=1.0, label=labels[0])
        ax.set(title=name, yticks=[], xlim=(edges[0], edges[-1]))
        ax.set_ylim(bottom=0)
    for place, ax in enumerate(grid.flat):
        ax.tick_params(labelbottom=place + columns >= len(parts))  # where no panel follows below
        if place >= len(parts):
            ax.set_axis_off()
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(title)
    return figure
