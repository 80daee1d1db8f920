"""A chain of stages many times over: over random splits and seeds, over folds, over settings; and statistics of the runs.

Only the last stage is repeated: those before it are trained once for all runs that agree in them (folder `before`).
`runs.csv` has a row for every run, `summary.csv` the statistics over runs.
"""

import itertools
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student_t
from tqdm.auto import tqdm

from vtamiq.databases.schema import Database
from vtamiq.training.apart import lifeline, run_apart
from vtamiq.training.chain import VALUES, Chain, Data, FoldSplit, check_chain, load_once, run_chain
from vtamiq.utils.configs import changed, plain
from vtamiq.utils.digests import digest
from vtamiq.utils.files import read_table, write_table
from vtamiq.utils.processes import count_workers

log = logging.getLogger(__name__)

MEASURED = (*VALUES[1:], "val_srocc", "srocc_start", "srocc_gain")
_MEASURED_ON = ("database", "score", "synthetic")
_COLUMNS = (*_MEASURED_ON, "seed", "train", "val", "test", "left_out", *VALUES, "srocc_start", "srocc_gain", "val_srocc",
            "best_epoch", "seconds", "folder")  # fmt: skip
_MAX_SHOWN = 5  # failed runs, in the message


class RunsFailed(ValueError):
    """Some of many runs failed; the message names them. The others are finished, and in `runs.csv`."""


@dataclass(frozen=True)
class PlannedRun:
    """One run: its folder below that of all runs, the chain, what tells it from others, the folder of earlier stages."""

    folder: str
    chain: Chain
    tells: Mapping[str, Any]
    before: str = "before"


@dataclass(frozen=True)
class Runs:
    """Results of many runs in `folder`.

    `table` has a row for every run: what tells it from the others (`run`, `fold`, settings); `database`, `score` and
    `synthetic` of the test; `seed` of the split; pairs in each part; measures of `evaluate`, `srocc_start` before the last
    stage, `srocc_gain` over it; `val_srocc`, `best_epoch`, `seconds`, `folder`. `summary` is `summarise` of it.
    """

    folder: Path
    table: pd.DataFrame = field(repr=False)
    summary: pd.DataFrame = field(repr=False)


def repeat(chain: Chain, num_runs: int = 1, *, folds: int = 0) -> list[PlannedRun]:
    """Plan runs over random splits and seeds, as in the paper (`run_00`, …), or over folds (`fold_00`, …).

    Run k adds k to the seeds of the last stage and its data and, if there is one stage only, of the first weights. With
    `folds`, every content is tested exactly once. ValueError for no runs, one fold, both, or where nothing is tested.
    """
    if num_runs < 1 or folds < 0 or folds == 1 or (num_runs > 1 and folds):
        raise ValueError(f"give either num_runs, from 1, or folds, from 2, got {num_runs} and {folds}")
    *before, last = chain.steps
    if folds:
        steps = [replace(last, data=replace(last.data, split=FoldSplit(folds=folds, fold=k))) for k in range(folds)]
        chains = [replace(chain, steps=(*before, step)) for step in steps]
        return [PlannedRun(f"fold_{k:02d}", one, {"fold": k}) for k, one in enumerate(chains)]
    if num_runs > 1 and last.data.split == "all":
        raise ValueError('nothing is tested by the last stage, whose split is "all": there is nothing to repeat it for')
    seeds = {"steps.-1.stage.seed": last.stage.seed, "steps.-1.data.seed": last.data.seed}
    if not before:
        seeds["seed"] = chain.seed
    chains = [changed(chain, {name: seed + k for name, seed in seeds.items()}) for k in range(num_runs)]
    return [PlannedRun(f"run_{k:02d}", one, {"run": k}) for k, one in enumerate(chains)]


def grid(chain: Chain, settings: Mapping[str, Sequence[Any]], *, num_runs: int = 1, folds: int = 0) -> list[PlannedRun]:
    """Plan every combination of settings, each as `repeat` has it; choose between them by `val_srocc`, not by the test.

    `settings`: values to try by where they stand, as for `changed`: {"model.num_groups": [0, 2]}. Columns are called by as
    much of the end of that as tells it from others. ValueError for no settings, a place or value that is refused.
    """
    for name, values in settings.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"{name}: give the values to try as a list, got {values!r}")
    if not settings:
        raise ValueError("name at least one setting to vary")
    short = _short_names(list(settings))
    plan = []
    for values in itertools.product(*settings.values()):
        one = changed(chain, dict(zip(settings, values, strict=True)))
        folder = ",".join(f"{name}={_text(value)}" for name, value in zip(short, values, strict=True))
        shown = [value if np.isscalar(value) else _text(value) for value in values]
        plan += _each(one, folder, dict(zip(short, shown, strict=True)), num_runs, folds)
    return plan


