"""Run the numbered notebooks in order, headless, and keep what is finished.

Every notebook has one cell tagged `parameters` with flat literals; `reproduce` fills in `preset` and `out` (the run
folder) and whatever else is asked for, and puts the executed copy into `{out}/{preset}/notebooks/`. A stamp beside the
copy records what it was made from and what it left, so that a second call runs only what changed or is gone. A notebook
that reads what another one wrote says so in its metadata, `"vtamiq": {"needs": ["03_weak_pretraining"]}`, and runs
after it whatever its number; `"uses"` names those whose results it reads if there are any.
"""

import ast
import hashlib
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from threading import Event, Thread

import nbformat
import pandas as pd
import papermill
import zmq
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from papermill.exceptions import PapermillExecutionError
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from traitlets import default

from vtamiq import __version__
from vtamiq.databases.loading import data_folder, find_databases
from vtamiq.utils.configs import did_you_mean
from vtamiq.utils.files import replacing

logger = logging.getLogger(__name__)

PRESETS = ("smoke", "demo", "full")
COLUMNS = ("notebook", "status", "seconds", "output", "error")
FINISHED = ("done", "cached")
COMPUTES = 1  # raise when the package gives notebooks other results: what ran before is then run again
OWN = ("preset", "out")  # parameters that have an argument of their own

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_TRACEBACK_LINES = 15
_SET_ASIDE = re.compile(r"\.[0-9a-f]{8}(\.\d+)?$")  # a training run that made way for another one; anyone may delete it
_HEARTBEAT = 2.0  # seconds


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `name = default  # help`."""

    name: str
    default: object
    help: str


@dataclass(frozen=True)
class Notebook:
    """What the pipeline needs to know about one notebook."""

    path: Path
    title: str
    code: tuple[str, ...]  # source of the code cells that do something
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

    def failed(self, name: str) -> Path:
        return self.path / "notebooks" / f"{name}.failed.ipynb"

    def running(self, name: str) -> Path:
        return self.path / "notebooks" / f"{name}.running.ipynb"

    def stamp(self, name: str) -> Path:
        return self.path / "notebooks" / f"{name}.stamp.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.csv"

    def relative(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.root)).as_posix()


# ---------------------------------------------------------------------------------------------------------------------
# Reading notebooks and choosing among them


def find_notebooks(folder: str | Path = "notebooks") -> list[Notebook]:
    """Read the notebooks `NN_*.ipynb` of a folder, in the order in which they run: by number, but each after its needs.

    Raises:
        FileNotFoundError: no such folder, or no numbered notebook in it.
        ValueError: a file that is no notebook, a parameter without a literal default, a need that is no notebook here,
            or needs in a circle.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"no numbered notebooks in {folder}: run from the repository's root")
    notebooks = {path.stem: _read_notebook(path) for path in paths}
    for notebook in notebooks.values():
        for need in notebook.needs + notebook.uses:
            if need not in notebooks:
                raise ValueError(
                    f"{notebook.name} needs {need}, which is no notebook of {folder.name}{did_you_mean(need, notebooks)}"
                )
    return _in_running_order(notebooks)


def _in_running_order(notebooks: Mapping[str, Notebook]) -> list[Notebook]:
    """The lowest number first among those whose needs have run."""
    waiting, ordered = dict(notebooks), {}
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
    parameters = {
        name: Parameter(name, _literal(entry["default"], f"{path.name}: parameter {name}"), entry["help"])
        for name, entry in papermill.inspect_notebook(path).items()
    }
    headings = re.findall(r"^#\s+(.+)$", "\n".join(c.source for c in cells if c.cell_type == "markdown"), re.M)
    return Notebook(
        path=path,
        title=headings[0] if headings else path.stem,
        code=tuple(cell.source for cell in cells if cell.cell_type == "code" and cell.source.strip()),
        parameters=parameters,
        needs=tuple(metadata.get("vtamiq", {}).get("needs", ())),
        uses=tuple(metadata.get("vtamiq", {}).get("uses", ())),
        instead=metadata.get("vtamiq", {}).get("instead", ""),
    )


