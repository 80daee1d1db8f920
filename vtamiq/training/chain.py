"""Several stages of training in a row, as one YAML file: each starts from the best weights of the one before.

    start: timm                      # or a file or folder with weights; empty for random ones
    model: {zero_anchor: true}       # fields of VTAMIQConfig
    steps:
      - data: {database: kadid10k, split: random, seed: 1}
        stage: {name: pretraining, epochs: 10}
      - data: {database: tid2013, split: original}
        stage: {name: fine_tuning, epochs: 20, optimizer: {lr: 5e-5}}

Names that are left out have the defaults of the classes below. Relative paths count from the current folder. Run folder:
`chain.yaml`; a run folder of `vtamiq.training.run` for every stage (`00_pretraining`, `01_fine_tuning`); `chain.csv`,
the table of what each stage gained.
"""

import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
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
from vtamiq.utils.configs import build, conform, did_you_mean, plain, read_yaml, require
from vtamiq.utils.files import write_table, write_text

__all__ = [
    "Chain",
    "Data",
    "FoldSplit",
    "RandomSplit",
    "Step",
    "check_chain",
    "example",
    "load_data",
    "load_once",
    "run_chain",
    "start_model",
]

log = logging.getLogger(__name__)

_PAIR = ["ref_path", "dist_path"]
VALUES = ("n", "srocc", "krocc", "plcc", "rmse", "plcc_fitted", "rmse_fitted")  # of `evaluate`, on the test part


@dataclass(frozen=True)
class RandomSplit:
    """Contents drawn at random by `Database.split`: shares of training, validation and test."""

    kind: str = "random"
    ratios: tuple[float, ...] = (0.6, 0.2, 0.2)

    def __post_init__(self):
        conform(self)
        require(self, "kind", self.kind == "random", "must be 'random'")
        fits = len(self.ratios) == 3 and min(self.ratios) > 0 and abs(sum(self.ratios) - 1) < 1e-9
        rule = 'must be three positive shares with sum 1 (train, validation, test; without a test: split "all")'
        require(self, "ratios", fits, rule)


@dataclass(frozen=True)
class FoldSplit:
    """One of several folds of the contents: part `fold` of `folds` is tested."""

    kind: str = "folds"
    folds: int = 5
    fold: int = 0

    def __post_init__(self):
        conform(self)
        require(self, "kind", self.kind == "folds", "must be 'folds'")
        require(self, "folds", self.folds >= 2, "must be at least 2")
        require(self, "fold", 0 <= self.fold < self.folds, f"must be from 0 to folds - 1 = {self.folds - 1}")


