"""The common style of all figures, what they are put together with, and how they are saved.

Figures hold no pyplot state: a notebook shows a returned figure once, and nothing leaks. Two environment variables, which
`python -m vtamiq reproduce --style FILE --format svg png pdf` sets for the notebooks, change all figures:
`VTAMIQ_FIGURE_STYLE` names a Matplotlib style file with changes to the common style, `VTAMIQ_FIGURE_FORMATS` the formats.
"""

import io
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache, wraps
from itertools import cycle, islice
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import pandas as pd
from matplotlib import rc_params_from_file, rcParams, style
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from vtamiq.images.reading import check_uint8_rgb
from vtamiq.utils.configs import did_you_mean
from vtamiq.utils.files import replacing, write_table, write_text

log = logging.getLogger(__name__)
P = ParamSpec("P")

STYLE = Path(__file__).with_name("vtamiq.mplstyle")
STYLE_VARIABLE, FORMATS_VARIABLE = "VTAMIQ_FIGURE_STYLE", "VTAMIQ_FIGURE_FORMATS"
PAGE, COLUMN = 7.0, 3.5  # inches, text widths of a page with two columns
TITLE = 0.2  # inches
MARKERS = "osD^vPX"
METADATA = {  # nothing that differs from one time to the next
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
MAX_BYTES = {"svg": 1_500_000, "png": 1_000_000}
USUAL_DPI, MIN_DPI = 200, 50


# ----------------------------------------------------------------------------------------------------------------- style


def common_style() -> AbstractContextManager[None]:
    """Draw in the common style, with the changes of the user's own style file if one is set, while the block lasts."""
    own = os.environ.get(STYLE_VARIABLE)
    return style.context([STYLE, read_style(own)] if own else STYLE)


def read_style(path: str | Path) -> dict[str, Any]:
    """Read the settings of a Matplotlib style file; ValueError if it has none, or one with a bad value."""
    try:
        settings = rc_params_from_file(str(Path(path)), fail_on_error=True, use_default_template=False)
    except ValueError as error:
        raise ValueError(f"{path} is no Matplotlib style file: {error}") from error
    if not settings:
        raise ValueError(f"{path} has no setting in it, such as `font.size: 9`")
    return dict(settings)


def figure_settings() -> dict[str, Any]:
    """Formats and style changes that the environment asks for, as plain values; ValueError or OSError if they are bad."""
    own = os.environ.get(STYLE_VARIABLE)
    changes = {name: str(value) for name, value in read_style(own).items()} if own else {}
    return {"formats": _check_formats(None), "style": changes}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Make a function draw in the common style, with a layout that stays: drawn again it gives the same bytes."""

    @wraps(draw)
    def drawn(*args: P.args, **options: P.kwargs) -> Figure:
        with common_style():
            figure = draw(*args, **options)
            _fix_layout(figure)
        return figure

    return drawn


def _fix_layout(figure: Figure) -> None:
    """Left alone, the constrained layout creeps with every drawing; its last bits differ from process to process."""
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        for _ in range(3):
            engine.execute(figure)
        figure.set_layout_engine("none")
        for ax in figure.axes:
            ax.set_position(np.round(ax.get_position(original=True).bounds, 12).tolist(), which="original")


# ---------------------------------------------------------------------------------------------------------------- saving


def save_figure(
    figure: Figure,
    folder: str | Path,
    name: str,
    data: pd.DataFrame | Mapping[str, Any] | None = None,
    *,
    formats: Sequence[str] | None = None,
    dpi: float | None = None,
) -> list[Path]:
    """Write a figure and the data that it was drawn from; the same figure gives the same bytes.

    Args:
        folder: created if missing.
        name: file name without an ending.
        data: a table becomes `name.csv` (without its index), a mapping `name.json` (NaN becomes null).
        formats: "svg", "png" and "pdf" (with embedded fonts), all or some; default SVG and PNG, or those that the
            environment variable `VTAMIQ_FIGURE_FORMATS` names.
        dpi: resolution of the PNG and of pictures within the others; default 200, or less where PNG or SVG would
            exceed 1 and 1.5 MB, as with many photographs.

    Returns:
        The paths, the one of the data last.

    Raises:
        ValueError: a name with a folder or ending, or an unknown format.
    """
    if not name or Path(name).name != name or name.endswith((".svg", ".png", ".pdf", ".csv", ".json")):
        raise ValueError(f"name must be a plain file name without ending, got {name!r}")
    formats = _check_formats(formats)
    with common_style():
        drawn = {kind: _draw(figure, kind, dpi) for kind in formats} if dpi else _draw_small(figure, formats)
    paths = [Path(folder, f"{name}.{kind}") for kind in formats]
    for path, content in zip(paths, drawn.values(), strict=True):
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    if isinstance(data, pd.DataFrame):
        paths.append(write_table(data, Path(folder, f"{name}.csv")))
    elif data is not None:
        paths.append(Path(folder, f"{name}.json"))
        write_text(paths[-1], json.dumps(_plain(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return paths


def _check_formats(formats: Sequence[str] | None) -> list[str]:
    formats = (os.environ.get(FORMATS_VARIABLE) or "svg png").split() if formats is None else formats
    if isinstance(formats, str) or not formats or not set(formats) <= set(METADATA):
        raise ValueError(f"formats of figures must be some of {', '.join(METADATA)}, got {formats!r}")
    return list(formats)


def _draw(figure: Figure, kind: str, dpi: float) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi, metadata=METADATA[kind])
    return buffer.getvalue()


def _draw_small(figure: Figure, formats: Sequence[str]) -> dict[str, bytes]:
    """All formats at the resolution that keeps SVG and PNG within `MAX_BYTES`, whichever of them are asked for."""
    dpi = USUAL_DPI
    while True:
        drawn = {kind: _draw(figure, kind, dpi) for kind in {*MAX_BYTES, *formats}}
        excess = max(len(drawn[kind]) / limit for kind, limit in MAX_BYTES.items())
        if excess <= 1 or dpi <= MIN_DPI:
            return {kind: drawn[kind] for kind in formats}
        dpi = max(MIN_DPI, math.floor(dpi * 0.95 / math.sqrt(excess)))  # bytes grow with the number of pixels
        log.info("drawing at %d dpi, to keep the files small", dpi)


def _plain(value: Any) -> Any:
    """Convert numbers and arrays of NumPy, tuples, paths and NaN to what JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float) else str(value)


