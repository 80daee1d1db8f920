"""Several stages of training in a row, as one YAML file: each starts from the best weights of the one before.

    start: timm                      # or a file or folder with weights; empty for random ones
    model: {zero_anchor: true}       # fields of VTAMIQConfig
    steps:
      - data: {database: kadid10k, split: random, seed: 1}
        stage: {name: pretraining, epochs: 10}

Run folder: `chain.yaml`, `chain.csv` (what each stage gained), and a run folder for every stage (`00_pretraining`).
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
from vtamiq.training.run import Devices, Run, check_stage, read_result, train
from vtamiq.training.stage import Stage
from vtamiq.utils.configs import build, conform, did_you_mean, plain, read_yaml, require
from vtamiq.utils.files import write_table, write_text

log = logging.getLogger(__name__)

_PAIR = ["ref_path", "dist_path"]
VALUES = ("n", "srocc", "krocc", "plcc", "rmse", "plcc_fitted", "rmse_fitted")  # of `evaluate`, on the test part


@dataclass(frozen=True)
class RandomSplit:
    """Training, validation and test contents drawn at random, with these shares."""

    kind: str = "random"
    ratios: tuple[float, ...] = (0.6, 0.2, 0.2)

    def __post_init__(self):
        conform(self)
        fits = len(self.ratios) == 3 and min(self.ratios) > 0 and abs(sum(self.ratios) - 1) < 1e-9
        rule = 'must be three positive shares with sum 1 (train, validation, test; without a test: split "all")'
        require(self, "ratios", fits, rule)


@dataclass(frozen=True)
class FoldSplit:
    """Contents dealt into `folds` parts, of which number `fold` is tested."""

    kind: str = "folds"
    folds: int = 5
    fold: int = 0

    def __post_init__(self):
        conform(self)
        require(self, "folds", self.folds >= 2, "must be at least 2")
        require(self, "fold", 0 <= self.fold < self.folds, f"must be from 0 to folds - 1 = {self.folds - 1}")


@dataclass(frozen=True)
class Data:
    """What a stage is trained, validated and tested on. All splits are by content: no scene is in two parts.

    Attributes:
        database: as `load_from_text` takes it ("live:realigned=false", "data/mine"), or "demo:photos" or "demo:textures".
        split: a `RandomSplit` or `FoldSplit`, by name or with settings (in YAML also beside the name: `split: random,
            ratios: [0.8, 0.1, 0.1]`); "distributed" or "original", of the authors; "all", for no test.
        validation: share of the contents not tested that is for validation, where the split does not say.
        seed: of splits and simulated preferences.
        label: what the scores of a synthetic database are, see `load_synthetic`.
        simulate: preferences to simulate for each reference, to learn from; 0 takes those of the database.
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
        values, split = dict(values), values.get("split", "random")
        own = dict(split) if isinstance(split, Mapping) else {"kind": split}
        for kind in (RandomSplit, FoldSplit):
            for name in kind.__dataclass_fields__.keys() & values.keys() - {"kind"}:
                if own.get("kind", "random") == kind.kind:
                    own[name] = values.pop(name)
                elif np.array_equal(values[name], getattr(kind, name)):  # older files name the defaults of all splits
                    del values[name]
        return values if own.keys() == {"kind"} else {**values, "split": own}

    def parts(self, database: Database) -> tuple[Database, Database, Database | None]:
        """(training, validation, test) parts of the loaded database; test is None for the split "all"."""
        shares = (1 - self.validation, self.validation)
        if isinstance(self.split, RandomSplit):
            return database.split(self.split.ratios, self.seed)
        if isinstance(self.split, FoldSplit):
            split = self.split
            return fold_split(database, split.folds, split.fold, validation=self.validation, seed=self.seed)
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
            raise ValueError("Step.data.simulate is for stages with loss: {kind: preferences}")


