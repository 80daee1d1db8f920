"""A chain of stages many times over: over random splits and seeds, over folds, over settings; and what it comes to.

Only the last stage is repeated. Those before it are trained once for all runs that agree in them (folder `before`), and
every run starts from their result. `runs.csv` has a row for every run, `summary.csv` the statistics over runs.
"""

import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student_t
from tqdm.auto import tqdm

from vtamiq.training.chain import VALUES, Chain, Data, check_chain, load_once, run_chain
from vtamiq.utils.configs import build, changed
from vtamiq.utils.files import write_table
from vtamiq.utils.processes import count_workers

__all__ = ["Repeats", "RunsFailed", "check_many", "compare", "grid", "k_fold", "repeat", "summarise"]

log = logging.getLogger(__name__)

MEASURED = (*VALUES[1:], "val_srocc", "srocc_start", "srocc_gain")
_MEASURED_ON = ("database", "score", "synthetic")
_COLUMNS = (*_MEASURED_ON, "seed", "train", "val", "test", "left_out", *VALUES, "srocc_start", "srocc_gain", "val_srocc",
            "best_epoch", "seconds", "folder")  # fmt: skip
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
GRACE = 20  # seconds that a run has to end after it was told to
_MAX_SHOWN = 5  # failed runs, in the message


class RunsFailed(ValueError):
    """Some runs of many failed; the message names them. The others are finished, and in `runs.csv`."""


@dataclass(frozen=True)
class Repeats:
    """What many runs came to.

    Attributes:
        folder: holds a folder for every run.
        table: a row for every run: what tells it from the others (`run`, `fold`, settings); what was tested on
        (`database`,
            `score`, `synthetic`); `seed` of its split; pairs for `train`, `val` and `test`, and `left_out`; on the test
            part, n, srocc, krocc, plcc, rmse, plcc_fitted, rmse_fitted as `evaluate` has them, and
            `srocc_start`, before this stage, and `srocc_gain` over it; `val_srocc`, `best_epoch`, `seconds`, `folder`.
        summary: `summarise` of it.
    """

    folder: Path
    table: pd.DataFrame = field(repr=False)
    summary: pd.DataFrame = field(repr=False)


@dataclass(frozen=True)
class _Job:
    """One run: the whole chain, its folder below the folder of all runs, and what tells it from the others."""

    folder: str
    chain: Chain
    tells: dict[str, Any]
    before: str = "before"  # folder of the stages before the last


def repeat(
    chain: Chain,
    out: str | Path,
    repeats: int = 10,
    *,
    workers: int | None = None,
    gpus: Sequence[int] = (),
    root: str | Path = ".",
    set_aside: bool = False,
    progress: bool = True,
) -> Repeats:
    """Train and test the last stage `repeats` times, over random splits and seeds, as the paper does.

    Run k is the chain with k added to the seeds of the last stage and of its data, so that its split is drawn anew, with
    other patches and another order; and, if there is one stage only, to the seed of the first weights. Run 0 is therefore
    the chain itself. Where the split is fixed ("distributed", "original"), it is that of every run; of a few contents two
    runs may draw the same, and `k_fold` tests each once.

    Finished runs are loaded, so call again after an interruption or a failure.

    Args:
        out: folder; the runs are `run_00`, `run_01`, …
        workers: how many runs at once, each in a process of its own, with its share of the cores; its output is in
            `log.txt` of its folder. None: one for every GPU that is named; without any, one after the other, in here.
        gpus: numbers of GPUs, which the processes take in turns; empty leaves the choice to `chain.accelerator`.
        root, set_aside, progress: as for `run_chain`.

    Raises:
        RunsFailed: after all other runs have finished.
        ValueError: nothing is tested, there is no run, runs at once have more than one device each, or whatever is wrong
            with the chain.
    """
    return _run_jobs(_repeat_jobs(chain, repeats), chain, Path(out), workers, gpus, Path(root), set_aside, progress)


def k_fold(
    chain: Chain,
    out: str | Path,
    folds: int = 5,
    *,
    workers: int | None = None,
    gpus: Sequence[int] = (),
    root: str | Path = ".",
    set_aside: bool = False,
    progress: bool = True,
) -> Repeats:
    """Train and test the last stage once for each fold of its database, so that every content is tested exactly once.

    The split of the last stage's data is replaced by "folds" (`fold_split`): its `seed` draws the folds,
    its `validation` is the share of the other contents that is for validation. Arguments and errors as for `repeat`; the
    runs are `fold_00`, `fold_01`, …
    """
    return _run_jobs(_fold_jobs(chain, folds), chain, Path(out), workers, gpus, Path(root), set_aside, progress)


