"""Run the numbered notebooks in order, headless, and keep what is finished.

Every notebook has one cell tagged `parameters` with flat literals; its metadata name the notebooks whose results it reads,
`"vtamiq": {"needs": ["03_weak_pretraining"]}`, or `"uses"`, if there are any. Its executed copy goes to
`{out}/{preset}/notebooks/`, with a stamp of what it was made from and left: a second call runs only what changed.
"""

import ast
import contextlib
import json
import logging
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import requires, version
from pathlib import Path

import nbformat
import pandas as pd
import papermill
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from papermill.exceptions import PapermillExecutionError
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from traitlets import default

from vtamiq import __version__
from vtamiq.plots.style import figure_settings
from vtamiq.utils.configs import did_you_mean
from vtamiq.utils.digests import digest
from vtamiq.utils.files import read_json, write_table, write_text

logger = logging.getLogger(__name__)

PRESETS = ("smoke", "demo", "full")
COLUMNS = ("notebook", "status", "seconds", "output", "error")
FINISHED = ("done", "cached")
COMPUTES = 2  # raise when the package gives notebooks other results: what ran before is then run again

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_TRACEBACK_LINES = 15


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `name = default  # help`."""

    name: str
    default: object
    help: str


@dataclass(frozen=True)
class Notebook:
    """What the pipeline needs to know about one notebook, and the names of those whose results it reads."""

    path: Path
    title: str
    code: tuple[str, ...]  # sources of its code cells
    parameters: dict[str, Parameter]
    needs: tuple[str, ...]  # names of the notebooks whose results it reads
    uses: tuple[str, ...] = ()  # likewise, where they have run
    instead: str = ""  # the text parameter that, when given, takes the place of what it needs

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True)
class RunFolder:
    """Where the run of one preset keeps its files; `root` is the folder that paths are shown relative to."""

    path: Path
    root: Path

    def copy(self, name: str) -> Path:
        return self.path / "notebooks" / f"{name}.ipynb"

    def stamp(self, name: str) -> Path:
        return self.path / "notebooks" / f"{name}.stamp.json"

    def relative(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.root)).as_posix()


def find_notebooks(folder: str | Path = "notebooks") -> list[Notebook]:
    """Read the notebooks `NN_*.ipynb` of a folder, by number, but each after its needs.

    FileNotFoundError if there is none; ValueError for a file that is no notebook, a bad parameter, or a need that is
    missing or circular.
    """
    folder = Path(folder)
    waiting = {path.stem: _read_notebook(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not waiting:
        raise FileNotFoundError(f"no numbered notebooks in {folder}: run from the repository's root")
    for name, notebook in waiting.items():
        for need in notebook.needs + notebook.uses:
            if need not in waiting:
                hint = did_you_mean(need, waiting)
                raise ValueError(f"{name} needs {need}, which is no notebook of {folder.name}{hint}")
    ordered = {}
    while waiting:
        ready = [name for name, notebook in waiting.items() if {*notebook.needs, *notebook.uses} <= ordered.keys()]
        if not ready:
            raise ValueError(f"{', '.join(waiting)} need each other in a circle")
        ordered[ready[0]] = waiting.pop(ready[0])
    return list(ordered.values())


def _read_notebook(path: Path) -> Notebook:
    try:
        content = nbformat.read(path, as_version=4)
        cells, metadata = content.cells, content.metadata
    except (ValueError, TypeError, AttributeError, nbformat.ValidationError) as error:  # nbformat trips over other JSON
        raise ValueError(f"{path.name}: not a notebook ({str(error).splitlines()[0]})") from error
    if "kernelspec" not in metadata:
        raise ValueError(f"{path.name}: no kernelspec in its metadata; open and save it once in JupyterLab")
    parameters = {}
    for name, entry in papermill.inspect_notebook(path).items():
        try:
            parameters[name] = Parameter(name, ast.literal_eval(entry["default"]), entry["help"])
        except (ValueError, SyntaxError):
            text = entry["default"]
            raise ValueError(f"{path.name}: parameter {name} is not a plain literal: {text}") from None
    headings = re.findall(r"^#\s+(.+)$", "\n".join(c.source for c in cells if c.cell_type == "markdown"), re.M)
    about = metadata.get("vtamiq", {})
    return Notebook(
        path=path,
        title=headings[0] if headings else path.stem,
        code=tuple(cell.source for cell in cells if cell.cell_type == "code" and cell.source.strip()),
        parameters=parameters,
        needs=tuple(about.get("needs", ())),
        uses=tuple(about.get("uses", ())),
        instead=about.get("instead", ""),
    )


def select(notebooks: Sequence[Notebook], only: Iterable[str | int] | None) -> list[Notebook]:
    """The notebooks that `only` names, by number (`3`, `"03"`) or by name, in their own order; None means all."""
    if only is None:
        return list(notebooks)
    names = [notebook.name for notebook in notebooks]
    chosen = set()
    for wanted in [only] if isinstance(only, str) else only:
        text = str(wanted).removesuffix(".ipynb")
        matches = [name for name in names if name == text or (text.isdigit() and int(name[:2]) == int(text))]
        if not matches:
            raise ValueError(f"no notebook {text!r}{did_you_mean(text, names)}; there are {', '.join(names)}")
        chosen.update(matches)
    return [notebook for notebook in notebooks if notebook.name in chosen]


def _bind(notebooks: Sequence[Notebook], parameters: Mapping[str, object], preset: str, out: str) -> dict[str, dict]:
    """For each notebook's name, the given parameters that it declares, checked, with preset and out."""
    known = {name for notebook in notebooks for name in notebook.parameters} - {"preset", "out"}
    for name in parameters:
        if name in ("preset", "out"):
            raise ValueError(f"{name} is not a free parameter: it has an argument of its own")
        if name not in known:
            hint, listing = did_you_mean(name, known), ", ".join(sorted(known)) or "none"
            raise ValueError(f"no selected notebook has a parameter {name!r}{hint}; there are {listing}")
    given = {"preset": preset, "out": out, **parameters}
    return {
        notebook.name: {
            name: _as_declared(given[name], declared.default, f"{notebook.name}: {name}")
            for name, declared in notebook.parameters.items()
            if name in given
        }
        for notebook in notebooks
    }


