"""Figures of attention: maps beside the images, grids of maps, and what DiffNet does to the channels.

Like those of `vtamiq.plots.charts`, in the same style, for `save_figure`. Maps are as `vtamiq.attention.maps` makes them:
(H, W) float, NaN where no patch lay, which is drawn in grey.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from vtamiq.attention.maps import SIGNED
from vtamiq.plots.charts import (
    PAGE,
    _aspect,
    _check_columns,
    _check_images,
    _check_length,
    _cycle_colours,
    _figure,
    _markers,
    _panels,
    _styled,
)

__all__ = ["channel_gates", "map_grid", "pair_maps"]

UNSEEN = "#C9C9C9"
UNSIGNED, DIVERGING = "magma", "PuOr_r"  # both stay apart for colour-blind readers
LIMIT = 99.0  # percentile of the values that gets the last colour; the few above share it
MAX_OUTLINE = 0.02  # share of pixels on the edge of a region: outlines of finer ones would hide the map below


def _check_map(values: np.ndarray, shape: tuple[int, int], name: str) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.shape != shape:
        raise ValueError(f"map {name!r} must be {shape} like the images, got {values.shape}")
    if not np.isfinite(values).any():
        raise ValueError(f"map {name!r} has no value anywhere")
    return values


def _colours(signed: bool) -> Colormap:
    return colormaps[DIVERGING if signed else UNSIGNED].with_extremes(bad=UNSEEN)


def _limits(values: Sequence[np.ndarray], signed: bool) -> tuple[float, float]:
    """First and last colour: 0 or minus the last one, and a high percentile of all the maps' (absolute) values."""
    known = np.concatenate([np.abs(v[np.isfinite(v)]) for v in values])
    high = np.percentile(known, LIMIT) or known.max() or 1.0
    return (-high if signed else 0.0), high


def _draw_map(ax: Axes, values: np.ndarray, limits: tuple[float, float]) -> AxesImage:
    return ax.imshow(values, vmin=limits[0], vmax=limits[1], cmap=_colours(limits[0] < 0), interpolation="nearest")


def _outline(ax: Axes, region: np.ndarray) -> None:
    """A line around a region, on any ground; none around one so ragged that lines would hide what is below."""
    edges = (np.diff(region, axis=0) != 0).sum() + (np.diff(region, axis=1) != 0).sum()
    if region.any() and edges <= MAX_OUTLINE * region.size:
        lines = ax.contour(region.astype(float), levels=[0.5], colors="white", linewidths=0.7)
        lines.set_path_effects([withStroke(linewidth=1.5, foreground="black")])
        lines.set_rasterized(True)  # as paths they would take more bytes than all the maps


