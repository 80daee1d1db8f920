"""Several stages of training in a row, as one YAML file: each starts from the best weights of the one before.

    start: timm                      # or a file or folder with weights; empty for random ones
    model: {zero_anchor: true}       # fields of VTAMIQConfig
    steps:
      - data: {database: kadid10k, split: random, seed: 1}
        stage: {name: pretraining, epochs: 10}
      - data: {database: tid2013, split: original}
        stage: {name: fine_tuning, epochs: 20, optimizer: {lr: 5e-5}}

Names that are left out have the defaults of the classes below. Relative paths count from the current folder. Run folder:
`chain.yaml`, a run folder of `vtamiq.training.run` for every stage (`00_pretraining`, `01_fine_tuning`), and
`chain.csv`, the
table of what each stage gained.
"""

import logging
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from vtamiq.databases.demo import demo_database
from vtamiq.databases.loading import load_from_text, parse_options
from vtamiq.databases.schema import Database, DatabaseError, LabelScale
from vtamiq.databases.seen import pictures_of, unseen
from vtamiq.databases.simulated import simulate_preferences
from vtamiq.databases.splits import fold_split, original_split, shared_pictures, worth_testing
from vtamiq.evaluation.tables import evaluate
from vtamiq.model.checkpoints import CheckpointError
from vtamiq.model.config import VTAMIQConfig
from vtamiq.model.initialise import start_from_scratch
from vtamiq.model.network import VTAMIQ
from vtamiq.training.run import START, Devices, Run, check_stage, train
from vtamiq.training.stage import Stage
from vtamiq.utils.configs import build, changed, conform, did_you_mean, plain, read_yaml, require
from vtamiq.utils.files import write_table, write_text

__all__ = [
    "Chain",
    "Data",
    "Step",
    "check_chain",
    "example",
    "launch",
    "load_data",
    "load_once",
    "run_chain",
    "start_model",
]

log = logging.getLogger(__name__)

SPLITS = ("random", "distributed", "original", "folds", "all")
_PAIR = ["ref_path", "dist_path"]
VALUES = ("n", "srocc", "krocc", "plcc", "rmse", "plcc_fitted", "rmse_fitted")  # of `evaluate`, on the test part


@dataclass(frozen=True)
class Data:
    """What a stage is trained, validated and tested on. All splits are by content, so that no picture is in two parts.

    Attributes:
        database: as `load_from_text` takes it ("live:realigned=false", "data/mine"), or "demo:photos" or
            "demo:textures", also with options ("demo:photos:preset=smoke").
        split: "random": `Database.split` by `ratios`, of train, validation and test; "distributed": the one that the
            database comes with; "original": the fixed one of the original authors; "folds": test on part `fold` of
            `folds`; "all": nothing is tested, all is for training and validation.
        validation: share of the contents that are not tested which is for validation, where the split says nothing of
            it: "folds", "all", and databases that come with a train and a test part only.
        seed: of whatever is drawn: a random split, folds, validation contents, simulated preferences.
        label: what the scores of a synthetic database are, see `load_synthetic`.
        simulate: preferences to simulate from the scores for each reference (`vtamiq.databases.simulated`), for a
        stage that learns
            from preferences; 0 takes those of the database.
    """

    database: str = ""
    split: str = "random"
    ratios: tuple[float, ...] = (0.6, 0.2, 0.2)
    folds: int = 5
    fold: int = 0
    validation: float = 0.2
    seed: int = 0
    label: str = "consensus"
    simulate: int = 0

    def __post_init__(self):
        conform(self)
        require(self, "database", bool(self.database.strip()), "must name a database")
        require(self, "split", self.split in SPLITS, f"must be one of {', '.join(SPLITS)}")
        fits = len(self.ratios) == 3 and min(self.ratios) > 0 and abs(sum(self.ratios) - 1) < 1e-9
        rule = 'must be three positive shares with sum 1 (train, validation, test; without a test: split "all")'
        require(self, "ratios", fits, rule)
        require(self, "folds", self.folds >= 2, "must be at least 2")
        require(self, "fold", 0 <= self.fold < self.folds, f"must be from 0 to folds - 1 = {self.folds - 1}")
        require(self, "validation", 0 < self.validation < 1, "must lie between 0 and 1")
        for name in ("seed", "simulate"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        for name, split in (("ratios", "random"), ("folds", "folds"), ("fold", "folds")):
            default = getattr(Data, name)
            acts = self.split == split or getattr(self, name) == default
            require(self, name, acts, f"acts with split={split!r} only; leave it at {default!r}")

    def parts(self, database: Database) -> tuple[Database, Database, Database | None]:
        """(training, validation, test) parts of the loaded database; test is None for the split "all".

        Raises:
            DatabaseError: the database has no such split, or too few contents for it.
        """
        shares = (1 - self.validation, self.validation)
        if self.split == "all":
            return *database.split(shares, self.seed), None
        if self.split == "folds":
            return fold_split(database, self.folds, self.fold, validation=self.validation, seed=self.seed)
        if self.split == "random":
            return database.split(self.ratios, self.seed)
        parts = database.distributed_split() if self.split == "distributed" else original_split(database)
        return parts if len(parts) == 3 else (*parts[0].split(shares, self.seed), parts[1])


@dataclass(frozen=True)
class Step:
    """One stage of a chain and its data."""

    data: Data = None
    stage: Stage = field(default_factory=Stage)

    def __post_init__(self):
        require(self, "data", self.data is not None, "is missing: a step needs a database")
        conform(self)
        name = self.stage.name
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"Step.stage.name is part of a folder's name: letters, digits, _, - and ., got {name!r}")
        if self.data.simulate and not self.stage.learns_preferences:
            raise ValueError(
                "Step.data.simulate is for stages with loss: {kind: preferences}; this one learns from scores"
            )