def _as_declared(value: object, declared: object, where: str) -> object:
    """The value as the type of the declared default: an integer may stand for a float."""
    if type(value) is type(declared):
        return value
    if isinstance(declared, float) and type(value) is int:
        return float(value)
    kind = type(declared).__name__
    raise ValueError(f"{where} expects {kind} such as {declared!r}, got {type(value).__name__} {value!r}")


def _versions() -> dict[str, str]:
    """Installed versions of the packages that this one always requires."""
    names = [re.match(r"[\w.-]+", line).group() for line in requires("vtamiq") if "extra ==" not in line]
    return {name: version(name) for name in names}


def _made_from(notebook: Notebook, parameters: Mapping, run: RunFolder) -> str:
    """Digest of what decides a notebook's results: no prose, but the stamps of what it needs, their time included."""
    return digest(
        {
            "code": notebook.code,
            "parameters": dict(parameters),
            "package": [__version__, COMPUTES],
            "figures": figure_settings(),
            "versions": _versions(),
            "needs": {need: _read_stamp(run, need) for need in notebook.needs + notebook.uses},
        }
    )


def _read_stamp(run: RunFolder, name: str) -> dict | None:
    """The stamp of a finished notebook, or None where there is none or its executed copy or a result is gone."""
    try:
        stamp = read_json(run.stamp(name), wrote=list)
    except (FileNotFoundError, ValueError):  # a damaged one is as good as none: the notebook runs again
        return None
    left = [run.copy(name), *(run.root / str(path) for path in stamp["wrote"])]
    return stamp if all(path.exists() for path in left) else None


