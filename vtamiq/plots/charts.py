"""Charts of scores and results. Say in the title what the scores are, above all if they are synthetic labels.

A table without a column that is drawn, without rows, or with two rows for one point raises a ValueError.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vtamiq.plots.style import (
    COLUMN,
    PAGE,
    TITLE,
    check_columns,
    check_length,
    cycle_colours,
    legend_below,
    name_rows,
    new_figure,
    series_looks,
    styled,
    use_powers_of_two,
)

NAMES = {
    "srocc": "SROCC", "krocc": "KROCC", "plcc": "PLCC", "plcc_fitted": "PLCC fitted", "rmse_fitted": "RMSE fitted",
    "n": "n", "mae": "MAE", "pearson": "Pearson", "train": "training", "val": "validation",
    "seconds": "seconds per pair", "num_patches": "patches per image",
}  # fmt: skip
STATISTICS = ("srocc", "krocc", "plcc", "plcc_fitted", "rmse_fitted", "n")
MAX_MARKED = 25  # epochs; curves of more are lines without markers


@styled
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
    """Draw predictions against scores, with the fitted curve.

    Args:
        prediction, score: (n,) each.
        fit: from predictions to scores, such as `LogisticFit`; a fit that failed is left out.
        groups: (n,) names, for example of distortions; each gets a colour and marker, filled and open by turns.
        labels: of the two axes.
        statistics: as `correlations` returns them; those of `STATISTICS` stand beside the axes.
    """
    x, y = np.asarray(prediction, dtype=float), np.asarray(score, dtype=float)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(f"prediction and score must be (n,) alike and not empty, got {x.shape} and {y.shape}")
    finite = np.isfinite(x) & np.isfinite(y)
    if not finite.all():
        raise ValueError(f"{(~finite).sum()} of {len(x)} pairs are not finite, the first at {np.argmin(finite)}")
    names = np.full(len(x), "") if groups is None else np.array([str(name) for name in groups])
    check_length("groups", names, len(x))
    kinds = list(dict.fromkeys(names))
    numbers = [] if statistics is None else _statistics_lines(statistics)
    entries = len(kinds) if len(kinds) > 1 else 0

    figure = new_figure(COLUMN + 1.4 * bool(entries or numbers), max(2.7, 0.12 * (entries + len(numbers)) + 0.6))
    ax = figure.subplots()
    size = np.clip(4000 / len(x), 6, 14)
    for kind, look in zip(kinds, _point_looks(len(kinds)), strict=True):
        ax.scatter(x[names == kind], y[names == kind], s=size, label=kind, rasterized=len(x) > 2000, **look)
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


def _point_looks(count: int) -> list[dict[str, Any]]:
    """Looks of groups of points: filled in the first turn of the colours, open in the second, and so on."""
    looks = []
    for k, look in enumerate(series_looks(count)):
        opened = k // len(rcParams["axes.prop_cycle"]) % 2
        face, line = (look["color"], 0 if opened else 0.75), 0.9 if opened else 0.4
        looks.append({"marker": look["marker"], "facecolor": face, "edgecolor": look["color"], "linewidth": line})
    return looks


def _statistics_lines(statistics: Mapping[str, float]) -> list[str]:
    """Names and values of the known statistics, as lines of equal width."""
    known = {NAMES[key]: statistics[key] for key in STATISTICS if key in statistics}
    if not known:
        raise ValueError(f"statistics has none of {', '.join(STATISTICS)}; it has {', '.join(statistics)}")
    texts = {name: f"{int(value):,}" if name == "n" else f"{value:.3f}" for name, value in known.items()}
    wide, long = max(map(len, texts)), max(map(len, texts.values()))
    return [f"{name:<{wide}} {text:>{long}}" for name, text in texts.items()]


@styled
def learning_curves(history: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Draw losses and errors at the left, correlations at the right, over epochs; the best `val_srocc` is marked.

    Args:
        history: columns `epoch`, `val_srocc` and others that start with `train_` or `val_`, NaN where nothing was
            measured. Those that end in srocc, krocc, plcc or accuracy (share of preferences predicted) stand at the right.
    """
    check_columns(history, ["epoch", "val_srocc"])
    curves = [name for name in history if str(name).startswith(("train_", "val_")) and history[name].notna().any()]
    right = [name for name in curves if name.endswith(("srocc", "krocc", "plcc", "accuracy"))]
    parts = [part for part in ([name for name in curves if name not in right], right) if part]
    legend = math.ceil(max(map(len, parts), default=0) / 2)  # lines
    figure = new_figure(PAGE if len(parts) == 2 else COLUMN, 2.2 + 0.14 * legend, title)
    shares = "correlation or share" if any(name.endswith("accuracy") for name in right) else "correlation"
    colours = dict(zip(curves, cycle_colours(len(curves)), strict=True))
    for ax, part in zip(figure.subplots(1, len(parts), squeeze=False).flat, parts, strict=True):
        for name in part:
            known = history[["epoch", name]].dropna()
            kind, _, what = name.partition("_")
            label = f"{NAMES[kind]} {NAMES.get(what, what.replace('_', ' '))}"
            dashed = "--" if name.startswith("val_") and part is not right else "-"
            look = {"color": colours[name], "marker": "o" if len(known) <= MAX_MARKED else None}
            ax.plot(known["epoch"], known[name], dashed, label=label, **look)
        if "val_srocc" in colours:
            epoch, srocc = history.loc[history["val_srocc"].idxmax(), ["epoch", "val_srocc"]]
            ax.axvline(epoch, color="#888888", linewidth=0.8, linestyle=":", zorder=1)
            if part is right:
                ax.plot(epoch, srocc, "*", color=colours["val_srocc"], markersize=9, zorder=4)
                ax.set_title(f"best epoch {epoch:g}: validation SROCC {srocc:.3f}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        ax.set(xlabel="epoch", ylabel=shares if part is right else "loss or error")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, handlelength=2)  # no curve lies there
    return figure


@styled
def draws_spread(table: pd.DataFrame) -> Figure:
    """Draw how much a score depends on the draw of patches, against their number, as a line with a band.

    Args:
        table: columns `num_patches`, `mean`, `low`, `high`: the spread of q over draws, and the edges of the band.
    """
    check_columns(table, ["num_patches", "mean", "low", "high"])
    figure = new_figure(COLUMN, 2.5)
    ax = figure.subplots()
    _draw_line(ax, table, "num_patches", "mean", ("low", "high"), *series_looks(1))
    use_powers_of_two(ax, sorted(table["num_patches"]))
    ax.set_ylim(bottom=0)
    ax.set(xlabel=NAMES["num_patches"], ylabel="standard deviation of q over draws")
    return figure


def _draw_line(
    ax: Axes, rows: pd.DataFrame, x: str, y: str, interval: tuple[str, str] | None, look: dict, label: str | None = None
) -> None:
    """A line in the order of x, with a band of the interval; points where y is NaN are left out."""
    rows = rows.dropna(subset=[y]).sort_values(x)
    if interval:
        ax.fill_between(rows[x], rows[interval[0]], rows[interval[1]], color=look["color"], alpha=0.2, linewidth=0)
    ax.plot(rows[x], rows[y], label=label, **look)


@styled
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
    """Draw horizontal bars, the largest value at the top, for example SROCC per distortion.

    Args:
        table: one row per bar.
        name, value: columns with the bars' names and lengths; rows without a length are left out.
        interval: two columns with the ends of an interval around each value.
        group: column that colours the bars, such as the family of a distortion.
        label: of the value axis; default the name of the column.
    """
    check_columns(table, [name, value, *(interval or ()), *([group] if group else [])])
    table = table.dropna(subset=[value]).sort_values(value, kind="stable").iloc[::-1]
    kinds = list(table[group].iloc[::-1].unique()) if group else [None]
    height = 0.6 + 0.155 * len(table) + TITLE * bool(title)
    figure = new_figure(COLUMN * (1.55 if group else 1.2), height)
    ax = figure.subplots()
    place = np.arange(len(table))
    for kind, colour in zip(kinds, cycle_colours(len(kinds)), strict=True):
        chosen = (table[group] == kind).to_numpy() if group else place >= 0
        ax.barh(place[chosen], table[value][chosen], height=0.7, color=colour, label=kind)
    ends = table[value].to_numpy()
    if interval is not None:
        low, high = (table[end].to_numpy() for end in interval)
        ax.hlines(place, low, high, color="black", linewidth=0.9)
        ends = np.maximum(ends, high)
    for y, end, number in zip(place, np.maximum(ends, 0), table[value], strict=True):
        ax.annotate(f"{number:.3f}", (end, y), (3, 0), textcoords="offset points", size=6.5, va="center")
    name_rows(ax, table[name])
    ax.margins(x=0.14)
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set(xlabel=label or value, title=title)
    if group:
        figure.legend(loc="outside right upper")
    return figure


@styled
def heatmap(
    matrix: pd.DataFrame,
    *,
    label: str = "SROCC",
    labels: tuple[str, str] = ("", ""),
    marked: pd.DataFrame | None = None,
    limits: tuple[float, float] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw a matrix of numbers as colours with the numbers in them, for example trained on × tested on.

    Args:
        matrix: names of rows and columns are its index and columns; NaN leaves a cell empty.
        labels: of the vertical and the horizontal axis.
        marked: of the same shape, texts to stand behind the numbers; to be explained in the title.
        limits: values of the first and last colour; by default the smallest and largest.
    """
    if matrix.empty:
        raise ValueError("the matrix is empty")
    if marked is not None and marked.shape != matrix.shape:
        raise ValueError(f"marked must have the shape {matrix.shape} of the matrix, got {marked.shape}")
    texts = matrix.astype(float).map(lambda value: "" if math.isnan(value) else f"{value:.3f}")
    if marked is not None:
        texts = texts + np.where(texts == "", "", marked)
    rows, columns = matrix.shape
    width = 1.5 + 0.065 * max(len(str(name)) for name in matrix.index) + 0.62 * columns
    figure = new_figure(min(width, PAGE), 0.9 + 0.24 * rows + TITLE * len((title or "").splitlines()))
    ax = figure.subplots()
    low, high = limits or (None, None)
    _draw_cells(ax, matrix, texts, 7, vmin=low, vmax=high, linewidths=0.5, cbar_kws={"label": label})
    ax.tick_params(axis="x", rotation=30 if columns > 3 else 0)
    ax.set(ylabel=labels[0], xlabel=labels[1], title=title)
    return figure


@styled
def agreement_matrix(matrix: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Draw a square table of Spearman correlations with its numbers, for example how far metrics agree.

    Args:
        matrix: (n, n) with names, values in [-1, 1].
    """
    values = matrix.to_numpy(dtype=float)
    if not (np.abs(values) <= 1 + 1e-9).all():  # NaN fails too
        raise ValueError("correlations must lie in [-1, 1]")
    texts = matrix.map(lambda value: f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else "1")
    width = PAGE * 0.75
    figure = new_figure(width, width * 0.86, title)
    ax = figure.subplots()
    low = min(math.floor(10 * values.min()) / 10, 0.9)
    bar = {"label": "Spearman correlation", "shrink": 0.8, "ticks": MaxNLocator(6, steps=[1, 2, 5, 10])}
    _draw_cells(ax, matrix, texts, 6.5, vmin=low, vmax=1, cbar_kws=bar)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set_xticks(ax.get_xticks(), labels=matrix.columns, rotation=45, ha="left", rotation_mode="anchor")
    ax.set(xlabel="", ylabel="")
    return figure


def _draw_cells(ax: Axes, matrix: pd.DataFrame, texts: pd.DataFrame, size: float, **options: Any) -> None:
    seaborn.heatmap(
        matrix.astype(float), ax=ax, annot=texts, fmt="", cmap="viridis", annot_kws={"size": size},
        xticklabels=True, yticklabels=True, **options,
    )  # fmt: skip
    ax.grid(False)
    ax.tick_params(length=0)
    ax.tick_params(axis="y", rotation=0)


@styled
def label_histograms(counts: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Show what equalisation does to labels: of each its histogram before (outline) and after (filled).

    Args:
        counts: `label_counts`: a row per label and bin, with `label`, `low`, `high`, `before`, `after`.
    """
    check_columns(counts, ["label", "low", "high", "before", "after"])
    parts = list(counts.groupby("label", sort=False))
    columns = min(4, len(parts))
    rows = -(-len(parts) // columns)
    figure = new_figure(PAGE, 1.25 * rows + 0.5, title)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
    for place, (ax, (name, part)) in enumerate(zip(axes, parts, strict=False)):
        edges = [*part["low"], part["high"].iloc[-1]]
        ax.stairs(part["after"], edges, fill=True, color=cycle_colours(1)[0], alpha=0.6, label="rank")
        if part["before"].notna().all():
            label = "distortion as measured, share of its largest"
            ax.stairs(part["before"], edges, color="#555555", linewidth=1.0, label=label)
        ax.set(title=name, yticks=[], xlim=(edges[0], edges[-1]))
        ax.set_ylim(bottom=0)
        ax.tick_params(labelbottom=place + columns >= len(parts))  # where no panel follows below
    for ax in axes[len(parts) :]:
        ax.set_axis_off()
    legend_below(figure)
    return figure


@styled
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
    """Draw a metric against a setting, such as SROCC against the number of patches, and beside it what it costs.

    Args:
        table: a row per setting and series; the cost is not drawn where it is NaN.
        x, value: columns with the setting, a number, and the metric.
        interval: two columns with the ends of an interval around each value, drawn as a band.
        cost: column for the panel at the right; None leaves it out.
        series: column that tells lines apart, such as the database.
        labels: column → name on its axis, where it is to be another one.
        logarithmic: the setting in powers of 2, the cost in powers of 10.
    """
    panels = [value, cost] if cost else [value]
    check_columns(table, [x, *panels, *(interval or ()), *([series] if series else [])])
    _check_single(table, [x, *([series] if series else [])])
    names = NAMES | dict(labels or {})
    parts = list(table.groupby(series, sort=False)) if series else [(None, table)]
    figure = new_figure(PAGE if cost else COLUMN, 2.4 + _legend_height(len(parts) if series else 0), title)
    for ax, column in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        for (kind, part), look in zip(parts, series_looks(len(parts)), strict=True):
            _draw_line(ax, part, x, column, interval if column == value else None, look, kind)
        ax.set(xlabel=names.get(x, x), ylabel=names.get(column, column))
        if logarithmic:
            use_powers_of_two(ax, sorted(table[x].unique()))
        elif pd.api.types.is_integer_dtype(table[x]):
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if column == cost and logarithmic:
            ax.set_yscale("log")
    legend_below(figure)
    return figure


def _legend_height(entries: int) -> float:
    return 0.16 * -(-entries // 3)


@styled
def variants(
    table: pd.DataFrame,
    *,
    value: str = "srocc",
    interval: tuple[str, str] | None = ("srocc_low", "srocc_high"),
    baseline: str | None = None,
    label: str | None = None,
    title: str | None = None,
) -> Figure:
    """Draw a metric of variants of the network or its training, such as parts left out, with its intervals.

    Args:
        table: a row per `variant`, from top to bottom.
        value, interval: columns with the metric, and with the ends of an interval around it.
        baseline: the variant whose value a line marks.
    """
    check_columns(table, ["variant", value, *(interval or ())])
    _check_single(table, ["variant"])
    names, y = list(table["variant"]), np.arange(len(table))
    if baseline is not None and baseline not in names:
        raise ValueError(f"the baseline {baseline!r} is none of the variants {', '.join(map(str, names))}")
    figure = new_figure(COLUMN * 1.3, 0.6 + 0.22 * len(names), title)
    ax = figure.subplots()
    (look,) = series_looks(1)
    if baseline is not None:
        ax.axvline(
            table[value].iloc[names.index(baseline)], color=look["color"], linewidth=0.8, linestyle=":", zorder=1
        )
    if interval:
        ax.hlines(y, table[interval[0]], table[interval[1]], color=look["color"], linewidth=1.1)
    ax.plot(table[value], y, linestyle="", markersize=4, zorder=3, **look)
    for edge in y[1:] - 0.5:
        ax.axhline(edge, color="#E4E4E4", linewidth=0.5, zorder=0)
    name_rows(ax, names)
    ax.set(xlabel=label or NAMES.get(value, value))
    return figure


def _check_single(table: pd.DataFrame, columns: list[str]) -> None:
    repeated = table.loc[table.duplicated(columns), columns]
    if len(repeated):
        row = repeated.iloc[0]
        raise ValueError(f"two rows for {', '.join(f'{key} {value}' for key, value in row.items())}")


@styled
def repeated_runs(
    table: pd.DataFrame, *, series: str = "method", joined: str | None = None, title: str | None = None
) -> Figure:
    """Draw the SROCC of runs with other seeds or splits: every run as a point, over a box from quartile to quartile.

    The line in the box is the median, whiskers reach to the extremes.

    Args:
        table: a row per run, `database` and series, with `srocc`; runs where it is NaN are left out.
        series: column that tells boxes of one database apart.
        joined: column that tells runs apart: a line joins what one run has in neighbouring boxes of a database.
    """
    check_columns(table, ["srocc", "database", series, *([joined] if joined else [])])
    groups, kinds = list(table["database"].unique()), list(table[series].unique())
    wide = PAGE if len(groups) * len(kinds) > 8 else COLUMN
    figure = new_figure(wide, 2.4 + _legend_height(len(kinds)), title)
    ax = figure.subplots()
    width, points = 0.7 / len(kinds), []
    for place, (kind, look) in enumerate(zip(kinds, series_looks(len(kinds)), strict=True)):
        for k, name in enumerate(groups):
            rows = table[(table[series] == kind) & (table["database"] == name)].dropna(subset=["srocc"])
            if len(rows):
                middle = k + (place - (len(kinds) - 1) / 2) * width
                points.append(rows.assign(x=_draw_box(ax, rows["srocc"].to_numpy(), middle, width, look)))
        ax.plot([], [], linestyle="", label=kind, **look)
    if joined and points:
        for _, run in pd.concat(points).groupby(["database", joined], sort=False):
            ax.plot(run["x"], run["srocc"], color="0.7", linewidth=0.6, zorder=1)
    ax.set_xticks(range(len(groups)), labels=groups)
    ax.set_xlim(-0.5, len(groups) - 0.5)
    ax.tick_params(axis="x", length=0, rotation=30 if len(groups) > 6 else 0)
    ax.grid(False, axis="x")
    ax.set(ylabel="SROCC")
    legend_below(figure)
    return figure


def _draw_box(ax: Axes, runs: np.ndarray, x: float, width: float, look: dict[str, Any]) -> np.ndarray:
    """Draw a box and the points of its runs; returns where the points stand."""
    ink = {"color": look["color"], "linewidth": 0.9}
    parts = {"boxprops": ink, "whiskerprops": ink, "capprops": ink, "medianprops": ink | {"linewidth": 1.8}}
    ax.boxplot(runs, positions=[x], widths=0.75 * width, whis=(0, 100), showfliers=False, manage_ticks=False, **parts)
    beside = x + (np.arange(len(runs)) * 0.618034 % 1 - 0.5) * 0.45 * width  # points of equal value stay apart
    ax.plot(beside, runs, linestyle="", alpha=0.6, markersize=2.5, markeredgewidth=0, **look)
    return beside