@_styled
def pair_maps(
    images: Sequence[np.ndarray],
    maps: Mapping[str, np.ndarray],
    *,
    region: np.ndarray | None = None,
    notes: Mapping[str, str] | None = None,
    columns: int = 5,
    title: str | None = None,
) -> Figure:
    """Reference, distorted image and any maps of them, side by side.

    Every map has colours of its own: from 0 to its 99th percentile, or, where it has values below 0, from minus to plus
    that of its absolute values, white being 0.

    Args:
        images: reference and distorted, (H, W, 3) uint8.
        maps: title → (H, W).
        region: (H, W) bool, outlined in the distorted image and all maps unless it is too ragged for that.
        notes: title → what to say below that map, such as an AUC.
        columns: panels in a row.
        title: above all; say here what the model was trained on, above all if labels were synthetic.
    """
    images = _check_images(images, least=2)[:2]
    shape, notes = images[0].shape[:2], notes or {}
    drawn = {name: _check_map(values, shape, name) for name, values in maps.items()}
    if region is not None and (region.shape != shape or region.dtype != bool):
        raise ValueError(f"region must be bool {shape} like the images, got {region.dtype} {region.shape}")
    if unknown := set(notes) - set(maps):
        raise ValueError(f"notes has {', '.join(sorted(unknown))}, which is none of the maps")
    rows = -(-(2 + len(maps)) // columns)
    figure, axes = _panels(rows, columns, PAGE, _aspect(images[0]), extra=0.4 if notes else 0.26)
    for ax, image, name in zip(axes, images, ("reference", "distorted"), strict=False):
        ax.imshow(image)
        ax.set_title(name)
    for ax, (name, values) in zip(axes[2:], drawn.items(), strict=False):
        _draw_map(ax, values, _limits([values], signed=name in SIGNED or np.nanmin(values) < 0))
        ax.set_title(name)
        ax.set_xlabel(notes.get(name, ""))
    for ax in axes[1 : 2 + len(drawn)] if region is not None else ():
        _outline(ax, region)
    _titled(figure, title)
    return figure


@_styled
def map_grid(
    maps: Sequence[Sequence[np.ndarray]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    notes: Sequence[Sequence[str]] | None = None,
    width: float | None = None,
    label: str = "",
    title: str | None = None,
) -> Figure:
    """A table of maps in common colours, such as blocks × heads or images × stages of training.

    Args:
        maps: rows of (H, W), all of one size.
        rows, columns: their names.
        notes: what to say below each map.
        width: of the figure in inches; default what the maps need, at most a page.
        label: of the colours.
        title: above all; say here what the model was trained on, above all if labels were synthetic.
    """
    _check_length("rows of maps", maps, len(rows))
    for name, row in zip(rows, maps, strict=True):
        _check_length(f"maps of row {name!r}", row, len(columns))
    if not len(rows) or not len(columns):
        raise ValueError("there is no map to draw")
    shape = np.shape(maps[0][0])
    table = [[_check_map(v, shape, f"{name}, {column}") for column, v in zip(columns, row, strict=True)]
             for name, row in zip(rows, maps, strict=True)]  # fmt: skip
    flat = [values for row in table for values in row]
    limits = _limits(flat, signed=min(np.nanmin(values) for values in flat) < 0)
    width = width or min(PAGE, 0.8 + 1.55 * len(columns))
    extra = 0.22 if notes else 0.06
    figure, axes = _panels(len(rows), len(columns), width, shape[0] / shape[1])
    figure.set_figheight(len(rows) * ((width - 0.8) / len(columns) * shape[0] / shape[1] + extra) + 0.2)
    for number, (ax, values) in enumerate(zip(axes, flat, strict=True)):
        row, column = divmod(number, len(columns))
        drawn = _draw_map(ax, values, limits)
        ax.set_title(columns[column] if row == 0 else "")
        ax.set_ylabel(rows[row] if column == 0 else "")
        ax.set_xlabel(notes[row][column] if notes else "")
    bar = figure.colorbar(drawn, ax=axes, ticks=MaxNLocator(5), label=label, fraction=0.2 / width, pad=0.01, aspect=30)
    bar.outline.set_visible(False)
    _titled(figure, title)
    return figure


def _titled(figure: Figure, title: str | None) -> None:
    if title:
        figure.set_figheight(figure.get_figheight() + 0.22)
        figure.suptitle(title)


@_styled
def channel_gates(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """What DiffNet's channel attention does: gates of every block, and what it makes of each channel's difference.

    Above: the gate of every channel (sorted by the size of their difference) in every block. Below: size of the
    channels before the first block and after the last one of each group.

    Args:
        table: as `channel_attention` makes it.
        title: say here what the model was trained on, above all if labels were synthetic.
    """
    _check_columns(table, ["group", "block", "channel", "gate", "before", "after"])
    gates = table.pivot_table(index=["group", "block"], columns="channel", values="gate")
    first = table[(table["group"] == table["group"].min()) & (table["block"] == 0)].set_index("channel")["before"].abs()
    order = first.sort_values(ascending=False, kind="stable").index
    figure = _figure(PAGE, 2.7 + 0.16 * len(gates))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(0.3 + 0.16 * len(gates), 1.7))
    picture = upper.imshow(gates[order], aspect="auto", cmap="viridis", interpolation="nearest")
    bar = figure.colorbar(picture, ax=upper, label="gate", ticks=MaxNLocator(4), fraction=0.04, pad=0.01)
    bar.outline.set_visible(False)
    upper.set_yticks(range(len(gates)), labels=[f"group {g + 1}, block {b + 1}" for g, b in gates.index])
    upper.grid(False)
    upper.tick_params(length=0)
    place = np.arange(len(order))
    lower.bar(place, first[order], width=1, color=UNSEEN, label="difference that enters")
    groups = table["group"].unique()
    for group, colour, marker in zip(groups, _cycle_colours(len(groups)), _markers(len(groups)), strict=True):
        of_group = table[table["group"] == group]
        after = of_group[of_group["block"] == of_group["block"].max()].set_index("channel")["after"].abs()
        look = {"color": colour, "marker": marker, "markersize": 2.5}
        lower.plot(place, after[order], linestyle="", label=f"after the blocks of group {group + 1}", **look)
    lower.set(xlabel="channel, the largest difference first", ylabel="size", xlim=(-0.5, len(order) - 0.5))
    lower.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=min(3, 1 + len(groups)))
    figure.suptitle(title)
    return figure