def _figures(run: RunFolder) -> dict[Path, int]:
    """Files of the run's figures and of the gallery, with the times of their last change."""
    folders = (run.path / "figures", run.root / "figures")
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.glob("[!.]*")}


def _results(folder: Path) -> list[Path]:
    """Files below a notebook's own folder, also those of a training run that was loaded; none that are hidden."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if not any(part[0] == "." for part in path.relative_to(folder).parts)]


class _ThisPython(AsyncKernelManager):
    """Starts the running interpreter: no kernel that a user has installed under the same name takes its place."""

    @default("kernel_spec_manager")
    def _nothing_installed(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])

    async def start_kernel(self, **options) -> None:
        inline = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        await super().start_kernel(env=os.environ | inline, **options)


def _execute(notebook: Notebook, parameters: dict, run: RunFolder, bar: tqdm) -> tuple[str, Path, str]:
    """Run one notebook to its end or its first error: (status, path of the copy, error in one line)."""
    copy, began = run.copy(notebook.name), []
    failed = copy.with_suffix(".failed.ipynb")
    copy.parent.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    try:
        with contextlib.chdir(run.root):  # papermill notes both paths in the copy: none of this machine
            papermill.execute_notebook(
                run.relative(notebook.path),
                run.relative(copy),
                parameters=parameters,
                kernel_name="python3",
                kernel_manager_class=_ThisPython,
                extra_arguments=["--log-level=CRITICAL"],  # else it complains of its sockets when a run is interrupted
                progress_bar=False,
                on_cell_execute=lambda cell, **_: began.append(cell.source),
                on_cell_executed=lambda **_: bar.update(),
                coalesce_streams=True,  # a progress bar's hundred states become its last one
                start_timeout=120,
            )
    except (PapermillExecutionError, RuntimeError) as error:  # RuntimeError: the kernel died or did not start
        copy.rename(failed)
        line = _report(notebook.name, error, began, run.relative(failed))
        return "failed", failed, line.replace(f"{run.root}{os.sep}", "")
    except KeyboardInterrupt:
        copy.unlink(missing_ok=True)
        raise
    return "done", copy, ""


def _report(name: str, error: Exception, began: Sequence[str], copy: str) -> str:
    """Log the cell that failed and, where the kernel lived to tell, the end of its traceback; return one line."""
    if isinstance(error, PapermillExecutionError):
        lines = _ANSI.sub("", "\n".join(error.traceback)).splitlines()[-_TRACEBACK_LINES:]
        said, line = "\n".join(lines), _ANSI.sub("", f"{error.ename}: {error.evalue}").strip().splitlines()[0]
    else:
        said, line = f"{error} (a kernel that dies has often run out of memory)", str(error)
    where = f" in cell [{len(began)}]:\n{textwrap.indent(began[-1], '    ')}\n" if began else ":"
    logger.error("%s failed%s\n%s\n  see %s", name, where, textwrap.indent(said, "    "), copy)
    return line


def plan(
    preset: str = "demo",
    only: Iterable[str | int] | None = None,
    parameters: Mapping[str, object] | None = None,
    out: str | Path = "runs",
    notebooks: str | Path = "notebooks",
) -> tuple[RunFolder, list[Notebook], dict[str, dict]]:
    """What `reproduce` would run: run folder, notebooks, parameters by notebook's name; ValueError if one is unknown."""
    if preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}{did_you_mean(preset, PRESETS)}; there are {', '.join(PRESETS)}")
    figure_settings()  # refuses a bad style file or format before anything runs
    folder = Path(notebooks).resolve()
    run = RunFolder(path=Path(out).resolve() / preset, root=folder.parent)
    selected = select(find_notebooks(folder), only)
    return run, selected, _bind(selected, parameters or {}, preset, run.relative(run.path))