def grid(
    chain: Chain,
    out: str | Path,
    settings: Mapping[str, Sequence[Any]],
    *,
    repeats: int = 1,
    folds: int = 0,
    workers: int | None = None,
    gpus: Sequence[int] = (),
    root: str | Path = ".",
    set_aside: bool = False,
    progress: bool = True,
) -> Repeats:
    """Train and test every combination of settings, each of them `repeats` times or over so many `folds` if asked for.

    Choose between settings by `val_srocc`: what was chosen by its test result is no longer tested by it.

    Args:
        settings: values to try, by where they stand, as for `changed`:
            {"steps.-1.stage.caps.num_patches": [64, 128], "model.num_groups": [0, 2]}. Their columns are called by as
            much
            of the end of that as tells them from others.
        repeats, folds: as for `repeat` and `k_fold`; seeds and folds are the same for every combination.

    Other arguments and errors as for `repeat`. The folder of a combination is called after it, for example
    `num_patches=64,num_groups=0`; stages before the last are in folders `before_…`, one for all runs that agree in them.
    """
    jobs, short = _grid_jobs(chain, settings, repeats, folds), _short_names(list(settings))
    return _run_jobs(jobs, chain, Path(out), workers, gpus, Path(root), set_aside, progress, list(short.values()))


def compare(
    chain: Chain,
    out: str | Path,
    variants: Mapping[str, Mapping[str, Any]],
    *,
    repeats: int = 1,
    folds: int = 0,
    workers: int | None = None,
    gpus: Sequence[int] = (),
    root: str | Path = ".",
    set_aside: bool = False,
    progress: bool = True,
) -> Repeats:
    """Train and test named variants of a chain, such as one for every part left out; `grid` is for all combinations.

    Args:
        variants: name → what is another value there, as for `changed`; nothing for the chain itself. Tables
            have the name in the column `variant`.

    Other arguments and errors as for `grid`. The folder of a variant is called after it: `no_DiffNet` for "no DiffNet".
    """
    if not variants:
        raise ValueError("name at least one variant to train")
    jobs = []
    for name, settings in variants.items():
        try:
            one = changed(chain, settings)
        except ValueError as error:
            raise ValueError(f"variant {name!r}: {error}") from error
        jobs += _jobs(one, _text(name), {"variant": name}, repeats, folds)
    return _run_jobs(jobs, chain, Path(out), workers, gpus, Path(root), set_aside, progress, ["variant"])