def _literal(text: str, where: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise ValueError(f"{where} is not a plain literal: {text}") from None


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


# ---------------------------------------------------------------------------------------------------------------------
# Parameters


def _bind(notebooks: Sequence[Notebook], parameters: Mapping[str, object], preset: str, out: str) -> dict[str, dict]:
    """For each notebook's name, the parameters that it declares: preset, out and those asked for, checked."""
    own = dict(zip(OWN, (preset, out), strict=True))
    declared = {name for notebook in notebooks for name in notebook.parameters}
    for name in parameters:
        if name in own:
            raise ValueError(f"{name} is not a free parameter: it has an argument of its own")
        if name not in declared:
            known = sorted(declared - set(own))
            listing = ", ".join(known) or "none"
            raise ValueError(
                f"no selected notebook has a parameter {name!r}{did_you_mean(name, known)}; there are {listing}"
            )
    return {
        notebook.name: {
            name: _as_declared(value, notebook.parameters[name].default, f"{notebook.name}: {name}")
            for name, value in {**own, **parameters}.items()
            if name in notebook.parameters
        }
        for notebook in notebooks
    }


def _as_declared(value: object, declared: object, where: str) -> object:
    """The value as the declared default's type: an int may stand for a float, a list for a tuple; None takes all."""
    if declared is None or type(value) is type(declared):
        return value
    if isinstance(declared, float) and type(value) is int:
        return float(value)
    if isinstance(declared, tuple) and isinstance(value, list):
        return tuple(value)
    kind = type(declared).__name__
    raise ValueError(f"{where} expects {kind} such as {declared!r}, got {type(value).__name__} {value!r}")


# ---------------------------------------------------------------------------------------------------------------------
# Stamps: what a finished notebook was made from, and what it left


def _versions() -> dict[str, str]:
    """Installed versions of the packages that this one always requires."""
    try:
        requirements = requires("vtamiq") or []
    except PackageNotFoundError:  # the source runs without being installed
        return {}
    installed = {}
    for requirement in requirements:
        if "extra ==" not in requirement:
            name = re.match(r"[\w.-]+", requirement).group()
            with suppress(PackageNotFoundError):
                installed[name] = version(name)
    return installed


def _inputs(notebook: Notebook, parameters: Mapping, run: RunFolder) -> dict[str, object]:
    """Fingerprints of the files, folders and databases that text parameters name, given or by default, one or several
    with commas between: data change, names stay."""
    values = {name: parameter.default for name, parameter in notebook.parameters.items()} | dict(parameters)
    texts = {name: value for name, value in values.items() if isinstance(value, str) and value and name not in OWN}
    databases = find_databases() if data_folder().is_dir() else {}
    return {
        name: [_fingerprint(databases.get(part.strip(), run.root / part.strip())) for part in text.split(",")]
        for name, text in texts.items()
    }


def _fingerprint(path: Path) -> list | None:
    """Of a file size and contents; of a folder names, sizes and times of its own files, without those of its folders.

    A database's labels and manifest lie at its top, and nobody waits for the sight of 700,000 images. None for what is
    neither: any text, tags and names, may come here.
    """
    if os.path.isfile(path):  # Path.is_file raises where text is too long for a name
        with path.open("rb") as file:
            return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]
    if not os.path.isdir(path):
        return None
    files = [entry for entry in os.scandir(path) if entry.is_file() and not entry.name.startswith(".")]
    return sorted([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)


def _digest(notebook: Notebook, parameters: Mapping, run: RunFolder) -> str:
    """Digest of everything that a notebook's results depend on; prose is left out, so that a typo costs no training.

    Whole stamps of what it needs are part of it, their time included: results made anew are to be read anew.
    """
    made_from = {
        "code": notebook.code,
        "parameters": dict(parameters),
        "inputs": _inputs(notebook, parameters, run),
        "package": [__version__, COMPUTES],
        "versions": _versions(),
        "needs": {need: _read_stamp(run, need) for need in notebook.needs + notebook.uses},
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _read_stamp(run: RunFolder, name: str) -> dict | None:
    """The stamp of a finished notebook, or None where there is none or its executed copy or a result is gone."""
    try:
        stamp = json.loads(run.stamp(name).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    left = [run.copy(name), *(run.root / path for path in stamp.get("wrote", ()))]
    return stamp if all(path.exists() for path in left) else None


def _wrote(name: str, run: RunFolder, since: float) -> list[str]:
    """What a notebook left: all that its own folder holds, and what was modified meanwhile elsewhere or in the gallery.

    A training run that was finished before is loaded without a change to its files, and yet is this notebook's result.
    """
    files = {*_results(run.path, besides=run.copy(name).parent), *_results(run.root / "figures")} - {run.summary}
    times = {path: time for path in files if (time := _modified(path)) is not None}
    kept = (path for path, time in times.items() if time >= since or path.is_relative_to(run.path / name))
    return sorted(map(run.relative, kept))


def _results(folder: Path, besides: Path | None = None) -> Iterator[Path]:
    """All files below a folder, but none that are hidden, temporary or of training runs set aside."""
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        folders[:] = [
            name for name in folders if name[0] != "." and not _SET_ASIDE.search(name) and here / name != besides
        ]
        yield from (here / name for name in files if name[0] != "." and not name.endswith(".tmp"))


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # a temporary file that has vanished since it was listed
        return None


def _clock(folder: Path) -> float:
    """Time by the file system's own clock, which on a network drive is not this machine's."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


# ---------------------------------------------------------------------------------------------------------------------
# Running one notebook


class _OwnInterpreter(KernelSpecManager):
    """Knows one kernel, the running interpreter, so that no kernelspec that a user has installed can take its place."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        # The kernel's own log (not the notebook's) would only say that its sockets are gone when a run is interrupted.
        quiet = get_kernel_dict(extra_arguments=["--log-level=CRITICAL"])
        # Figures belong into the executed copy, whatever backend the caller's environment names.
        return KernelSpec(**quiet, env={"MPLBACKEND": "module://matplotlib_inline.backend_inline"})


class _OwnKernelManager(AsyncKernelManager):
    @default("kernel_spec_manager")
    def _own_interpreter(self) -> KernelSpecManager:
        return _OwnInterpreter()

    @default("transport_encryption")  # kernels listen on TCP: others on the same machine should not read along
    def _encrypt_where_possible(self) -> str:
        return "auto" if zmq.has("curve") else "disabled"


def _execute(notebook: Notebook, parameters: dict, run: RunFolder, on_cell: Callable) -> tuple[str, Path, str]:
    """Run one notebook to its end or its first error: (status, path of the copy, error in one line)."""
    running, failed, copy = (place(notebook.name) for place in (run.running, run.failed, run.copy))
    running.parent.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    try:
        papermill.execute_notebook(
            notebook.path,
            running,
            parameters=parameters,
            kernel_name="python3",
            kernel_manager_class=_OwnKernelManager,
            progress_bar=False,
            on_cell_executed=on_cell,
            coalesce_streams=True,  # a progress bar's hundred states become its last one
            cwd=run.root,
            start_timeout=120,
        )
    except (PapermillExecutionError, RuntimeError) as error:  # RuntimeError: the kernel died or did not start
        if running.exists():
            _publish(running, failed, notebook, run)
        _report(notebook.name, error, failed, run.relative(failed))
        return "failed", failed, _one_line(error).replace(f"{run.root}{os.sep}", "")
    except KeyboardInterrupt:
        running.unlink(missing_ok=True)
        raise
    _publish(running, copy, notebook, run)
    return "done", copy, ""


def _publish(source: Path, target: Path, notebook: Notebook, run: RunFolder) -> None:
    """Move an executed notebook to its place in one step, without the machine's paths that papermill noted in it."""
    content = nbformat.read(source, as_version=4)
    content.metadata.papermill.update(input_path=run.relative(notebook.path), output_path=run.relative(target))
    with replacing(target) as temporary:
        nbformat.write(content, temporary)
    source.unlink()


def _report(name: str, error: Exception, copy: Path, shown: str) -> None:
    """Log the cell that failed and, where the kernel lived to tell, the end of its traceback."""
    if not isinstance(error, PapermillExecutionError):
        source = _last_begun(copy)
        where = f" in cell:\n{_indented(source)}\n\n" if source else ": "
        hint = "a kernel that dies has often run out of memory"
        logger.error("%s failed%s%s (%s)\n  see %s", name, where, error, hint, shown)
        return
    lines = _ANSI.sub("", "\n".join(error.traceback)).splitlines()[-_TRACEBACK_LINES:]
    source, traceback = _indented(error.source), _indented("\n".join(lines))
    logger.error("%s failed in cell [%s]:\n%s\n\n%s\n  see %s", name, error.exec_count, source, traceback, shown)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _last_begun(copy: Path) -> str:
    """Source of the code cell that ran when the kernel died; empty if none did.

    Papermill's status does not tell: it calls all cells completed in the end. Only those that began have a start.
    """
    if not copy.exists():
        return ""
    cells = nbformat.read(copy, as_version=4).cells
    begun = [c.source for c in cells if c.cell_type == "code" and c.metadata.get("papermill", {}).get("start_time")]
    return begun[-1] if begun else ""


def _one_line(error: Exception) -> str:
    if not isinstance(error, PapermillExecutionError):
        return str(error)
    text = f"{error.ename}: {error.evalue}".strip()
    return _ANSI.sub("", text.splitlines()[0])


# ---------------------------------------------------------------------------------------------------------------------
# Running them all


def plan(
    preset: str = "demo",
    only: Iterable[str | int] | None = None,
    parameters: Mapping[str, object] | None = None,
    out: str | Path = "runs",
    notebooks: str | Path = "notebooks",
) -> tuple[RunFolder, list[Notebook], dict[str, dict]]:
    """What `reproduce` would run, checked and nothing touched: run folder, notebooks, parameters by notebook's name.

    Raises:
        ValueError, FileNotFoundError: as `reproduce`.
    """
    if preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}{did_you_mean(preset, PRESETS)}; there are {', '.join(PRESETS)}")
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

    Executed copies go to `{out}/{preset}/notebooks/`, the summary to `{out}/{preset}/summary.csv`. The notebooks run in
    this interpreter's environment, in the folder that holds `notebooks`. One that finished before is not run again
    unless its code, its parameters, the files or folders that they name (of a folder, the files at its top), the
    package, what that depends on or a notebook that it needs changed, or a result is gone. A failure is logged with the
    cell and its traceback; the notebooks that do not need the failed one still run.

    Args:
        preset: "smoke" (seconds), "demo" (minutes) or "full" (real databases).
        only: numbers or names of the notebooks to run; what they need is then taken as it is.
        parameters: further parameters, each handed to those notebooks that declare it.
        out: folder of all runs.
        notebooks: folder of the notebooks.
        force: run finished notebooks again; a finished training run of the same settings is loaded, not repeated.

    Returns:
        One row per selected notebook: notebook, status (done, cached, failed or skipped), seconds (of the run that made
        the copy), output (relative to the folder that holds `notebooks`), error (empty, or one line).

    Raises:
        ValueError: unknown preset, notebook or parameter, or a value of another type than the declared default.
        FileNotFoundError: no notebooks there.
        OSError: the run folder cannot be made.
        KeyboardInterrupt: passed on after the summary is written; finished notebooks stay finished.
    """
    run, selected, bound = plan(preset, only, parameters, out, notebooks)
    run.path.mkdir(parents=True, exist_ok=True)  # where that is impossible, say so before anything runs

    rows: dict[str, dict] = {}
    try:
        with logging_redirect_tqdm(), _progress(selected) as bar:
            for notebook in selected:
                bar.set_description(notebook.name)
                rows[notebook.name] = dict(zip(COLUMNS, (notebook.name, "interrupted", 0.0, "", ""), strict=True))
                outcome = _blocked(notebook, bound[notebook.name], rows, run)
                outcome = outcome or _run_or_keep(notebook, bound[notebook.name], run, force, bar)
                rows[notebook.name].update(outcome)
                bar.n = sum(_steps(other) for other in selected[: len(rows)])  # also where cells were left out
    finally:
        summary = pd.DataFrame(rows.values(), columns=COLUMNS)
        with replacing(run.summary) as temporary:
            summary.to_csv(temporary, index=False)
    return summary


def _blocked(notebook: Notebook, parameters: Mapping, rows: Mapping[str, Mapping], run: RunFolder) -> dict | None:
    """The outcome "skipped" where something that the notebook needs is not there, else None."""
    if parameters.get(notebook.instead):
        return None
    for need in notebook.needs + tuple(name for name in notebook.uses if name in rows):
        absent = "results are gone" if run.stamp(need).exists() else "not run yet"
        status = rows[need]["status"] if need in rows else absent
        missing = status not in FINISHED if need in rows else _read_stamp(run, need) is None
        if missing:
            logger.warning("%s skipped: it needs %s (%s)", notebook.name, need, status)
            return {"status": "skipped", "error": f"needs {need} ({status})"}
    return None


def _run_or_keep(notebook: Notebook, parameters: dict, run: RunFolder, force: bool, bar: tqdm) -> dict[str, object]:
    digest = _digest(notebook, parameters, run)
    kept = _read_stamp(run, notebook.name)
    if kept and kept["digest"] == digest and not force:
        return {"status": "cached", "seconds": kept["seconds"], "output": run.relative(run.copy(notebook.name))}

    stamp = run.stamp(notebook.name)
    stamp.unlink(missing_ok=True)  # from here on its results may be half overwritten
    begin, since = time.perf_counter(), _clock(stamp.parent)
    with _sign_of_life(bar, run.path / notebook.name, since):
        status, copy, error = _execute(notebook, parameters, run, on_cell=lambda **_: bar.update())
    seconds = round(time.perf_counter() - begin, 1)
    if status == "done":
        content = {"digest": digest, "finished": datetime.now(UTC).isoformat(), "seconds": seconds}
        content |= {"parameters": parameters, "wrote": _wrote(notebook.name, run, since)}
        with replacing(stamp) as temporary:
            temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
        logger.info("%s done in %.0f s", notebook.name, seconds)
    return {"status": status, "seconds": seconds, "output": run.relative(copy), "error": error}


def _progress(notebooks: Sequence[Notebook]) -> tqdm:
    """A bar over the code cells of all notebooks; where nobody watches, a line at most every half minute."""
    interval = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(total=sum(map(_steps, notebooks)), unit="cell", mininterval=interval, maxinterval=max(10.0, interval))


def _steps(notebook: Notebook) -> int:
    return len(notebook.code) + bool(notebook.parameters)  # papermill adds a cell with the parameters


@contextmanager
def _sign_of_life(bar: tqdm, folder: Path, since: float) -> Iterator[None]:
    """Let the bar's time go on during a long cell, with the epoch if it trains; only where somebody watches."""
    if not sys.stderr.isatty():
        yield
        return
    ended = Event()

    def beat() -> None:
        while not ended.wait(_HEARTBEAT):
            epoch = _epoch(folder, since)
            bar.set_postfix_str(f"epoch {epoch}" if epoch else "", refresh=False)
            bar.refresh()  # under tqdm's lock

    thread = Thread(target=beat, name="sign of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)  # an interruption within tqdm leaves its lock held, and then this would never end
        bar.set_postfix_str("", refresh=False)


def _epoch(folder: Path, since: float) -> int:
    """Whole rows of the newest `history.csv` below the folder; 0 where none was modified since."""
    histories = [path for path in _results(folder) if path.name == "history.csv"]
    times = {path: time for path in histories if (time := _modified(path)) is not None and time >= since}
    if not times:
        return 0
    try:
        return max(0, max(times, key=times.get).read_bytes().count(b"\n") - 1)  # the first line names the columns
    except FileNotFoundError:  # set aside, or being replaced
        return 0