@dataclass(frozen=True)
class Data:
    """What a stage is trained, validated and tested on. All splits are by content: no scene is in two parts.

    Attributes:
        database: as `load_from_text` takes it ("live:realigned=false", "data/mine"), or "demo:photos" or
            "demo:textures", also with options ("demo:photos:preset=smoke").
        split: a `RandomSplit` or a `FoldSplit`, by name or with settings; "distributed", which the database comes with;
            "original", which the authors used; or "all", where nothing is tested. In YAML, settings may stand beside the
            name: `split: random, ratios: [0.8, 0.1, 0.1]`.
        validation: share of the contents not tested that is for validation, where the split says nothing of it: in folds,
            "all", and splits into training and test only.
        seed: of a random split, folds, validation contents and simulated preferences.
        label: what the scores of a synthetic database are, see `load_synthetic`.
        simulate: preferences to simulate from the scores for each reference (`vtamiq.databases.simulated`), for a stage
            that learns from preferences; 0 takes those of the database.
    """

    database: str = ""
    split: RandomSplit | FoldSplit | str = RandomSplit()
    validation: float = 0.2
    seed: int = 0
    label: str = "consensus"
    simulate: int = 0

    def __post_init__(self):
        named = {kind.kind: kind for kind in (RandomSplit, FoldSplit)}
        if isinstance(self.split, str) and self.split in named:
            object.__setattr__(self, "split", named[self.split]())
        conform(self)
        require(self, "database", bool(self.database.strip()), "must name a database")
        known = not isinstance(self.split, str) or self.split in ("distributed", "original", "all")
        require(self, "split", known, "must be one of random, folds, distributed, original, all")
        require(self, "validation", 0 < self.validation < 1, "must lie between 0 and 1")
        for name in ("seed", "simulate"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")

    @classmethod
    def upgraded(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Move settings that stand beside the name of their split into it."""
        values = dict(values)
        split = values.get("split", "random")
        chosen = split.get("kind", "random") if isinstance(split, Mapping) else split
        for kind in (RandomSplit, FoldSplit):
            names = [name for name in ("ratios", "folds", "fold") if name in values and hasattr(kind, name)]
            beside = {name: values.pop(name) for name in names}
            if kind.kind == chosen and beside:
                own = split if isinstance(split, Mapping) else {"kind": chosen}
                values["split"] = {**own, **beside}
            else:  # older files name the defaults of all splits; other values are refused as unknown
                values |= {
                    name: value for name, value in beside.items() if not np.array_equal(value, getattr(kind, name))
                }
        return values

    def parts(self, database: Database) -> tuple[Database, Database, Database | None]:
        """(training, validation, test) parts of the loaded database; test is None for the split "all".

        Raises:
            DatabaseError: the database has no such split, or too few contents for it.
        """
        shares = (1 - self.validation, self.validation)
        if isinstance(self.split, RandomSplit):
            return database.split(self.split.ratios, self.seed)
        if isinstance(self.split, FoldSplit):
            folds, fold = self.split.folds, self.split.fold
            return fold_split(database, folds, fold, validation=self.validation, seed=self.seed)
        if self.split == "all":
            return *database.split(shares, self.seed), None
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
        start: weights. "" for random ones (`vtamiq.model.initialise`); "timm" to download the ViT that the model names; a
            ViT as .npz in the JAX layout; the folder of a finished run or of `save_pretrained`; a checkpoint file of the
            authors.
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
    def load(cls, path: str | Path) -> "Chain":
        """Read a chain from YAML.

        Raises:
            ValueError: naming the file, the place in it and what is wrong there: no YAML, a name twice, an unknown name
                (with the nearest known one), or a value that is refused.
            OSError: no such file.
        """
        content = Path(path).read_bytes()
        try:
            values = read_yaml(content)
            return build(cls, {} if values is None else values, "")
        except yaml.YAMLError as error:
            mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
            where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
            raise ValueError(f"{path}: {where}{problem or error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the chain as YAML, with every field; `load` gives it back."""
        write_text(path, yaml.safe_dump(plain(self), sort_keys=False))  # in ASCII: PyYAML loses some characters else

    @property
    def places(self) -> Devices:
        """What it runs on."""
        return Devices(self.accelerator, self.devices, self.num_nodes, self.strategy)

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
    path = Path(root) / chain.start
    if chain.start in ("", "timm") or path.suffix == ".npz":
        config = VTAMIQConfig(**chain.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(chain.seed)
            if not chain.start:
                return start_from_scratch(VTAMIQ(config), chain.seed)
            return VTAMIQ.from_vit(config, pretrained=chain.start == "timm" or path)
    if path.is_file():
        return VTAMIQ.from_original(path, **chain.model)
    if (path / "chain.yaml").is_file():
        raise CheckpointError(f"{chain.start} is the folder of a chain: start from one of its stages, such as 00_…")
    if (path / "run.json").is_file():
        if not (path / "result.json").is_file():
            raise CheckpointError(f"{chain.start} holds a run that is not finished")
        path /= "model"
    model = VTAMIQ.from_pretrained(path if path.is_dir() else chain.start)
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
    """The whole database, with simulated preferences if they are wanted; `root` is what paths are relative to.

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


def load_once(root: str | Path = ".") -> Callable[[Data], Database]:
    """`load_data` that loads each database once, however many stages or runs split it."""
    load = functools.cache(functools.partial(load_data, root=root))
    return lambda data: load(
        Data(data.database, label=data.label, simulate=data.simulate, seed=data.seed if data.simulate else 0)
    )


# ------------------------------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class _Planned:
    """A step with its parts, after what must not be validated or tested on was left out."""

    number: int
    folder: str
    start: str
    stage: Stage
    training: Database
    validation: Database
    test: Database | None
    left_out: int  # test pairs

    @property
    def about(self) -> dict[str, Any]:
        """What a row says of a step, trained or not."""
        preferences = self.training.preferences if self.stage.learns_preferences else None
        return {
            "step": self.number,
            "name": self.stage.name,
            "folder": self.folder,
            "start": self.start,
            "labels": "scores" if preferences is None else "preferences",
            "database": self.training.name,
            "score": self.training.score_name,
            "synthetic": self.training.synthetic,
            "train": len(self.training),
            "val": len(self.validation),
            "test": 0 if self.test is None else len(self.test),
            "left_out": self.left_out,
            "preferences": 0 if preferences is None else len(preferences),
            "epochs": self.stage.epochs,
        }


def _plan(chain: Chain, model: VTAMIQ, load: Callable[[Data], Database]) -> list[_Planned]:
    """All parts of all steps, so that whatever is wrong with the last is found before the first is trained."""
    seen, planned = list(model.seen or ()), []
    trained = [entry for entry in seen if entry.get("role") == "train"]
    if model.seen is None:
        log.warning("it is not known which pictures %s was trained on; they may be among those tested", chain.start)
    start = chain.start or "random"
    for number, (step, folder) in enumerate(zip(chain.steps, chain.folders, strict=True)):
        with _told(place := f"steps[{number}] ({step.stage.name})"):
            training, validation, whole_test = step.data.parts(load(step.data))
            _check_labels(step.stage, training, validation)
            validation = _without(validation, trained, "validation", place)
            test = None if whole_test is None else _without(whole_test, seen, "test", place)
            check_stage(model, step.stage, training, validation, test, chain.places)
        left_out = 0 if test is None else len(whole_test) - len(test)
        planned.append(_Planned(number, folder, start, step.stage, training, validation, test, left_out))
        start = folder
        if test is not None:
            _warn_of_relatives(seen, test, place)
        if number + 1 < len(chain.steps):
            trained.append(pictures_of(training, "train"))
            seen += [trained[-1], pictures_of(validation, "val")]
    return planned


@contextmanager
def _told(place: str) -> Iterator[None]:
    """Errors of the block are told with the place that they belong to."""
    try:
        yield
    except ValueError as error:
        kind = type(error) if isinstance(error, DatabaseError | CheckpointError) else ValueError
        raise kind(f"{place}: {error}") from error


def _check_labels(stage: Stage, training: Database, validation: Database) -> None:
    if stage.learns_preferences:
        for part in (training, validation):
            if part.preferences is None:
                raise DatabaseError(f"{part.name} has no preferences; `simulate: 200` makes some from its scores")
        return
    LabelScale.fit(training)
    missing = int(validation.pairs["score"].isna().sum())
    if missing:
        raise DatabaseError(f"{validation.name}: {missing} of {len(validation)} validation rows have no score")
    for name in stage.auxiliary:
        if name not in training.pairs:
            raise DatabaseError(f"{training.name} has no column {name!r} to learn{did_you_mean(name, training.pairs)}")


def _without(part: Database, seen: Sequence[Mapping[str, Any]], name: str, place: str) -> Database:
    kept = unseen(part, seen)
    if kept is None:
        raise DatabaseError(
            f"an earlier stage has seen every picture of the {name} part of {part.name} ({len(part)} pairs); "
            'give both the same split and seed, or take another database (or split "all", for no test)'
        )
    if len(kept) < len(part):
        text = "%s: %d of %d %s pairs of %s are left out: an earlier stage has seen their pictures"
        log.warning(text, place, len(part) - len(kept), len(part), name, part.name)
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
        One row per step: `step`, `name`, `folder`, `start`, `labels`, `database`, `score`, `synthetic`, pairs for
        `train`, `val` and `test` (0 for no test), `left_out` (test pairs that an earlier stage saw), `preferences` for
        training, `epochs`, numbers of references (`train_references`, …), `parameters` of the network.

    Raises:
        ValueError: whatever would stop `run_chain`, but for run folders that hold something else.
    """
    with _told("start"):
        model = start_model(chain, root)
    size = sum(parameter.numel() for parameter in model.parameters())
    rows = []
    for step in _plan(chain, model, load or load_once(root)):
        parts = {"train": step.training, "val": step.validation, "test": step.test}
        references = {f"{name}_references": 0 if p is None else len(p.references) for name, p in parts.items()}
        rows.append({**step.about, **references, "parameters": size})
    return pd.DataFrame(rows)


# -------------------------------------------------------------------------------------------------------------- the run


def run_chain(
    chain: Chain,
    out: str | Path,
    *,
    root: str | Path = ".",
    progress: bool = True,
    load: Callable[[Data], Database] | None = None,
) -> list[Run]:
    """Train all stages, each from the best weights of the one before, or go on with what `out` holds of them.

    Finished stages are loaded and an interrupted one is resumed. A stage that was changed is refused by `train`, and so
    are those after it, whose weights would start from others.

    No stage is tested on pictures that an earlier one, or the start, was trained or validated on, nor validated on any
    that an earlier one was trained on: such pairs are left out, with a warning that counts them.

    Args:
        out: run folder; see above for what it holds afterwards.
        root: what paths in the chain are relative to.
        load: how databases are loaded; default `load_data`, each once.

    Returns:
        The run of every step.

    Raises:
        ValueError: a database, a split or the start is wrong, an earlier stage has seen all that a later one would be
            tested on, or `out` holds another run.
        KeyboardInterrupt: after Ctrl-C; the same call resumes.
    """
    out, main = Path(out), chain.places.main
    with _told("start"):
        model = start_model(chain, root)
    planned = _plan(chain, model, load or load_once(root))
    if main and not (out / "chain.yaml").exists():
        chain.save(out / "chain.yaml")
    runs, rows = [], []
    for step in planned:
        run = train(
            model, step.stage, step.training, step.validation, step.test,
            out=out / step.folder, progress=progress, score_start=True, **asdict(chain.places),
        )  # fmt: skip
        runs.append(run)
        if main:
            rows.append(step.about | _result(run, step.test))
            write_table(pd.DataFrame(rows), out / "chain.csv")
        model = VTAMIQ.from_pretrained(run.folder / "model")  # not `run.model`, which the next stage would change
    if main:
        chain.save(out / "chain.yaml")
    return runs


def _result(run: Run, test: Database | None) -> dict[str, Any]:
    """What a row of `chain.csv` says of a finished stage: the best epoch, and how the test went.

    `srocc_start` is the SROCC of the weights that the stage started from on the same test rows, `srocc_gain` what the
    stage has gained over them. Synthetic pairs that a distortion left unchanged are not tested on.
    """
    row = {name: run.result.get(name) for name in ("best_epoch", "val_srocc", "seconds")}
    row |= {"n": 0} | dict.fromkeys([*VALUES[1:], "srocc_start", "srocc_gain"], float("nan"))
    if test is None:
        return row
    try:
        tested = worth_testing(test).pairs[_PAIR]
    except DatabaseError:  # nobody has scored them
        return row
    after, before = (
        evaluate(table.merge(tested, on=_PAIR, validate="one_to_one"), ["split"], bootstrap=0).iloc[0]
        for table in (run.predictions.query("split == 'test'"), pd.read_parquet(run.folder / START))
    )
    gain = {"srocc_start": before["srocc"], "srocc_gain": after["srocc"] - before["srocc"]}
    return row | {name: after[name] for name in VALUES} | gain