def compare(
    chain: Chain, variants: Mapping[str, Mapping[str, Any]], *, num_runs: int = 1, folds: int = 0
) -> list[PlannedRun]:
    """Plan named variants of a chain, each as `repeat` has it; ValueError for none, or a setting that is refused.

    `variants`: name (column `variant`, and the folder: `no_DiffNet` for "no DiffNet") → other values, as for `changed`.
    """
    if not variants:
        raise ValueError("name at least one variant to train")
    plan = []
    for name, settings in variants.items():
        try:
            one = changed(chain, settings)
        except ValueError as error:
            raise ValueError(f"variant {name!r}: {error}") from error
        plan += _each(one, _text(name), {"variant": name}, num_runs, folds)
    return plan


def _each(chain: Chain, folder: str, tells: Mapping[str, Any], num_runs: int, folds: int) -> list[PlannedRun]:
    """The runs of one chain among several."""
    before = f"before_{digest(plain(first), 8)}" if (first := _before(chain)) else ""
    within = repeat(chain, num_runs, folds=folds)
    if len(within) == 1:
        return [PlannedRun(folder, chain, tells, before)]
    return [PlannedRun(f"{folder}/{run.folder}", run.chain, {**tells, **run.tells}, before) for run in within]


def _before(chain: Chain) -> Chain | None:
    """The stages before the last one."""
    return replace(chain, steps=chain.steps[:-1]) if len(chain.steps) > 1 else None


def _short_names(names: Sequence[str]) -> list[str]:
    """Each name's last part, or as many as tell it from the others and from the columns of results."""
    taken = {*_COLUMNS, "run", "fold", "metric", "mean", "median", "std", "min", "max", "low", "high", "missing"}
    short = []
    for name in names:
        parts = name.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        others = [other for other in names if other != name]
        free = (end for end in ends if end not in taken and not any(f".{o}".endswith(f".{end}") for o in others))
        short.append(next(free, name))
    return short


def _text(value: Any) -> str:
    """A value as part of a folder's name."""
    parts = value if isinstance(value, list | tuple) else [value]
    return re.sub(r"[^\w.+-]", "_", "-".join(map(str, parts)))


