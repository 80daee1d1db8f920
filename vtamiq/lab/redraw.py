"""Draw the figures of a finished run again from its files, without computing anything: in another format, style or size.

`keep_figure` saves a figure together with its recipe, in the folder `figure_data` of the run; `redraw` reads the recipes.
The same code and style give the same bytes. A recipe can name the figure functions of this package and nothing else.
"""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from tools.benchmark import plots as cost_plots
from vtamiq.plots import attention as attention_plots
from vtamiq.plots import charts as plots
from vtamiq.plots import diagrams
from vtamiq.plots import results as result_plots
from vtamiq.plots.recipes import RecipeError, find_recipes, forget_recipe, read_recipe, write_recipe
from vtamiq.utils.configs import did_you_mean

__all__ = ["RedrawError", "figures_folder", "keep_figure", "redraw"]

log = logging.getLogger(__name__)

DATA_FOLDER = "figure_data"  # of a run
FIGURES = "figures"  # of a run, or of the repository


class RedrawError(ValueError):
    """Some figures could not be drawn again. `failed` says why by name, `drawn` are the paths of all the others."""

    def __init__(self, failed: Mapping[str, str], drawn: Sequence[Path]):
        self.failed, self.drawn = dict(failed), list(drawn)
        reasons = "\n".join(f"{name}: {reason}" for name, reason in failed.items())
        super().__init__(f"not drawn again, of {len(failed) + len({path.stem for path in drawn})} figures:\n{reasons}")


def _functions_of(*modules: ModuleType) -> dict[str, Callable[..., Figure]]:
    public = [getattr(module, name) for module in modules for name in module.__all__]
    return {each.recipe_name: each for each in public if hasattr(each, "recipe_name")}


FUNCTIONS = _functions_of(plots, attention_plots, diagrams, result_plots, cost_plots)  # all that a recipe may name


def figures_folder(run: Path) -> Path:
    """Where the figures of a run are: the gallery of the repository for the demo in its usual place, `runs/demo` beside
    `notebooks`, and a folder of the run for all else."""
    root = run.parent.parent
    usual = run == root / "runs" / "demo" and (root / "notebooks").is_dir()
    return root / FIGURES if usual else run / FIGURES


def keep_figure(
    figure: Figure,
    run: str | Path,
    name: str,
    data: pd.DataFrame | Mapping[str, Any] | None = None,
    *,
    dpi: float | None = None,
    gallery: bool = True,
) -> list[Path]:
    """Save a figure and its data where those of the run are, and its recipe in the run.

    Arguments as for `plots.save_figure`, whose paths are returned. What the figure was drawn from is kept as it is
    now, so
    save it before that changes; nor are changes to the figure itself kept. A figure that no function of this package
    drew,
    or that was drawn from what a recipe cannot hold, is saved all the same, with a warning.

    Without `gallery`, the figure stays in the run, also that of the demo: it tells of this machine, which is no result.
    """
    run = Path(run)
    paths = plots.save_figure(figure, figures_folder(run) if gallery else run / FIGURES, name, data, dpi=dpi)
    try:
        recipe = getattr(figure, "recipe", None)
        if recipe is None:
            raise RecipeError("no figure function of this package drew it")
        kept = plots.plain(data) if isinstance(data, Mapping) else data
        write_recipe(replace(recipe, data=kept, dpi=dpi, gallery=gallery), run / DATA_FOLDER, name)
    except RecipeError as error:
        forget_recipe(run / DATA_FOLDER, name)
        log.warning("figure %s cannot be drawn again from the files of the run: %s", name, error)
    return paths


def redraw(
    run: str | Path,
    out: str | Path | None = None,
    *,
    only: Sequence[str] | None = None,
    kinds: Sequence[str] = ("svg", "png"),
    dpi: float | None = None,
    style: str | Path | None = None,
    progress: bool | None = None,
) -> list[Path]:
    """Draw the figures of a run again from their recipes, with their data beside them.

    Args:
        run: folder of the run, such as `runs/demo`.
        out: folder to write to, created if missing; default where each figure of the run is.
        only: names of figures, or patterns such as "scatter_*"; default all.
        kinds: "svg", "png" and "pdf", all or some.
        dpi: as for `plots.save_figure`; default as the figures were saved.
        style: Matplotlib style file with changes to the common style.
        progress: show a bar; default where somebody watches.

    Returns:
        The paths written.

    Raises:
        ValueError: no such run, no recipes in it, a name that fits none of them, or a bad style, kind or dpi.
        RedrawError: recipes that are damaged, or of functions that are no more or take them no more; all others are
            drawn before it is raised.
    """
    run = Path(run)
    folder = run / DATA_FOLDER
    if not run.is_dir():
        raise ValueError(f"{run}: no such run; `make reproduce` makes one in runs/demo")
    names = find_recipes(folder)
    if not names:
        raise ValueError(f"{run}: no figures in {DATA_FOLDER}; run its notebooks again: python -m vtamiq reproduce")
    chosen = _choose(names, only)
    changes = None if style is None else plots.read_style(style)
    usual = figures_folder(run.resolve())
    plots.check_output(kinds, dpi)

    drawn, failed = [], {}
    for name in tqdm(chosen, unit="figure", disable=not (sys.stderr.isatty() if progress is None else progress)):
        try:
            recipe = read_recipe(folder, name)
            figure = plots.draw_styled(_function(recipe.function), recipe.arguments, changes)
            options = {"kinds": kinds, "dpi": recipe.dpi if dpi is None else dpi, "changes": changes}
            place = out or (usual if recipe.gallery else run / FIGURES)
            drawn += plots.save_figure(figure, place, name, recipe.data, **options)
        except OSError:
            raise
        except Exception as error:  # one figure's trouble shall not keep the others from being drawn
            failed[name] = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    if failed:
        raise RedrawError(failed, drawn)
    return drawn


def _choose(names: Sequence[str], only: Sequence[str] | None) -> list[str]:
    if only is None:
        return list(names)
    chosen = set()
    for pattern in [only] if isinstance(only, str) else only:
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            raise ValueError(f"no figure {pattern!r}{did_you_mean(pattern, names)}; there are {', '.join(names)}")
        chosen.update(matches)
    return sorted(chosen)


def _function(name: str) -> Callable[..., Figure]:
    if name not in FUNCTIONS:
        raise RecipeError(f"there is no figure function {name!r} here{did_you_mean(name, FUNCTIONS)}")
    return FUNCTIONS[name].__wrapped__
