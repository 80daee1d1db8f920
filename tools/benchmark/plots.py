"""Figures of what `benchmark` has measured: costs against settings, precisions, and speed against goals.

They show one machine on one day: say in the title which.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from vtamiq.plots.style import (
    COLUMN,
    PAGE,
    check_columns,
    cycle_colours,
    name_rows,
    new_figure,
    series_looks,
    styled,
    use_powers_of_two,
    usual_columns,
)

__all__ = ["cost_panels", "precision_gains", "speed_ups"]


@dataclass(frozen=True)
class _Panel:
    x: str
    y: str
    logarithmic: tuple[bool, bool] = (True, False)  # x by powers of 2, y by powers of 10


PANELS = {
    "patches": _Panel("patches per image", "seconds per pair", (True, True)),
    "images": _Panel("megapixels per image", "seconds per pair", (True, True)),
    "batch": _Panel("pairs at once", "seconds per pair"),
    "blocks": _Panel("blocks kept", "seconds per pair", (False, False)),
    "workers": _Panel("loading workers", "items per second", (False, False)),
    "memory": _Panel("pairs at once", "peak memory, GiB", (False, False)),
}
FAMILIAR = ("scoring", "training step", "training step, gradient checkpointing")  # have one colour in all panels
SAME = {"network": "scoring"}  # is what scoring is, where the rest of the work stands beside it


@styled
def cost_panels(table: pd.DataFrame, *, parts: Sequence[str] | None = None, title: str | None = None) -> Figure:
    """What a pair costs against the number of patches, image size, batch size and blocks; loading against workers; and
    peak
    memory. A panel for each part: medians, and a band from the fastest to the slowest round.

    Args:
        table: as `benchmark` returns it; rows of other parts are left out.
        parts: of "patches", "images", "batch", "blocks", "workers" and "memory"; default those that the table has.

    Raises:
        ValueError: a missing column, an unknown part, or one that the table has no row of.
    """
    check_columns(table, ["part", "what", "x", "seconds", "fastest", "slowest", "mebibytes"])
    measured = set(table["part"])
    chosen = [part for part in PANELS if part in measured] if parts is None else list(parts)
    if not chosen or not set(chosen) <= PANELS.keys() & measured:
        raise ValueError(f"parts must be among {', '.join(PANELS)} and measured, got {', '.join(chosen) or 'none'}")
    columns = usual_columns(len(chosen))
    rows = -(-len(chosen) // columns)
    figure = new_figure(PAGE if columns > 1 else COLUMN, 2.2 * rows, title)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, part in zip(axes, chosen, strict=False):
        _panel(ax, PANELS[part], _curves(table[table["part"] == part]))
    for ax in axes[len(chosen) :]:
        ax.set_visible(False)
    return figure


def _curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a panel with `value`, `low` and `high` in the unit of its axis."""
    if rows["mebibytes"].notna().any():
        peak = rows.dropna(subset=["mebibytes"])
        return peak.assign(**dict.fromkeys(("value", "low", "high"), peak["mebibytes"] / 1024))
    if rows["part"].iloc[0] == "workers":
        return rows.assign(value=1 / rows["seconds"], low=1 / rows["slowest"], high=1 / rows["fastest"])
    return rows.assign(value=rows["seconds"], low=rows["fastest"], high=rows["slowest"])


