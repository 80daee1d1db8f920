"""Figures of attention: maps beside the images, grids of maps, and what DiffNet does to the channels.

Maps are as `vtamiq.attention.maps` makes them: (H, W) float, NaN where no patch lay, which is drawn in grey.
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
from vtamiq.plots.style import (
    PAGE,
    add_colour_bar,
    check_columns,
    check_images,
    check_length,
    legend_below,
    new_figure,
    picture_panels,
    series_looks,
    styled,
)

UNSEEN = "#C9C9C9"
UNSIGNED, DIVERGING = "magma", "PuOr_r"  # both stay apart for colour-blind readers
LIMIT = 99.0  # percentile of the values that gets the last colour; the few above share it
MAX_OUTLINE = 0.02  # share of pixels on the edge of a region: outlines of finer ones would hide the map below


def map_colours(signed: bool) -> Colormap:
    return colormaps[DIVERGING if signed else UNSIGNED].with_extremes(bad=UNSEEN)


def map_limits(values: Sequence[np.ndarray], signed: bool) -> tuple[float, float]:
    """First and last colour: 0 or minus the last one, and a high percentile of all the maps' (absolute) values."""
    known = np.concatenate([np.abs(v[np.isfinite(v)]) for v in values])
    high = np.percentile(known, LIMIT) or known.max() or 1.0
    return (-high if signed else 0.0), high


def _check_map(values: np.ndarray, shape: tuple[int, int], name: str) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.shape != shape:
        raise ValueError(f"map {name!r} must be {shape} like the images, got {values.shape}")
    if not np.isfinite(values).any():
        raise ValueError(f"map {name!r} has no value anywhere")
    return values


def _draw_map(ax: Axes, values: np.ndarray, limits: tuple[float, float]) -> AxesImage:
    return ax.imshow(values, vmin=limits[0], vmax=limits[1], cmap=map_colours(limits[0] < 0), interpolation="nearest")


def _outline(ax: Axes, region: np.ndarray) -> None:
    """A line around a region, on any ground; none around one so ragged that lines would hide what is below."""
    edges = (np.diff(region, axis=0) != 0).sum() + (np.diff(region, axis=1) != 0).sum()
    if region.any() and edges <= MAX_OUTLINE * region.size:
        lines = ax.contour(region.astype(float), levels=[0.5], colors="white", linewidths=0.7)
        lines.set_path_effects([withStroke(linewidth=1.5, foreground="black")])
        lines.set_rasterized(True)  # as paths they would take more bytes than all the maps