# ----------------------------------------------------------------------------------------------------- figures and panels


class _ShownFigure(Figure):
    """A figure that a notebook shows as the value of a cell, also without Matplotlib's inline backend."""

    def _repr_png_(self) -> bytes:
        return _draw(self, "png", self.dpi)


def new_figure(width: float, height: float, title: str | None = None) -> Figure:
    """An empty figure of that size in inches; a title stands above and adds its own height."""
    figure = _ShownFigure(figsize=(width, height + TITLE * bool(title)))
    figure.suptitle(title)
    return figure


def picture_panels(
    count: int, columns: int, aspect: float, *, width: float = PAGE, captions: float = 0.26, title: str | None = None
) -> tuple[Figure, list[Axes]]:
    """A grid of bare panels for pictures of one aspect (height / width), with `captions` inches of text for each row."""
    rows = -(-count // columns)
    figure = new_figure(width, rows * (width / columns * aspect + captions), title)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        make_bare(ax)
    return figure, axes


def usual_columns(panels: int) -> int:
    return 2 if panels == 4 else min(panels, 3)


def make_bare(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def add_colour_bar(mappable: ScalarMappable, *, beside: Axes | None = None, **options: Any) -> Colorbar:
    """A bar without outline: close at the right of the panel `beside`, or where the layout has room."""
    if beside is not None:
        options["cax"] = beside.inset_axes((1.02, 0, 0.035, 1))
    bar = mappable.axes.figure.colorbar(mappable, **{"ticks": MaxNLocator(5)} | options)
    bar.outline.set_visible(False)
    return bar


def legend_below(figure: Figure) -> None:
    """One legend below all panels, of each label once; none where nothing has a label."""
    entries = {label: h for ax in figure.axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if entries:
        figure.legend(entries.values(), entries, loc="outside lower center", ncols=min(3, len(entries)))


def name_rows(ax: Axes, names: Sequence[str]) -> None:
    """Name rows at y = 0, 1, … from top to bottom."""
    ax.set_yticks(range(len(names)), labels=names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)


def use_powers_of_two(ax: Axes, ticks: Sequence[float]) -> None:
    """Make x logarithmic with these ticks, or every second one where they are many."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(ticks[:: 1 + len(ticks) // 9])


def cycle_colours(count: int) -> list[str]:
    return list(islice(cycle(rcParams["axes.prop_cycle"].by_key()["color"]), count))


def series_looks(count: int) -> list[dict[str, Any]]:
    """Colour and marker of each series; markers shift with every turn of the colours, so that pairs repeat late."""
    turn = len(rcParams["axes.prop_cycle"])
    markers = [MARKERS[(k % turn + k // turn) % len(MARKERS)] for k in range(count)]
    return [{"color": colour, "marker": marker} for colour, marker in zip(cycle_colours(count), markers, strict=True)]


def text_width(text: str, size: float) -> float:
    """Inches that a line takes in the font of the style."""
    return _width_in(findfont(FontProperties()), text, size)


@cache
def _width_in(font: str, text: str, size: float) -> float:
    return TextPath((0, 0), text, size=size).get_extents().width / 72 if text.strip() else 0.0


def tile(table: np.ndarray, gap: int) -> np.ndarray:
    """Join pictures (rows, columns, H, W, 3) to one, with `gap` white pixels between them."""
    before = gap // 2, gap - gap // 2
    cells = np.pad(table, ((0, 0), (0, 0), before, before, (0, 0)), constant_values=255)
    rows, columns, height, width, _ = cells.shape
    return cells.swapaxes(1, 2).reshape(rows * height, columns * width, 3)


# ---------------------------------------------------------------------------------------------------------------- checks


def check_images(images: Sequence[np.ndarray], least: int = 1) -> list[np.ndarray]:
    images = [check_uint8_rgb(image, f"image {k}") for k, image in enumerate(images)]
    if len(images) < least:
        raise ValueError(f"at least {least} images are needed, got {len(images)}")
    return images


def check_length(what: str, values: Sequence[Any], length: int) -> None:
    if len(values) != length:
        raise ValueError(f"{what}: {length} are needed, got {len(values)}")


def check_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in table:
            raise ValueError(f"the table has no column `{name}`{did_you_mean(name, table)}; it has {', '.join(table)}")
    if table.empty:
        raise ValueError("the table is empty")