@dataclass(frozen=True)
class Chain:
    """Stages of training in a row; `accelerator`, `devices`, `num_nodes` and `strategy` as for `train`.

    Attributes:
        model: fields of `VTAMIQConfig`, a mapping or the configuration itself; changes to it, if `start` has its own.
        start: first weights. "" for random ones; "timm" for the ViT that the model names; a ViT as .npz in the JAX layout;
            the folder of a finished run or of `save_pretrained`; a checkpoint file of the authors.
        seed: of the first weights. Stages and data have seeds of their own.
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
        """Read a chain from YAML; ValueError names the file, the place in it and what is wrong there."""
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


def start_model(chain: Chain, root: str | Path = ".") -> VTAMIQ:
    """The network that the first stage starts from; raises `CheckpointError` if its weights are missing or do not fit."""
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
        if read_result(path) is None:
            raise CheckpointError(f"{chain.start} holds a run that is not finished")
        path /= "model"
    model = VTAMIQ.from_pretrained(path if path.is_dir() else chain.start)
    if not chain.model:
        return model
    other = VTAMIQ(replace(model.config, **chain.model))
    try:
        other.load_state_dict(model.state_dict())
    except RuntimeError as error:
        names = ", ".join(chain.model)
        raise CheckpointError(f"{chain.start}: its weights do not fit a model with other {names} ({error})") from error
    other.origin, other.seen = model.origin, model.seen
    return other


def load_data(data: Data, root: str | Path = ".", *, keep: bool = True) -> Database:
    """The whole database, with simulated preferences if they are wanted; raises `DatabaseError` as `load_from_text`.

    Args:
        keep: a demo database that is not there yet is made for later as well; else its images are gone afterwards.
    """
    options = {} if data.label == "consensus" else {"label": data.label}
    place, *given = (part.strip() for part in data.database.split(":"))
    if place == "demo":
        name, *given = given or [""]
        try:
            database = demo_database(name, keep=keep, **options | parse_options(given))
        except TypeError as error:
            raise DatabaseError(f"{data.database}: {error}") from error
    else:
        database = load_from_text(data.database, root, **options)
    if not data.simulate:
        return database
    preferences = simulate_preferences(database, per_reference=data.simulate, seed=data.seed)
    return replace(database, preferences=preferences)


def load_once(root: str | Path = ".", *, keep: bool = True) -> Callable[[Data], Database]:
    """`load_data` that loads each database once, however many stages or runs split it."""
    load = functools.cache(functools.partial(load_data, root=root, keep=keep))
    return lambda data: load(
        Data(data.database, label=data.label, simulate=data.simulate, seed=data.seed if data.simulate else 0)
    )


@dataclass(frozen=True)
class _Planned:
    """A step with its parts, without pairs that must not be validated or tested on; `about` is its row of a table."""

    stage: Stage
    training: Database
    validation: Database
    test: Database | None
    about: dict[str, Any]


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
        names = {"step": number, "name": step.stage.name, "folder": folder, "start": start}
        about = names | _about(step.stage, training, validation, test) | {"left_out": left_out}
        planned.append(_Planned(step.stage, training, validation, test, about))
        start = folder
        if number + 1 < len(chain.steps):
            trained.append(pictures_of(training, "train"))
            seen += [trained[-1], pictures_of(validation, "val")]
    return planned


def _about(stage: Stage, training: Database, validation: Database, test: Database | None) -> dict[str, Any]:
    parts = {"train": training, "val": validation, "test": test}
    return {
        "labels": "preferences" if stage.learns_preferences else "scores",
        "database": training.name,
        "score": training.score_name,
        "synthetic": training.synthetic,
        **{name: 0 if part is None else len(part) for name, part in parts.items()},
        **{f"{name}_references": 0 if part is None else len(part.references) for name, part in parts.items()},
        "preferences": len(training.preferences) if stage.learns_preferences else 0,
        "epochs": stage.epochs,
    }


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
    for other in dict.fromkeys(entry["database"] for entry in seen) if name == "test" else ():
        source = shared_pictures(other, part.name)
        if source is not None and other != part.name:
            text = (
                "%s: %s has pictures from the same source as %s (%s), which was trained on; crops or copies saved anew "
            )
            log.warning(text + "cannot be told", place, part.name, other, source)
    return kept


def check_chain(
    chain: Chain, *, root: str | Path = ".", load: Callable[[Data], Database] | None = None
) -> pd.DataFrame:
    """What would be trained, a row per step: all is loaded as for a run, nothing is trained or written.

    Pairs for `train`, `val`, `test` (0 for none), references (`train_references`, …), `preferences`, `left_out` (test
    pairs that an earlier stage saw), `parameters` of the network. ValueError for whatever would stop `run_chain`.
    """
    with _told("start"):
        model = start_model(chain, root)
    size = sum(parameter.numel() for parameter in model.parameters())
    return pd.DataFrame(
        [step.about | {"parameters": size} for step in _plan(chain, model, load or load_once(root, keep=False))]
    )


def run_chain(
    chain: Chain,
    out: str | Path,
    *,
    root: str | Path = ".",
    progress: bool = True,
    load: Callable[[Data], Database] | None = None,
) -> list[Run]:
    """Train all stages, each from the best weights of the one before; returns the run of every step.

    Finished stages in `out` are loaded and an interrupted one is resumed. Pairs that an earlier stage, or the start, was
    trained or validated on are left out of tests, and those trained on also out of validation.

    Args:
        out: run folder; see above for what it holds afterwards.
        root: what paths in the chain are relative to.
        load: how databases are loaded; default `load_data`, each once.

    Raises:
        ValueError: a wrong database, split or start, nothing left to test, or `out` holds another run.
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
            out=out / step.about["folder"], progress=progress, score_start=True, **asdict(chain.places),
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
    """The best epoch and the test of a stage. `srocc_start` is of the weights it started from, on the same test rows."""
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
        for table in (run.predictions.query("split == 'test'"), run.start_predictions())
    )
    gain = {"srocc_start": before["srocc"], "srocc_gain": after["srocc"] - before["srocc"]}
    return row | {name: after[name] for name in VALUES} | gain