def _panel(ax: Axes, panel: _Panel, rows: pd.DataFrame) -> None:
    names = list(rows["what"].unique())
    order = [*FAMILIAR, *(name for name in names if SAME.get(name, name) not in FAMILIAR)]
    looks = dict(zip(order, series_looks(len(order)), strict=True))
    for name in names:
        look = looks[SAME.get(name, name)]
        curve = rows[rows["what"] == name].sort_values("x")
        ax.fill_between(curve["x"], curve["low"], curve["high"], color=look["color"], alpha=0.18, linewidth=0)
        ax.plot(curve["x"], curve["value"], label=name.replace(", ", ",\n"), **look)
    x = sorted(rows["x"].unique())
    if panel.logarithmic[0]:
        use_powers_of_two(ax, x)
        ax.set_xticks(x, labels=[f"{value:g}" for value in x])
    elif len(x) > 1:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.logarithmic[1]:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_locator(NullLocator())
        ax.margins(y=0.1 * len(names))  # room for the legend
    else:
        ax.set_ylim(0, (1 + 0.12 * len(names)) * rows["high"].max())
    ax.set(xlabel=panel.x, ylabel=panel.y)
    ax.legend(loc="best")


@styled
def precision_gains(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """How much faster than float32 a pair is scored in other ways, with the range over rounds, and the error of the
    score.

    Args:
        table: as `benchmark` returns it; only the part "precision" is drawn. The range of the scores that the errors
        are of
            is marked in the panel of errors.

    Raises:
        ValueError: a missing column, or no such part.
    """
    check_columns(table, ["part", "what", "ratio", "lowest", "highest", "error", "score_range"])
    rows = table[(table["part"] == "precision") & (table["error"] > 0)]
    if rows.empty:
        raise ValueError("the table has no measurement of the part precision beside that of float32")
    figure = new_figure(PAGE, 0.9 + 0.22 * len(rows), title)
    gain, error = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(rows))
    colours = cycle_colours(2)
    _ranges(gain, rows, y, colours[0])
    gain.axvline(1, color="black", linewidth=0.8, linestyle=":")
    gain.set(xlabel="times the speed of float32")
    error.plot(rows["error"], y, linestyle="", marker="s", color=colours[1])
    error.axvline(rows["score_range"].iloc[0], color="black", linewidth=0.8, linestyle=":", label="range of the scores")
    error.set_xscale("log")
    error.xaxis.set_minor_locator(NullLocator())
    error.set(xlabel="largest error of a score")
    figure.legend(loc="outside lower right", ncols=2)
    name_rows(gain, rows["what"])
    error.tick_params(axis="y", length=0)
    error.grid(False, axis="y")
    return figure


@styled
def speed_ups(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """All ratios that have a goal, with their range over rounds, and the goals as bars: right of its bar, a goal is met.

    Args:
        table: as `benchmark` returns it; rows without a goal are left out.

    Raises:
        ValueError: a missing column, or no row with a goal.
    """
    check_columns(table, ["what", "against", "ratio", "lowest", "highest", "goal"])
    rows = table.dropna(subset=["goal"])
    if rows.empty:
        raise ValueError("the table has no row with a goal: measure the parts network and data")
    parts = list(rows.groupby("against", sort=False))
    heights = [len(part) for _, part in parts]
    figure = new_figure(PAGE, 0.2 + 0.4 * len(parts) + 0.19 * sum(heights), title)
    axes = figure.subplots(len(parts), 1, squeeze=False, gridspec_kw={"height_ratios": [n + 0.6 for n in heights]})[
        :, 0
    ]
    colours = cycle_colours(2)
    for ax, (against, part) in zip(axes, parts, strict=True):
        y = np.arange(len(part))
        _ranges(ax, part, y, colours[0])
        ax.vlines(part["goal"], y - 0.35, y + 0.35, color=colours[1], linewidth=1.8, label="goal")
        ax.set_xlim(0, 1.08 * max(part["highest"].max(), part["goal"].max()))
        ax.set(xlabel=f"{'share of the' if against.startswith('best') else 'times the speed of'} {against}")
        name_rows(ax, part["what"])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure


def _ranges(ax: Axes, rows: pd.DataFrame, y: np.ndarray, colour: str) -> None:
    ax.hlines(y, rows["lowest"], rows["highest"], color=colour, linewidth=1.1)
    ax.plot(rows["ratio"], y, linestyle="", marker="o", color=colour, zorder=3, label="measured: median and range")