def summarise(table: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Statistics over runs: a row for each `metric` (and each group of the columns `by`); ValueError without runs.

    `n` runs with a finite value, `missing` those without; `mean`, `median`, `std` (ddof 1), `min`, `max`; `low`, `high`,
    the 95 % t-interval of the mean, too narrow since splits share training contents. NaN where there are too few runs.
    """
    missing = [name for name in by if name not in table]
    if missing or table.empty:
        raise ValueError(f"the table of runs has no column {', '.join(missing)}" if missing else "there are no runs")
    groups = table.groupby(list(by), sort=False, dropna=False) if by else [((), table)]
    return pd.DataFrame(
        {**dict(zip(by, key, strict=True)), "metric": name, **_statistics(group[name].astype(float))}
        for key, group in groups
        for name in MEASURED
        if name in table
    )


def _statistics(values: pd.Series) -> dict[str, float]:
    finite = values[np.isfinite(values)]
    n, mean = len(finite), finite.mean()
    half = student_t.ppf(0.975, n - 1) * finite.sem() if n > 1 else np.nan
    spread = {"std": finite.std(), "min": finite.min(), "max": finite.max(), "low": mean - half, "high": mean + half}
    return {"n": n, "missing": len(values) - n, "mean": mean, "median": finite.median(), **spread}


def check_many(plan: Sequence[PlannedRun], *, root: str | Path = ".") -> pd.DataFrame:
    """The rows of `check_chain` for every distinct run, with its folder as `run`; ValueError names a run that fails."""
    _check_folders(plan)
    done, tables, load = [], [], load_once(root, keep=False)
    for run in plan:
        if run.chain in done:
            continue
        done.append(run.chain)
        try:
            table = check_chain(run.chain, root=root, load=load)
        except ValueError as error:
            raise ValueError(f"{run.folder}: {error}") from error
        table.insert(0, "run", run.folder)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def run_many(
    plan: Sequence[PlannedRun],
    out: str | Path,
    *,
    workers: int | None = None,
    gpus: Sequence[int] = (),
    root: str | Path = ".",
    progress: bool = True,
) -> Runs:
    """Train and test the runs of a plan. Finished runs are loaded: call again after an interruption or a failure.

    Args:
        out: folder of all runs.
        workers: how many runs at once, each in a process of its own, with its share of the cores and `log.txt` in its
            folder. None: one for every GPU that is named; without any, one after the other, in here.
        gpus: numbers of GPUs, which the processes take in turns; empty leaves the choice to `Chain.accelerator`.

    RunsFailed after all other runs have finished; ValueError for a wrong chain or several devices for runs at once.
    """
    out, chain, load = Path(out), plan[0].chain, load_once(root)
    apart = _check_workers(chain, workers, gpus)
    _check_folders(plan)
    check_chain(chain, root=root, load=load)  # whatever is wrong with the last stage is found before the first
    options = (out, root, progress, load, apart, gpus)
    firsts = {run.before: first for run in plan if (first := _before(run.chain))}
    failed = {folder: error for folder, error in _run_all(firsts, *options) if error}
    errors = {run.folder: f"{run.before}: {failed[run.before]}" for run in plan if run.before in failed}
    finished: set[str] = set()
    table = summary = pd.DataFrame()
    chains = {run.folder: _last(run, out, root) for run in plan if run.folder not in errors}
    for folder, error in _run_all(chains, *options):
        if error:
            errors[folder] = error
            continue
        finished.add(folder)
        table = pd.DataFrame([_row(run, out) for run in plan if run.folder in finished])
        summary = summarise(table, [*(name for name in plan[0].tells if name not in ("run", "fold")), *_MEASURED_ON])
        if chain.places.main:
            write_table(table, out / "runs.csv")
            write_table(summary, out / "summary.csv")
    if errors:
        shown = "; ".join(f"{folder} ({error})" for folder, error in list(errors.items())[:_MAX_SHOWN])
        raise RunsFailed(
            f"{len(errors)} of {len(plan)} runs failed: {shown}{'; …' if len(errors) > _MAX_SHOWN else ''}. "
            "What is finished is kept; the same call tries the others again"
        )
    return Runs(out, table, summary)


def _check_workers(chain: Chain, workers: int | None, gpus: Sequence[int]) -> int:
    """How many processes run at once; 0 for one after the other, in this one."""
    workers = len(gpus) or 1 if workers is None else max(1, count_workers(workers))
    if workers == 1 and not gpus:
        return 0
    if chain.places.processes > 1:
        raise ValueError(
            "runs at once have one device each: set devices and num_nodes to 1, or run one after the other"
        )
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ValueError("runs at once are started by one process, not by each of several: without torchrun")
    return workers


def _check_folders(plan: Sequence[PlannedRun]) -> None:
    folders = [run.folder for run in plan]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), ""):
        raise ValueError(f"two variants or combinations of settings look alike as names of folders: {twice}")


def _last(run: PlannedRun, out: Path, root: str | Path) -> Chain:
    """The last stage alone, from the result of those before it."""
    before = _before(run.chain)
    if before is None:
        return run.chain
    start = (out / run.before / before.folders[-1]).absolute()
    root = Path(root).absolute()
    start = start.relative_to(root) if start.is_relative_to(root) else start
    return replace(run.chain, steps=run.chain.steps[-1:], start=start.as_posix(), model={})


def _row(run: PlannedRun, out: Path) -> dict[str, Any]:
    row = read_table(out / run.folder / "chain.csv", VALUES).iloc[-1]
    row["seed"], row["folder"] = run.chain.steps[-1].data.seed, run.folder
    return {**run.tells, **row[[*_COLUMNS]]}


def _run_all(
    chains: Mapping[str, Chain],
    out: Path,
    root: str | Path,
    progress: bool,
    load: Callable[[Data], Database] | None = None,
    workers: int = 0,
    gpus: Sequence[int] = (),
) -> Iterator[tuple[str, str]]:
    """(folder, what went wrong or "") of each run, as they end; `workers` 0: one after the other, in this process."""
    apart = {}
    for folder, chain in chains.items():
        # Nothing but loading is left to do for a finished one, which this process does best: it has the database.
        if workers and not (out / folder / chain.folders[-1] / "result.json").is_file():
            apart[folder] = chain
            continue
        said = ""
        try:
            run_chain(chain, out / folder, root=root, progress=progress, load=load)
        except Exception as error:
            log.exception("%s failed", folder)
            said = f"{type(error).__name__}: {error}"
        yield folder, said
    if apart:
        with tqdm(total=len(apart), desc=out.name, unit="run", disable=not progress) as bar:
            for result in _run_apart(apart, out, root, workers, gpus):
                bar.update()
                yield result


def _run_apart(
    chains: Mapping[str, Chain], out: Path, root: str | Path, workers: int, gpus: Sequence[int]
) -> Iterator[tuple[str, str]]:
    places: SimpleQueue = SimpleQueue()
    for place in range(workers):
        places.put(gpus[place % len(gpus)] if gpus else None)
    threads = max(1, count_workers(None) // workers)

    def run(folder: str, line: int) -> str:
        gpu = places.get()
        try:
            run_apart(chains[folder], out / folder, line, root=root, gpu=gpu, threads=threads)
        except RuntimeError as error:
            return str(error)
        finally:
            places.put(gpu)
        return ""

    with ThreadPoolExecutor(workers) as pool, lifeline() as line:
        futures = {pool.submit(run, folder, line): folder for folder in chains}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:  # after an interruption, nothing is begun, and what has begun ends with the line
            pool.shutdown(wait=False, cancel_futures=True)