@styled
def pair_maps(
    images: Sequence[np.ndarray],
    maps: Mapping[str, np.ndarray],
    *,
    region: np.ndarray | None = None,
    notes: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw reference, distorted image and any maps of them, side by side.

    Every map has colours of its own: from 0 to its 99th percentile, or, where it has values below 0, from minus to plus
    that of its absolute values, white being 0.

    Args:
        images: reference and distorted, (H, W, 3) uint8.
        maps: title → (H, W).
        region: (H, W) bool, outlined in the distorted image and all maps unless it is too ragged for that.
        notes: title → what to say below that map, such as an AUC.
        title: say here what the model was trained on, above all if labels were synthetic.
    """
    images = check_images(images, least=2)[:2]
    shape, notes = images[0].shape[:2], notes or {}
    drawn = {name: _check_map(values, shape, name) for name, values in maps.items()}
    if region is not None and (region.shape != shape or region.dtype != bool):
        raise ValueError(f"region must be bool {shape} like the images, got {region.dtype} {region.shape}")
    if unknown := set(notes) - set(maps):
        raise ValueError(f"notes has {', '.join(sorted(unknown))}, which is none of the maps")
    captions = 0.4 if notes else 0.26
    figure, axes = picture_panels(2 + len(maps), 5, shape[0] / shape[1], captions=captions, title=title)
    for ax, image, name in zip(axes, images, ("reference", "distorted"), strict=False):
        ax.imshow(image)
        ax.set_title(name)
    for ax, (name, values) in zip(axes[2:], drawn.items(), strict=False):
        _draw_map(ax, values, map_limits([values], signed=name in SIGNED or np.nanmin(values) < 0))
        ax.set(title=name, xlabel=notes.get(name, ""))
    if region is not None:
        for ax in axes[1 : 2 + len(drawn)]:
            _outline(ax, region)
    return figure


@styled
def map_grid(
    maps: Sequence[Sequence[np.ndarray]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    notes: Sequence[Sequence[str]] | None = None,
    label: str = "",
    title: str | None = None,
) -> Figure:
    """Draw a table of maps in common colours, such as blocks × heads or images × stages of training.

    Args:
        maps: rows of (H, W), all of one size.
        notes: what to say below each map.
        title: say here what the model was trained on, above all if labels were synthetic.
    """
    check_length("rows of maps", maps, len(rows))
    for name, row in zip(rows, maps, strict=True):
        check_length(f"maps of row {name!r}", row, len(columns))
    if not len(rows) or not len(columns):
        raise ValueError("there is no map to draw")
    shape, places = np.shape(maps[0][0]), [(r, c) for r in range(len(rows)) for c in range(len(columns))]
    flat = [_check_map(maps[r][c], shape, f"{rows[r]}, {columns[c]}") for r, c in places]
    limits = map_limits(flat, signed=min(np.nanmin(values) for values in flat) < 0)
    aspect, width = shape[0] / shape[1], min(PAGE, 0.8 + 1.55 * len(columns))
    figure, axes = picture_panels(len(flat), len(columns), aspect, width=width, title=title)
    height = (width - 0.8) / len(columns) * aspect + (0.22 if notes else 0.06)
    figure.set_figheight(len(rows) * height + 0.2 + 0.22 * bool(title))
    for ax, values, (r, c) in zip(axes, flat, places, strict=True):
        drawn = _draw_map(ax, values, limits)
        ax.set_title(columns[c] if r == 0 else "")
        ax.set_ylabel(rows[r] if c == 0 else "")
        ax.set_xlabel(notes[r][c] if notes else "")
    add_colour_bar(drawn, ax=axes, label=label, fraction=0.2 / width, pad=0.01, aspect=30)
    return figure


@styled
def channel_gates(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Draw what DiffNet's channel attention does: gates of every block, and what it makes of each channel's difference.

    Above: the gate of every channel (sorted by the size of their difference) in every block. Below: size of the
    channels before the first block and after the last one of each group.

    Args:
        table: as `channel_attention` makes it.
        title: say here what the model was trained on, above all if labels were synthetic.
    """
    check_columns(table, ["group", "block", "channel", "gate", "before", "after"])
    gates = table.pivot_table(index=["group", "block"], columns="channel", values="gate")
    first = table[(table["group"] == table["group"].min()) & (table["block"] == 0)].set_index("channel")["before"].abs()
    order = first.sort_values(ascending=False, kind="stable").index
    figure = new_figure(PAGE, 2.7 + 0.16 * len(gates), title)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(0.3 + 0.16 * len(gates), 1.7))
    picture = upper.imshow(gates[order], aspect="auto", cmap="viridis", interpolation="nearest")
    add_colour_bar(picture, ax=upper, label="gate", ticks=MaxNLocator(4), fraction=0.04, pad=0.01)
    upper.set_yticks(range(len(gates)), labels=[f"group {g + 1}, block {b + 1}" for g, b in gates.index])
    upper.grid(False)
    upper.tick_params(length=0)
    place, groups = np.arange(len(order)), table["group"].unique()
    lower.bar(place, first[order], width=1, color=UNSEEN, label="difference that enters")
    for group, look in zip(groups, series_looks(len(groups)), strict=True):
        of_group = table[table["group"] == group]
        after = of_group[of_group["block"] == of_group["block"].max()].set_index("channel")["after"].abs()
        name = f"after the blocks of group {group + 1}"
        lower.plot(place, after[order], linestyle="", markersize=2.5, label=name, **look)
    lower.set(xlabel="channel, the largest difference first", ylabel="size", xlim=(-0.5, len(order) - 0.5))
    lower.set_ylim(bottom=0)
    legend_below(figure)
    return figure