@dataclass(frozen=True)
class Chain:
    """Stages of training in a row, the first of which starts as `start` says.

    Attributes:
        model: fields of `VTAMIQConfig`, a mapping or the configuration itself. If `start` has a network of its own, they
            are changes to its configuration, such as other dropout rates.
        start: weights. "" for random ones (`vtamiq.model.initialise`); "timm" to download the ViT that the model
        names; a ViT as
            .npz in the JAX layout; the folder of a finished run or of `save_pretrained`; a checkpoint of the authors'.
        seed: of the first weights. Stages and data have seeds of their own.
        steps: one or more.
        accelerator, devices, num_nodes, strategy: what to run on, as for `train`.
    """

    model: dict = field(default_factory=dict)
    start: str = ""
    seed: int = 0
    steps: tuple[Step, ...] = ()
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"

    def __post_init__(self):
        if isinstance(self.model, VTAMIQConfig):
            default = VTAMIQConfig()
            given = {name: value for name, value in asdict(self.model).items() if value != getattr(default, name)}
            object.__setattr__(self, "model", given)
        conform(self)
        config = build(VTAMIQConfig, self.model, "Chain.model")
        object.__setattr__(self, "model", {name: getattr(config, name) for name in self.model})
        require(self, "seed", self.seed >= 0, "must not be negative")
        require(self, "steps", len(self.steps) > 0, "must have at least one step")
        require(self, "devices", self.devices >= 1 or self.devices == -1, "must be at least 1, or -1 for all there are")
        require(self, "num_nodes", self.num_nodes >= 1, "must be at least 1")

    @classmethod
    def load(cls, path: str | Path, settings: Mapping[str, Any] | None = None) -> "Chain":
        """Read a chain from YAML.

        Args:
            settings: values to use instead of those in the file, as for `changed`.

        Raises:
            ValueError: naming the file, the place in it and what is wrong there: no YAML, a name twice, an unknown name
                (with the nearest known one), or a value that is refused.
            OSError: no such file.
        """
        content = Path(path).read_bytes()
        try:
            values = read_yaml(content)
            chain = build(cls, {} if values is None else values, "")
        except yaml.YAMLError as error:
            mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
            where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
            raise ValueError(f"{path}: {where}{problem or error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return changed(chain, settings or {})

    def save(self, path: str | Path) -> None:
        """Write the chain as YAML, with every field; `load` gives it back."""
        # In ASCII: PyYAML loses some characters else.
        write_text(path, yaml.safe_dump(plain(self), sort_keys=False))

    @property
    def places(self) -> Devices:
        """What it runs on."""
        return Devices(self.accelerator, self.devices, self.num_nodes, self.strategy)

    @property
    def writes_here(self) -> bool:
        """Whether this process is the only one of the run, or the one of them that writes and prints."""
        return self.places.main

    @property
    def folders(self) -> list[str]:
        """Names of the run folders of all steps."""
        return [f"{number:02d}_{step.stage.name}" for number, step in enumerate(self.steps)]


def example() -> str:
    """A commented YAML file of the paper's whole chain: KADIS-700k, PieAPP, TID2013."""
    return files("vtamiq.training").joinpath("paper_chain.yaml").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- model and databases


def start_model(chain: Chain, root: str | Path = ".") -> VTAMIQ:
    """The network that the first stage starts from; `root` is what `chain.start` is relative to.

    Raises:
        CheckpointError: the weights are not there, damaged or of another network.
    """
    if chain.start in ("", "timm") or chain.start.endswith(".npz"):
        config = VTAMIQConfig(**chain.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(chain.seed)
            if not chain.start:
                return start_from_scratch(VTAMIQ(config), chain.seed)
            return VTAMIQ.from_vit(config, pretrained=chain.start == "timm" or Path(root) / chain.start)
    path = Path(root) / chain.start
    if path.is_file():
        return VTAMIQ.from_original(path, **chain.model)
    finished = (path / "result.json").is_file()
    model = Run.load(path).model if finished else VTAMIQ.from_pretrained(path if path.is_dir() else chain.start)
    return _reconfigured(model, chain) if chain.model else model


def _reconfigured(model: VTAMIQ, chain: Chain) -> VTAMIQ:
    other = VTAMIQ(replace(model.config, **chain.model))
    try:
        other.load_state_dict(model.state_dict())
    except RuntimeError as error:
        names = ", ".join(chain.model)
        raise CheckpointError(f"{chain.start}: its weights do not fit a model with other {names} ({error})") from error
    other.origin, other.seen = model.origin, model.seen
    return other


def load_data(data: Data, root: str | Path = ".") -> Database:
    """The whole database, with simulated preferences if they are asked for; `root` is what paths are relative to.

    Raises:
        DatabaseError: as `load_from_text`.
    """
    options = {} if data.label == "consensus" else {"label": data.label}
    place, *given = (part.strip() for part in data.database.split(":"))
    if place == "demo":
        name, *given = given or [""]
        try:
            database = demo_database(name, **options | parse_options(given))
        except TypeError as error:
            raise DatabaseError(f"{data.database}: {error}") from error
    else:
        database = load_from_text(data.database, root, **options)
    if not data.simulate:
        return database
    preferences = simulate_preferences(database, per_reference=data.simulate, seed=data.seed)
    return replace(database, preferences=preferences)


# ------------------------------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class _Planned:
    """A step with its parts, after what must not be validated or tested on was left out."""

    step: Step
    training: Database
    validation: Database
    test: Database | None
    left_out: int  # test pairs


def _plan(chain: Chain, model: VTAMIQ, load: Callable[[Data], Database]) -> list[_Planned]:
    """All parts of all steps, so that whatever is wrong with the last is found before the first is trained."""
    seen, planned = list(model.seen or ()), []
    trained = [entry for entry in seen if entry.get("role") == "train"]
    if model.seen is None:
        log.warning("it is not known which pictures %s was trained on; they may be among those tested", chain.start)
    for number, step in enumerate(chain.steps):
        place = f"steps[{number}] ({step.stage.name})"
        parts = training, validation, test = _placed(place, lambda data: data.parts(load(data)), step.data)
        _placed(place, _check_labels, step, training, validation)
        validation = _without(validation, trained, "validation", place)
        test = None if test is None else _without(test, seen, "test", place)
        _placed(place, check_stage, model, step.stage, training, validation, test, chain.places)
        planned.append(_Planned(step, training, validation, test, 0 if test is None else len(parts[2]) - len(test)))
        if test is not None:
            _warn_of_relatives(seen, test, place)
        if number + 1 < len(chain.steps):
            trained.append(pictures_of(training, "train"))
            seen += [trained[-1], pictures_of(validation, "val")]
    return planned


def _placed(place: str, function: Callable, *arguments: Any) -> Any:
    """The result of a call whose errors are told with the place they belong to."""
    try:
        return function(*arguments)
    except ValueError as error:
        kind = type(error) if isinstance(error, DatabaseError | CheckpointError) else ValueError
        raise kind(f"{place}: {error}") from error


def _check_labels(step: Step, training: Database, validation: Database) -> None:
    if step.stage.learns_preferences:
        for part in (training, validation):
            if part.preferences is None:
                raise DatabaseError(f"{part.name} has no preferences; `simulate: 200` makes some from its scores")
        return
    LabelScale.fit(training)
    missing = int(validation.pairs["score"].isna().sum())
    if missing:
        raise DatabaseError(f"{validation.name}: {missing} of {len(validation)} validation rows have no score")
    for name in step.stage.auxiliary:
        if name not in training.pairs:
            raise DatabaseError(f"{training.name} has no column {name!r} to learn{did_you_mean(name, training.pairs)}")


def _without(part: Database, seen: Sequence[Mapping[str, Any]], name: str, place: str) -> Database:
    kept = unseen(part, seen)
    if kept is None:
        raise DatabaseError(
            f"{place}: an earlier stage has seen every picture of the {name} part of {part.name} ({len(part)} pairs); "
            'give both the same split and seed, or take another database (or split "all", for no test)'
        )
    if len(kept) < len(part):
        log.warning(
            "%s: %d of %d %s pairs of %s are left out: an earlier stage has seen their pictures",
            place, len(part) - len(kept), len(part), name, part.name,
        )  # fmt: skip
    return kept


def _warn_of_relatives(seen: Sequence[Mapping[str, Any]], test: Database, place: str) -> None:
    for name in dict.fromkeys(entry["database"] for entry in seen):
        source = shared_pictures(name, test.name)
        if source is not None and name != test.name:
            log.warning(
                "%s: %s has pictures from the same source as %s (%s), which was trained on; crops or copies saved anew "
                "cannot be told", place, test.name, name, source,
            )  # fmt: skip


def check_chain(
    chain: Chain, *, root: str | Path = ".", load: Callable[[Data], Database] | None = None
) -> pd.DataFrame:
    """What would be trained: weights, databases and splits are loaded as for a run, and nothing is trained or written.

    Returns:
        One row per step: `name`, `folder`, `start`, `labels`, `database`, `score`, `synthetic`, pairs for `train`, `val`
        and `test` (0 for no test), `left_out` (test pairs that an earlier stage saw), `preferences` for training,
        `epochs`,
        numbers of references (`train_references`, …), `parameters` of the network.

    Raises:
        ValueError: whatever would stop `run_chain`, but for run folders that hold something else.
    """
    model = _placed("start", start_model, chain, root)
    planned = _plan(chain, model, load or load_once(root))
    return pd.DataFrame(
        {"step": number}
        | _about(chain, number, part)
        | {f"{name}_references": 0 if p is None else len(p.references) for name, p in _parts(part).items()}
        | {"parameters": sum(p.numel() for p in model.parameters())}
        for number, part in enumerate(planned)
    )


def _parts(part: _Planned) -> dict[str, Database | None]:
    return {"train": part.training, "val": part.validation, "test": part.test}


def _about(chain: Chain, number: int, part: _Planned) -> dict[str, Any]:
    """What a row says of a step, trained or not."""
    by_preferences = part.step.stage.learns_preferences
    return (
        {
            "name": part.step.stage.name,
            "folder": chain.folders[number],
            "start": chain.folders[number - 1] if number else chain.start or "random",
            "labels": "preferences" if by_preferences else "scores",
            "database": part.training.name,
            "score": part.training.score_name,
            "synthetic": part.training.synthetic,
        }
        | {name: 0 if p is None else len(p) for name, p in _parts(part).items()}
        | {"left_out": part.left_out, "preferences": len(part.training.preferences) if by_preferences else 0}
        | {"epochs": part.step.stage.epochs}
    )


def load_once(root: str | Path = ".") -> Callable[[Data], Database]:
    """`load_data` that loads each database once, however many stages or runs split it."""
    loaded: dict[tuple, Database] = {}

    def load(data: Data) -> Database:
        key = data.database, data.label, data.simulate, data.seed if data.simulate else 0
        if key not in loaded:
            loaded[key] = load_data(data, root)
        return loaded[key]

    return load


# -------------------------------------------------------------------------------------------------------------- the run


def run_chain(
    chain: Chain,
    out: str | Path,
    *,
    root: str | Path = ".",
    set_aside: bool = False,
    progress: bool = True,
    load: Callable[[Data], Database] | None = None,
) -> list[Run]:
    """Train all stages, each from the best weights of the one before, or go on with what `out` holds of them.

    Finished stages are loaded and an interrupted one goes on. What makes a stage another one (its settings, its data, the
    weights that it starts from) is told by `train`, so that a changed stage leaves those before it as they
    are, and those after it have to be trained again.

    No stage is tested on pictures that an earlier one, or the start, was trained or validated on, nor validated on any
    that an earlier one was trained on: such pairs are left out, with a warning that counts them.

    Args:
        out: run folder; see above for what it holds afterwards.
        root: what paths in the chain are relative to.
        set_aside: what to do where `out` holds another run: rename that folder and train anew, instead of refusing.
        load: how databases are loaded; default `load_data`, each once.

    Returns:
        The run of every step.

    Raises:
        ValueError: a database, a split or the start is wrong, an earlier stage has seen all that a later one would be
            tested on, or `out` holds another run.
        KeyboardInterrupt: after Ctrl-C; the same call goes on.
    """
    out, first = Path(out), chain.writes_here
    model = _placed("start", start_model, chain, root)
    planned = _plan(chain, model, load or load_once(root))
    if first and not (out / "chain.yaml").exists():
        chain.save(out / "chain.yaml")
    options = asdict(chain.places)
    runs, rows = [], []
    for number, (part, name) in enumerate(zip(planned, chain.folders, strict=True)):
        run = train(
            model, part.step.stage, part.training, part.validation, part.test,
            out=out / name, set_aside=set_aside, progress=progress, score_start=True, **options,
        )  # fmt: skip
        runs.append(run)
        if first:
            rows.append({"step": number} | _about(chain, number, part) | _result(run, part))
            write_table(pd.DataFrame(rows), out / "chain.csv")
        model = VTAMIQ.from_pretrained(run.folder / "model")  # not `run.model`, which the next stage would change
    if first:
        chain.save(out / "chain.yaml")
    return runs


def launch(
    chain: Chain,
    out: str | Path,
    *,
    root: str | Path = ".",
    set_aside: bool = False,
    report: Callable[[str], Any] = log.info,
) -> list[Run]:
    """`run_chain` in a process of its own, from where a training can be spread over several devices: in a notebook, whose
    own process Lightning could not start again. It is `python -m vtamiq train`.

    Args:
        report: called with each line that the process writes.

    Returns:
        The run of every step.

    Raises:
        RuntimeError: the training failed, with the last lines that it wrote.
        KeyboardInterrupt: after Ctrl-C, when the training has ended too; the same call goes on.
    """
    out = Path(out).absolute()
    plan = out / "asked.yaml"
    chain.save(plan)
    command = [sys.executable, "-m", "vtamiq", "train", str(plan), "--out", str(out)]
    lines: deque[str] = deque(maxlen=20)
    with subprocess.Popen(
        [*command, *(["--set-aside"] if set_aside else [])],
        cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            for line in process.stdout:
                lines.append(line.rstrip())
                report(lines[-1])
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise RuntimeError(f"the training ended with status {process.returncode}:\n" + "\n".join(lines))
    return [Run.load(out / name) for name in chain.folders]


def _result(run: Run, part: _Planned) -> dict[str, Any]:
    """What a row of `chain.csv` says of a finished stage: the best epoch, and how the test went.

    `srocc_start` is the SROCC of the weights that the stage started from on the same test rows, `srocc_gain` what the
    stage
    has gained over them. Synthetic pairs that a distortion left unchanged are not tested on.
    """
    row = {name: run.result.get(name) for name in ("best_epoch", "val_srocc", "seconds")}
    row |= {"n": 0} | dict.fromkeys([*VALUES[1:], "srocc_start", "srocc_gain"], float("nan"))
    tested = _tested(part)
    if tested is None:
        return row
    after, before = (
        evaluate(table.merge(tested, on=_PAIR, validate="one_to_one"), ["split"], bootstrap=0).iloc[0]
        for table in (run.predictions.query("split == 'test'"), pd.read_parquet(run.folder / START))
    )
    gain = {"srocc_start": before["srocc"], "srocc_gain": after["srocc"] - before["srocc"]}
    return row | {name: after[name] for name in VALUES} | gain


def _tested(part: _Planned) -> pd.DataFrame | None:
    """Paths of the test pairs that say something; None if there are none, or nobody has scored them."""
    try:
        return None if part.test is None else worth_testing(part.test).pairs[_PAIR]
    except DatabaseError:
        return None