def check_many(
    chain: Chain,
    *,
    settings: Mapping[str, Sequence[Any]] | None = None,
    repeats: int = 1,
    folds: int = 0,
    root: str | Path = ".",
) -> pd.DataFrame:
    """What `repeat`, `k_fold` or, given settings, `grid` would train; nothing is trained or written.

    Returns:
        The rows of `check_chain` for every run, whose folder is in the first column, `run`. Of runs that
        do the same, the first.

    Raises:
        ValueError: whatever would stop one of the runs, naming it, but for run folders that hold something else.
    """
    if settings is not None:
        jobs = _grid_jobs(chain, settings, repeats, folds)
    else:
        jobs = _fold_jobs(chain, folds) if folds else _repeat_jobs(chain, repeats)
    _check_folders(jobs)
    distinct: dict[str, _Job] = {}
    for job in jobs:
        distinct.setdefault(_digest(job.chain), job)
    tables, load = [], load_once(root)
    for job in distinct.values():
        try:
            table = check_chain(job.chain, root=root, load=load)
        except ValueError as error:
            raise ValueError(f"{job.folder}: {error}") from error
        table.insert(0, "run", job.folder)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def summarise(table: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Statistics over runs: a row for each measured value (and each group of the columns `by`).

    Returns:
        `by`; `metric`; `n`, the runs with a finite value; `missing`, those without one, which are left out; `mean`,
        `median`, `std` (ddof 1), `min`, `max`; `low` and `high`, the 95 % t-interval of the mean, mean ± t₀.₉₇₅(n − 1) ·
        std / √n. NaN where there are too few runs.

        The interval takes runs for independent, which they are not: random splits, and folds, share most of their
        training
        contents. It is therefore too narrow, and says nothing of other databases. Two settings are compared better
        run by run, on the same splits.

    Raises:
        ValueError: no runs, or a column of `by` is missing.
    """
    missing = [name for name in by if name not in table]
    if missing or table.empty:
        raise ValueError(f"the table of runs has no column {', '.join(missing)}" if missing else "there are no runs")
    groups = table.groupby(list(by), sort=False, dropna=False) if by else [((), table)]
    rows = [
        dict(zip(by, key, strict=True)) | {"metric": name} | _statistics(group[name].to_numpy(dtype=float))
        for key, group in groups
        for name in MEASURED
        if name in table
    ]
    return pd.DataFrame(rows)


def _statistics(values: np.ndarray) -> dict[str, float]:
    finite = values[np.isfinite(values)]
    n = len(finite)
    result = {"n": n, "missing": len(values) - n}
    result |= dict.fromkeys(("mean", "median", "std", "min", "max", "low", "high"), float("nan"))
    if n:
        result |= {"mean": finite.mean(), "median": np.median(finite), "min": finite.min(), "max": finite.max()}
    if n > 1:
        std = finite.std(ddof=1)
        half = student_t.ppf(0.975, n - 1) * std / np.sqrt(n)
        result |= {"std": std, "low": result["mean"] - half, "high": result["mean"] + half}
    return result


# ------------------------------------------------------------------------------------------------------ what is varied


def _reseeded(chain: Chain, k: int) -> Chain:
    *before, last = chain.steps
    if last.data.split == "all":
        raise ValueError('nothing is tested by the last stage, whose split is "all": there is nothing to repeat it for')
    stage = replace(last.stage, seed=last.stage.seed + k)
    last = replace(last, stage=stage, data=replace(last.data, seed=last.data.seed + k))
    return replace(chain, steps=(*before, last), seed=chain.seed if before else chain.seed + k)


def _of_fold(chain: Chain, folds: int, k: int) -> Chain:
    *before, last = chain.steps
    data = replace(last.data, split="folds", folds=folds, fold=k, ratios=Data.ratios)
    return replace(chain, steps=(*before, replace(last, data=data)))


def _repeat_jobs(chain: Chain, repeats: int) -> list[_Job]:
    if repeats < 1:
        raise ValueError(f"at least one run is needed, got {repeats}")
    return [_Job(f"run_{k:02d}", _reseeded(chain, k), {"run": k}) for k in range(repeats)]


def _fold_jobs(chain: Chain, folds: int) -> list[_Job]:
    if folds < 2:
        raise ValueError(f"at least two folds are needed, got {folds}")
    return [_Job(f"fold_{k:02d}", _of_fold(chain, folds, k), {"fold": k}) for k in range(folds)]


def _grid_jobs(chain: Chain, settings: Mapping[str, Sequence[Any]], repeats: int, folds: int) -> list[_Job]:
    short = _short_names(list(settings))
    jobs = []
    for combination in _combinations(settings):
        tells = {short[name]: value for name, value in combination.items()}
        folder = ",".join(f"{name}={_text(value)}" for name, value in tells.items())
        shown = {name: value if np.isscalar(value) else _text(value) for name, value in tells.items()}
        jobs += _jobs(changed(chain, combination), folder, shown, repeats, folds)
    return jobs


def _jobs(chain: Chain, folder: str, tells: Mapping[str, Any], repeats: int, folds: int) -> list[_Job]:
    """The runs of one chain among several: as it is, repeated, or over folds."""
    if repeats < 1 or folds not in (0, *range(2, max(folds, 1) + 1)) or (repeats > 1 and folds):
        raise ValueError(f"give either repeats, from 1, or folds, from 2, got {repeats} and {folds}")
    if folds:
        within = [(f"/fold_{k:02d}", _of_fold(chain, folds, k), {"fold": k}) for k in range(folds)]
    elif repeats > 1:
        within = [(f"/run_{k:02d}", _reseeded(chain, k), {"run": k}) for k in range(repeats)]
    else:
        within = [("", chain, {})]
    before = f"before_{_digest(_before(chain))}"
    return [_Job(folder + part, one, dict(tells) | which, before) for part, one, which in within]


def _before(chain: Chain) -> Chain | None:
    """The stages before the last one."""
    return replace(chain, steps=chain.steps[:-1]) if len(chain.steps) > 1 else None


def _digest(chain: Chain | None) -> str:
    return sha256(json.dumps(chain and asdict(chain)).encode()).hexdigest()[:8]


def _combinations(settings: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for name, values in settings.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"{name}: give the values to try as a list, got {values!r}")
    if not settings:
        raise ValueError("name at least one setting to vary")
    yield from (dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values()))


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Each name's last part, or as many as tell it from the others and from the columns of results."""
    short: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        others = [other for other in names if other != name]
        taken = {*_COLUMNS, "run", "fold", "metric", "mean", "median", "std", "min", "max", "low", "high", "missing"}
        short[name] = next(
            (end for end in ends if end not in taken and not any(f".{o}".endswith(f".{end}") for o in others)), name
        )
    return short


def _text(value: Any) -> str:
    """A value as part of a folder's name."""
    parts = value if isinstance(value, list | tuple) else [value]
    return re.sub(r"[^\w.+-]", "_", "-".join(map(str, parts)))


# -------------------------------------------------------------------------------------------------------------- running


def _run_jobs(
    jobs: Sequence[_Job],
    chain: Chain,
    out: Path,
    workers: int | None,
    gpus: Sequence[int],
    root: Path,
    set_aside: bool,
    progress: bool,
    settings: Sequence[str] = (),
) -> Repeats:
    workers = len(gpus) or 1 if workers is None else max(1, count_workers(workers))
    apart = workers > 1 or bool(gpus)
    if apart and (chain.devices != 1 or chain.num_nodes != 1):
        raise ValueError(
            "runs at once have one device each: set devices and num_nodes to 1, or run one after the other"
        )
    if apart and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ValueError("runs at once are started by one process, not by each of several: without torchrun")
    _check_folders(jobs)
    load = load_once(root)
    check_chain(jobs[0].chain, root=root, load=load)  # whatever is wrong with the last stage is found before the first
    options = _Options(out, root, set_aside, progress, load, workers if apart else 0, tuple(gpus))
    firsts = {job.before: _before(job.chain) for job in jobs}
    failed = dict(_run_all({folder: first for folder, first in firsts.items() if first}, options))
    failed = {folder: error for folder, error in failed.items() if error}
    runs = {job.folder: _last(job, out, root) for job in jobs if job.before not in failed}
    errors = {job.folder: f"{job.before}: {failed[job.before]}" for job in jobs if job.before in failed}
    finished: set[str] = set()
    table = summary = pd.DataFrame()
    for folder, error in _run_all(runs, options):
        if error:
            errors[folder] = error
            continue
        finished.add(folder)
        table = pd.DataFrame([_row(job, out) for job in jobs if job.folder in finished])
        summary = summarise(table, [*settings, *_MEASURED_ON])
        if chain.writes_here:
            write_table(table, out / "runs.csv")
            write_table(summary, out / "summary.csv")
    if errors:
        shown = [f"{folder} ({error})" for folder, error in list(errors.items())[:_MAX_SHOWN]]
        more = [f"and {len(errors) - _MAX_SHOWN} more"] if len(errors) > _MAX_SHOWN else []
        raise RunsFailed(
            f"{len(errors)} of {len(jobs)} runs failed: {'; '.join(shown + more)}. "
            "What is finished is kept; the same call tries the others again"
        )
    return Repeats(out, table, summary)


def _check_folders(jobs: Sequence[_Job]) -> None:
    folders = [job.folder for job in jobs]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise ValueError(f"two variants or combinations of settings look alike as names of folders: {twice}")


def _last(job: _Job, out: Path, root: Path) -> Chain:
    """The last stage alone, from the result of those before it."""
    before = _before(job.chain)
    if before is None:
        return job.chain
    start = os.path.relpath(out / job.before / before.folders[-1], root)
    if start.startswith(".."):
        start = str((out / job.before / before.folders[-1]).absolute())
    return replace(job.chain, steps=job.chain.steps[-1:], start=Path(start).as_posix(), model={})


def _row(job: _Job, out: Path) -> dict[str, Any]:
    row = pd.read_csv(out / job.folder / "chain.csv").iloc[-1].to_dict()
    row |= {"seed": job.chain.steps[-1].data.seed, "folder": job.folder}
    return job.tells | {name: row[name] for name in _COLUMNS}


@dataclass(frozen=True)
class _Options:
    """How runs are run; `workers` 0 for one after the other, in this process."""

    out: Path
    root: Path
    set_aside: bool
    progress: bool
    load: Callable[[Data], Any]
    workers: int
    gpus: tuple[int, ...]


def _run_all(chains: Mapping[str, Chain], options: _Options) -> Iterator[tuple[str, str]]:
    """(folder, what went wrong or "") of each run, as they end."""
    waiting = dict(chains)
    for folder, chain in chains.items():
        finished = (options.out / folder / chain.folders[-1] / "result.json").is_file()
        # Nothing but loading is left to do for it, which this process does best: it has the database.
        if not options.workers or (finished and not options.set_aside):
            yield folder, _run_here(waiting.pop(folder), options.out / folder, options)
    if waiting:
        with tqdm(total=len(waiting), desc=options.out.name, unit="run", disable=not options.progress) as bar:
            for result in _run_in_processes(waiting, options):
                bar.update()
                yield result


def _run_here(chain: Chain, folder: Path, options: _Options) -> str:
    try:
        run_chain(
            chain, folder,
            root=options.root, set_aside=options.set_aside, progress=options.progress, load=options.load,
        )  # fmt: skip
    except Exception as error:
        log.exception("%s failed", folder.name)
        return f"{type(error).__name__}: {error}"
    return ""


def _run_in_processes(chains: dict[str, Chain], options: _Options) -> Iterator[tuple[str, str]]:
    waiting, free = list(chains.items()), list(range(options.workers))
    running: dict[str, tuple[subprocess.Popen, int]] = {}
    try:
        while waiting or running:
            while waiting and free:
                (folder, chain), place = waiting.pop(0), free.pop(0)
                running[folder] = _start(chain, folder, place, options), place
            ended = [folder for folder, (process, _) in running.items() if process.poll() is not None]
            if not ended:
                time.sleep(0.1)
            for folder in ended:
                process, place = running.pop(folder)
                process.stdin.close()
                free.append(place)
                yield folder, _what_went_wrong(process.returncode, options.out / folder / "log.txt")
    finally:
        for process, _ in running.values():
            process.terminate()  # what a run has reached is kept: it goes on from there
        for process, _ in running.values():
            try:
                process.wait(timeout=GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdin.close()


def _start(chain: Chain, folder: str, place: int, options: _Options) -> subprocess.Popen:
    """A process of its own for one run. It ends with this one: it reads a pipe that closes when this one is gone."""
    environment = {name: value for name, value in os.environ.items() if name not in _RANKS}
    package = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [environment.get("PYTHONPATH")])])
    environment["OMP_NUM_THREADS"] = str(max(1, count_workers(None) // options.workers))
    if options.gpus:
        gpu = options.gpus[place % len(options.gpus)]
        visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        if gpu < 0 or (visible and gpu >= len(visible)):
            raise ValueError(f"there is no GPU {gpu}: CUDA_VISIBLE_DEVICES names {len(visible)}")
        environment["CUDA_VISIBLE_DEVICES"] = visible[gpu] if visible else str(gpu)
    (options.out / folder).mkdir(parents=True, exist_ok=True)
    with (options.out / folder / "log.txt").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", "from vtamiq.training.repeats import _serve; _serve()"],
            env=environment, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    task = {"chain": asdict(chain), "out": str(options.out / folder), "root": str(options.root)}
    try:
        process.stdin.write(json.dumps(task | {"set_aside": options.set_aside}) + "\n")
        process.stdin.flush()
    except BrokenPipeError:  # it is gone already: its log says why
        pass
    return process


def _serve() -> None:
    """What the process of a run does."""
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C, the parent tells us
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chain = build(Chain, task.pop("chain"), "")
    run_chain(chain, task.pop("out"), progress=False, **task)


def _end_with_parent() -> None:
    # Not `sys.stdin.read`: it holds a lock that a loader's process, forked meanwhile, would wait for without end.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


def _what_went_wrong(status: int, path: Path) -> str:
    if status == 0:
        return ""
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}; is there memory for so many runs at once?"
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"its process ended with status {status}"