def reproduce(
    preset: str = "demo",
    only: Iterable[str | int] | None = None,
    parameters: Mapping[str, object] | None = None,
    out: str | Path = "runs",
    notebooks: str | Path = "notebooks",
    force: bool = False,
) -> pd.DataFrame:
    """Run the numbered notebooks in order and say how each one fared.

    They run in this environment, in the folder that holds `notebooks`. A finished one is run again only if its code,
    parameters, this package, installed versions, figure settings or what it needs changed, or a result is gone (changed
    data are not noticed: use `force`). After a failure, notebooks that do not need the failed one still run.

    Args:
        preset: "smoke" (seconds), "demo" (minutes) or "full" (real databases).
        only: numbers or names of the notebooks to run; what they need is then taken as it is.
        parameters: further parameters, each handed to those notebooks that declare it.
        force: run finished notebooks again; a finished training run of the same settings is loaded, not repeated.

    Returns one row per notebook, also in `{out}/{preset}/summary.csv`: notebook, status (done, cached, failed or skipped),
    seconds, output (relative to the folder that holds `notebooks`), error in one line. Errors as `plan`.
    """
    run, selected, bound = plan(preset, only, parameters, out, notebooks)
    run.path.mkdir(parents=True, exist_ok=True)  # where that is impossible, say so before anything runs
    cells = {notebook.name: len(notebook.code) + 1 for notebook in selected}  # papermill adds one with the parameters
    interval = 0.1 if sys.stderr.isatty() else 30.0  # seconds between states of the bar
    rows: dict[str, dict] = {}
    try:
        bar = tqdm(total=sum(cells.values()), unit="cell", mininterval=interval, maxinterval=max(10, interval))
        with logging_redirect_tqdm(), bar:
            for notebook in selected:
                name = notebook.name
                bar.set_description(name)
                rows[name] = {"notebook": name, "status": "interrupted", "seconds": 0.0, "output": "", "error": ""}
                outcome = _blocked(notebook, bound[name], rows, run)
                rows[name].update(outcome or _run_or_keep(notebook, bound[name], run, force, bar))
                bar.n = sum(cells[name] for name in rows)  # also where cells were left out
    finally:
        summary = pd.DataFrame(rows.values(), columns=COLUMNS)
        write_table(summary, run.path / "summary.csv")
    return summary


def _blocked(notebook: Notebook, parameters: Mapping, rows: Mapping[str, Mapping], run: RunFolder) -> dict | None:
    """The outcome "skipped" where something that the notebook needs is not there, else None."""
    if parameters.get(notebook.instead):
        return None
    for need in notebook.needs + tuple(name for name in notebook.uses if name in rows):
        if need in rows:
            status = rows[need]["status"]
        elif _read_stamp(run, need):
            status = "cached"
        else:
            status = "results are gone" if run.stamp(need).exists() else "not run yet"
        if status not in FINISHED:
            logger.warning("%s skipped: it needs %s (%s)", notebook.name, need, status)
            return {"status": "skipped", "error": f"needs {need} ({status})"}
    return None


def _run_or_keep(notebook: Notebook, parameters: dict, run: RunFolder, force: bool, bar: tqdm) -> dict[str, object]:
    name, made_from = notebook.name, _made_from(notebook, parameters, run)
    kept = _read_stamp(run, name)
    if kept and kept["digest"] == made_from and not force:
        return {"status": "cached", "seconds": kept["seconds"], "output": run.relative(run.copy(name))}

    run.stamp(name).unlink(missing_ok=True)  # from here on its results may be half overwritten
    begin, before = time.perf_counter(), _figures(run)
    status, copy, error = _execute(notebook, parameters, run, bar)
    seconds = round(time.perf_counter() - begin, 1)
    if status == "done":
        drawn = [path for path, changed in _figures(run).items() if before.get(path) != changed]
        wrote = sorted(run.relative(path) for path in [*_results(run.path / name), *drawn])
        stamp = {"digest": made_from, "finished": datetime.now(UTC).isoformat(), "seconds": seconds}
        stamp |= {"parameters": parameters, "wrote": wrote}
        write_text(run.stamp(name), json.dumps(stamp, indent=2))
        logger.info("%s done in %.0f s", name, seconds)
    return {"status": status, "seconds": seconds, "output": run.relative(copy), "error": error}
