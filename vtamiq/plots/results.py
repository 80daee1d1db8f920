"""Figures of results over settings: number of patches, parts left out, and training repeated with other seeds.

Like those of `vtamiq.plots.charts`, in the same style, for `save_figure`. Tables hold one row per result; say in the
title what the scores are, above all if they are synthetic labels.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from vtamiq.plots.charts import COLUMN, PAGE, _check_columns, _cycle_colours, _figure, _markers, _styled

__all__ = ["ablation_curve", "repeated_runs", "variants"]

NAMES = {"srocc": "SROCC", "krocc": "KROCC", "plcc": "PLCC", "plcc_fitted": "PLCC fitted", "rmse_fitted": "RMSE fitted"}
NAMES |= {"rmse": "RMSE", "seconds": "seconds per pair", "num_patches": "patches per image"}
SPREAD = 0.7  # of the room between two rows or columns, what is shared out among the things in one


@_styled
def ablation_curve(
    table: pd.DataFrame,
    *,
    x: str = "num_patches",
    value: str = "srocc",
    interval: tuple[str, str] | None = ("srocc_low", "srocc_high"),
    cost: str | None = "seconds",
    series: str | None = None,
    labels: Mapping[str, str] | None = None,
    logarithmic: bool = True,
    title: str | None = None,
) -> Figure:
    """A metric against a setting, such as SROCC against the number of patches, and beside it what the setting costs.

    Args:
        table: a row per setting and series; the cost is not drawn where it is NaN.
        x, value: columns with the setting, a number, and the metric.
        interval: two columns with the ends of an interval around each value, drawn as a band.
        cost: column for the panel at the right; None leaves it out.
        series: column that tells lines apart, such as the database.
        labels: column → name on its axis, where it is to be another one.
        logarithmic: the setting in powers of 2, the cost in powers of 10.

    Raises:
        ValueError: a missing column, an empty table, or two rows for one point of a line.
    """
    wanted = [x, value, *(interval or ()), *([cost] if cost else []), *([series] if series else [])]
    _check_columns(table, wanted)
    _check_single(table, [x, *([series] if series else [])])
    names = NAMES | dict(labels or {})
    parts = list(table.groupby(series, sort=False)) if series else [(None, table)]
    rows = -(-len(parts) // 3) if series else 0  # of the legend
    figure = _figure(PAGE if cost else COLUMN, 2.4 + 0.16 * rows + (0.2 if title else 0))
    axes = figure.subplots(1, 2 if cost else 1, squeeze=False)[0]
    looks = zip(_cycle_colours(len(parts)), _markers(len(parts)), strict=True)
    for (kind, part), (colour, marker) in zip(parts, looks, strict=True):
        part = part.sort_values(x)
        if interval:
            axes[0].fill_between(part[x], part[interval[0]], part[interval[1]], color=colour, alpha=0.18, linewidth=0)
        for ax, column in zip(axes, [value, *([cost] if cost else [])], strict=True):
            known = part.dropna(subset=[column])
            ax.plot(known[x], known[column], color=colour, marker=marker, label=kind)
    for ax, column in zip(axes, [value, cost], strict=False):
        ax.set(xlabel=names.get(x, x), ylabel=names.get(column, column))
        if logarithmic:
            _powers_of_two(ax, sorted(table[x].unique()))
        elif pd.api.types.is_integer_dtype(table[x]):
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if cost and logarithmic:
        axes[1].set_yscale("log")
    if series:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(3, len(parts)))
    figure.suptitle(title)
    return figure


def _powers_of_two(ax: Axes, ticks: Sequence[float]) -> None:
    """A logarithmic axis with its values as they are; every second one where they are many."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(ticks[:: 1 + len(ticks) // 9])


@_styled
def variants(
    table: pd.DataFrame,
    *,
    name: str = "variant",
    value: str = "srocc",
    interval: tuple[str, str] | None = ("srocc_low", "srocc_high"),
    group: str | None = None,
    baseline: str | None = None,
    label: str | None = None,
    title: str | None = None,
) -> Figure:
    """A metric of variants of the network or its training, such as parts left out, as points with their intervals.

    Args:
        table: a row per variant and group; variants stand from top to bottom in the order of their first rows.
        name, value: columns with the variants' names and the metric.
        interval: two columns with the ends of an interval around each value.
        group: column that tells points of one variant apart, such as the database.
        baseline: name of the variant that all others are compared with; a line marks its value in each group.
        label: of the value axis.

    Raises:
        ValueError: a missing column, an empty table, a baseline that is no variant, or two rows for one point.
    """
    _check_columns(table, [name, value, *(interval or ()), *([group] if group else [])])
    _check_single(table, [name, *([group] if group else [])])
    order = list(table[name].unique())
    if baseline is not None and baseline not in order:
        raise ValueError(f"the baseline {baseline!r} is none of the variants {', '.join(map(str, order))}")
    parts = list(table.groupby(group, sort=False)) if group else [(None, table)]
    figure = _figure(COLUMN * 1.3, 0.6 + len(order) * (0.12 + 0.1 * len(parts)) + (0.2 if title else 0))
    ax = figure.subplots()
    looks = zip(_cycle_colours(len(parts)), _markers(len(parts)), _shares(len(parts)), strict=True)
    for (kind, part), (colour, marker, shift) in zip(parts, looks, strict=True):
        y = np.array([order.index(variant) for variant in part[name]]) + shift
        if baseline is not None:
            for level in part.loc[part[name] == baseline, value]:
                ax.axvline(level, color=colour, linewidth=0.8, linestyle=":", zorder=1)
        if interval:
            ax.hlines(y, part[interval[0]], part[interval[1]], color=colour, linewidth=1.1)
        ax.plot(part[value], y, linestyle="", color=colour, marker=marker, markersize=4, label=kind, zorder=3)
    for edge in np.arange(len(order) - 1) + 0.5:
        ax.axhline(edge, color="#E4E4E4", linewidth=0.5, zorder=0)
    ax.set_yticks(range(len(order)), labels=order)
    ax.set_ylim(len(order) - 0.5, -0.5)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel=label or NAMES.get(value, value))
    if group:
        figure.legend(loc="outside lower center", ncols=min(3, len(parts)))
    figure.suptitle(title)
    return figure


@_styled
def repeated_runs(
    table: pd.DataFrame,
    *,
    values: Sequence[str] = ("srocc",),
    group: str = "database",
    series: str | None = "method",
    joined: str | None = None,
    labels: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Metrics over repetitions with other seeds or splits: every run as a point, over a box from quartile to quartile.

    The line in the box is the median, whiskers reach to the lowest and the highest run. A panel for each metric.

    Args:
        table: a row per run, group and series.
        values: columns with the metrics; runs where one is NaN are left out of its panel.
        group: column that shares out the horizontal axis, such as the database.
        series: column that tells boxes of one group apart, such as the method.
        joined: column that tells runs apart: a line joins what one run has in neighbouring boxes of a group.
        labels: column → name on its axis, where it is to be another one.

    Raises:
        ValueError: a missing column, an empty table, or no metric.
    """
    if isinstance(values, str) or not values:
        raise ValueError(f"values must be names of columns, got {values!r}")
    _check_columns(table, [*values, group, *(column for column in (series, joined) if column)])
    names = NAMES | dict(labels or {})
    groups = list(table[group].unique())
    kinds = list(table[series].unique()) if series else [None]
    shares, width = _shares(len(kinds)), SPREAD / len(kinds)
    wide = PAGE if len(values) > 1 or len(groups) * len(kinds) > 8 else COLUMN
    figure = _figure(wide, 2.4 + (0.16 * -(-len(kinds) // 3) if series else 0) + (0.2 if title else 0))
    axes = figure.subplots(1, len(values), squeeze=False)[0]
    looks = dict(zip(kinds, zip(_cycle_colours(len(kinds)), _markers(len(kinds)), shares, strict=True), strict=True))
    for ax, value in zip(axes, values, strict=True):
        points: list[pd.DataFrame] = []
        for kind, (colour, marker, shift) in looks.items():
            of_kind = table if kind is None else table[table[series] == kind]
            for place, which in enumerate(groups):
                rows = of_kind[of_kind[group] == which].dropna(subset=[value])
                if len(rows):
                    x = _box(ax, rows[value].to_numpy(), place + shift, width, colour, marker)
                    points.append(rows.assign(x=x, place=place))
            ax.plot([], [], linestyle="", color=colour, marker=marker, label=kind)
        if joined and points:
            for _, run in pd.concat(points).groupby(["place", joined], sort=False):
                ax.plot(run["x"], run[value], color="0.7", linewidth=0.6, zorder=1)
        ax.set_xticks(range(len(groups)), labels=groups)
        ax.set_xlim(-0.5, len(groups) - 0.5)
        ax.tick_params(axis="x", length=0, rotation=30 if len(groups) * len(values) > 6 else 0)
        ax.grid(False, axis="x")
        ax.set(ylabel=names.get(value, value))
    if series:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(3, len(kinds)))
    figure.suptitle(title)
    return figure


def _box(ax: Axes, runs: np.ndarray, x: float, width: float, colour: str, marker: str) -> np.ndarray:
    """Returns where the points of the runs stand."""
    ink = {"color": colour, "linewidth": 0.9}
    look = {"boxprops": ink, "whiskerprops": ink, "capprops": ink, "medianprops": ink | {"linewidth": 1.8}}
    ax.boxplot(runs, positions=[x], widths=0.75 * width, whis=(0, 100), showfliers=False, manage_ticks=False, **look)
    beside = (np.arange(len(runs)) * 0.618034 % 1 - 0.5) * 0.45 * width  # points of equal value stay apart
    ax.plot(x + beside, runs, linestyle="", marker=marker, color=colour, alpha=0.6, markersize=2.5, markeredgewidth=0)
    return x + beside


def _shares(count: int) -> np.ndarray:
    """Places of `count` things around the middle of a row or column."""
    return (np.arange(count) - (count - 1) / 2) * SPREAD / count


def _check_single(table: pd.DataFrame, columns: Sequence[str]) -> None:
    if table.duplicated(list(columns)).any():
        row = table.loc[table.duplicated(list(columns)), list(columns)].iloc[0]
        raise ValueError(f"two rows for {', '.join(f'{key} {value}' for key, value in row.items())}")
