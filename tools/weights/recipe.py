"""The small model that ships, made by one command from a folder of photographs: database, training, measures, model card.

    out/recipe.yaml             what was asked
    out/database/…              the photographs, distorted and labelled by conventional metrics
    (`vtamiq.databases.synthesis`)
    out/weak_pretraining/       run folder (`vtamiq.training.run`), and out/more_patches/, which goes on from it
    out/preferences/            likewise, if preferences are simulated
    out/left_out/               both trainings again, without some types of distortion
    out/measures/               what is measured, and scores that are kept (`tools.weights.measures`)
    out/times.json              seconds that each part took
    out/vtamiq-tiny/            what ships (`tools.weights.card`): weights, model card, curves, tables

Whatever is finished is kept: the same call goes on where it was interrupted.
"""

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from tools.weights.card import Source, command, export_weights, write_card
from tools.weights.measures import Measures, left_out_table, measure, predicted, without_types
from vtamiq.caps import CAPS
from vtamiq.databases.demo import DEMO_NAMES, demo_database
from vtamiq.databases.loading import load_database
from vtamiq.databases.schema import Database
from vtamiq.databases.simulated import simulate_preferences
from vtamiq.databases.splits import worth_testing
from vtamiq.databases.synthesis import Recipe, synthesize
from vtamiq.databases.synthetic import file_digest, read_manifest
from vtamiq.images.distortions import find_distortion
from vtamiq.images.iqms import IQMS
from vtamiq.model.config import VTAMIQConfig
from vtamiq.model.inference import choose_device
from vtamiq.model.initialise import start_from_scratch
from vtamiq.model.network import VTAMIQ
from vtamiq.training.run import Run, train
from vtamiq.training.stage import Optimizer, PreferenceLoss, Runtime, Schedule, ScoreLoss, Stage
from vtamiq.utils.configs import changed, conform, did_you_mean, plain, require
from vtamiq.utils.files import list_images, write_text
from vtamiq.utils.processes import is_first_process

__all__ = [
    "NAME",
    "SIZES",
    "TinyRecipe",
    "changed_recipe",
    "first_model",
    "list_photographs",
    "make_weights",
    "pick_photographs",
]

log = logging.getLogger(__name__)

NAME = "vtamiq-tiny"
PARTS = ("train", "val", "test")

NETWORK = VTAMIQConfig(
    backbone="vit_tiny_patch16_384",
    width=192,
    num_heads=3,
    num_blocks=6,
    num_registers=4,
    num_groups=2,
    blocks_per_group=2,
    decoder_drop_path=0.0,
    head_dropout=0.0,
    zero_anchor=True,
)
MAP_PIXELS = 2**21  # with which the weights that ship were made; their pictures have fewer
WEAK = Stage(
    name="weak_pretraining",
    caps=CAPS(num_patches=32, map_pixels=MAP_PIXELS),
    test_patches=64,
    num_draws=1,
    epochs=45,
    batch_size=80,
    distorted_per_reference=5,
    optimizer=Optimizer(name="muon", momentum=0.95, lr=1e-3),
    schedule=Schedule(name="cosine", warmup=0.05),
    loss=ScoreLoss(mae_weight=1.0, auxiliary=tuple(f"rank_{name}" for name in IQMS)),
    runtime=Runtime(in_memory=True),
    onednn=True,
)
FINISH = replace(
    WEAK,
    name="more_patches",
    caps=CAPS(num_patches=256, map_pixels=MAP_PIXELS),
    test_patches=256,
    epochs=1,
    batch_size=40,
    optimizer=replace(WEAK.optimizer, lr=3e-4),
    schedule=replace(WEAK.schedule, warmup=0.1),
)
PREFERENCES = Stage(
    name="preferences",
    loss=PreferenceLoss(),
    caps=CAPS(num_patches=64, map_pixels=MAP_PIXELS),
    test_patches=256,
    num_draws=1,
    epochs=2,
    batch_size=32,
    optimizer=Optimizer(lr=1e-4),
    schedule=Schedule(name="cosine", warmup=0.1),
    runtime=Runtime(in_memory=True),
)


@dataclass(frozen=True)
class TinyRecipe:
    """Everything that decides what the weights become.

    Attributes:
        database: what the database of distorted photographs is called.
        train, val, test: how many photographs of each folder, evenly spaced by name; 0 takes all.
        size: (width, height) of the centre crop.
        types, levels, metrics: of the database, as for `Recipe`; () takes all types and metrics.
        labels_on: where the metrics are computed, "cpu" or "cuda".
        network: which starts from scratch (`vtamiq.model.initialise`).
        weak: the stage that learns the consensus, of few patches each of many pairs.
        finish: goes on with more patches, as many as scores are made of.
        simulate: preferences to simulate for each reference; 0 leaves out the stage that learns from them.
        preferences: that stage.
        left_out: types that a second training, by `weak` and `finish` without them, is tested on; () for none.
        accelerator, devices: what to train on, as for `train`.
        measures: how the result is measured.
        demos: demo databases to measure it on as well, and `demo_preset`, their size.
        source: whose photographs these are, for the model card.
        seed: of the distortions and of the first weights; stages and measures have seeds of their own.
    """

    database: str = "bsds"
    train: int = 160
    val: int = 8
    test: int = 24
    size: tuple[int, int] = (256, 192)
    types: tuple[str, ...] = ()
    levels: tuple[int, ...] = (1, 2, 3, 4, 5)
    metrics: tuple[str, ...] = ()
    labels_on: str = "cpu"
    network: VTAMIQConfig = NETWORK
    weak: Stage = WEAK
    finish: Stage = FINISH
    simulate: int = 0
    preferences: Stage = PREFERENCES
    left_out: tuple[str, ...] = ("lblur", "colorquantize", "jpeg", "noiseimpulse", "pixelate")
    accelerator: str = "cpu"
    devices: int = 2
    measures: Measures = Measures()  # noqa: RUF009
    demos: tuple[str, ...] = DEMO_NAMES
    demo_preset: str = "demo"
    source: Source = Source()  # noqa: RUF009
    seed: int = 0

    def __post_init__(self):
        conform(self)
        for name in (*PARTS, "simulate", "seed"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        require(self, "size", len(self.size) == 2, "must be (width, height)")
        for name in ("weak", "finish"):
            require(self, name, not getattr(self, name).learns_preferences, "must learn from scores")
        require(self, "preferences", self.preferences.learns_preferences, "must learn from preferences")
        names = {self.weak.name, self.finish.name, self.preferences.name, "left_out"}
        require(
            self, "preferences", len(names) == 4, "`weak` and `finish` need names of their own, other than left_out"
        )
        require(self, "demos", set(self.demos) <= set(DEMO_NAMES), f"must be among {', '.join(DEMO_NAMES)}")
        require(self, "database", self.database not in self.demos, "must not be called as a demo database")
        plain = Path(self.database).name == self.database and self.database not in ("", ".", "..")
        require(self, "database", plain, "must be a plain name")
        numbers = {find_distortion(type).type for type in self.left_out}
        known = {find_distortion(type).type for type in self.types} or set(range(1, 26))
        require(self, "left_out", numbers < known, "must leave some of the types")


SIZES: Mapping[str, TinyRecipe] = {
    "cpu": TinyRecipe(),
    "gpu": TinyRecipe(
        train=0,
        val=0,
        test=0,
        size=(480, 320),
        labels_on="cuda",
        weak=replace(
            WEAK,
            caps=CAPS(num_patches=64, map_pixels=MAP_PIXELS),
            precision="bf16-mixed",
            onednn=False,
            runtime=replace(WEAK.runtime, workers=14, in_memory=False),
        ),
        finish=replace(
            FINISH, precision="bf16-mixed", onednn=False, runtime=replace(FINISH.runtime, workers=14, in_memory=False)
        ),
        preferences=replace(
            PREFERENCES,
            caps=CAPS(num_patches=256, map_pixels=MAP_PIXELS),
            batch_size=64,
            precision="bf16-mixed",
            runtime=replace(PREFERENCES.runtime, workers=14, in_memory=False),
        ),
        accelerator="gpu",
        devices=1,
        measures=Measures(batch_size=64, workers=14),
    ),
}


def changed_recipe(size: str = "cpu", settings: Mapping[str, Any] | None = None) -> TinyRecipe:
    """The recipe of a size with other values, by where they stand: {"train": 20, "weak.caps.num_patches": 32}.

    Raises:
        ValueError: no such size, or naming the place, where there is no such thing or the value is refused.
    """
    if size not in SIZES:
        raise ValueError(f"no size {size!r}{did_you_mean(size, SIZES)}; there are {', '.join(SIZES)}")
    return changed(SIZES[size], settings or {})


def list_photographs(folder: str | Path) -> dict[str, list[Path]]:
    """Image files of the folders train, val and test in `folder`, in order of names.

    Raises:
        ValueError: one of them is missing or has no image file.
    """
    found = {}
    missing = [part for part in PARTS if not (Path(folder) / part).is_dir()]
    if missing:
        raise ValueError(f"no folder {missing[0]} in {folder}: photographs are expected in its train, val and test")
    for part in PARTS:
        place = Path(folder) / part
        found[part] = list_images(place)
        if not found[part]:
            raise ValueError(f"{place} has no image files")
    return found


def pick_photographs(found: Mapping[str, Sequence[Path]], recipe: TinyRecipe) -> dict[str, Path]:
    """name → file of the photographs to take of those of `list_photographs`, all in order of names.

    Raises:
        ValueError: there are too few, or two have the same name.
    """
    picked: list[Path] = []
    for part, files in found.items():
        count = getattr(recipe, part) or len(files)
        if count > len(files):
            raise ValueError(f"the folder {part} has {len(files)} image files, {part}={count} are asked for (0: all)")
        picked += [files[k * len(files) // count] for k in range(count)]
    picked.sort(key=lambda path: path.name)
    for one, other in pairwise(picked):
        if one.name == other.name:
            raise ValueError(f"{one.name} is in two of the folders {', '.join(found)}: rename one")
    return {path.name: path for path in picked}


def first_model(recipe: TinyRecipe) -> VTAMIQ:
    """The network with its first weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return start_from_scratch(VTAMIQ(recipe.network), recipe.seed)


# ---- all of it --------------------------------------------------------------------------------------------------------


def make_weights(
    images: str | Path | None,
    out: str | Path,
    size: str = "cpu",
    settings: Mapping[str, Any] | None = None,
    *,
    database: str | Path | None = None,
    run: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> pd.DataFrame | None:
    """Make the database, train, measure, and write what ships into `out`/vtamiq-tiny; or go on with what `out` holds.

    Args:
        images: folder with folders train, val and test of photographs, such as BSDS500's; may be None with `database`.
        size, settings: the recipe, see `changed_recipe`. With more than one of its `devices`, call this from a script,
        not
            from a notebook (see `train`).
        database: folder of the database, if it was made already; compared with the recipe, and with the photographs
            where they are given.
        run: folder of a finished training by the recipe's stage `weak`, to go on from.
        workers: processes that make databases; None takes one per core.

    Returns:
        What was reached beside the goals (`goals_table`); None in the processes that only help the first
        one to train.

    Raises:
        ValueError: a bad argument or recipe, `out` holds something else, or `database` or `run` is not what the recipe
            would make.
        FileNotFoundError: `run` is no finished run.
        KeyboardInterrupt: after Ctrl-C; the same call goes on.
    """
    recipe, out, first = changed_recipe(size, settings), Path(out), is_first_process()
    if images is None and database is None:
        raise ValueError("give a folder of photographs, or a database that was made of them")
    found = {} if images is None else list_photographs(images)
    if first:
        write_text(out / "recipe.yaml", yaml.safe_dump(plain(recipe), sort_keys=False))
    making = {"workers": workers, "progress": progress and first}
    if database is None:
        with _timed(out, "database", first):
            made = _make_database(found, out, recipe, **making)
    else:
        made = _given_database(found, recipe, database)
    parts = dict(zip(PARTS, made.distributed_split(), strict=True))
    stages = _train_stages(recipe, parts, out, run, progress and first)
    without = _train_without(recipe, parts, out, progress and first)
    if not first:
        return None

    half = export_weights(stages[-1].model, out / NAME, parts["test"])
    model = VTAMIQ.from_pretrained(out / NAME).to(choose_device("cpu" if recipe.accelerator == "cpu" else None))
    model.optimize_for_inference()
    with _timed(out, "measures", first):
        demos = [demo_database(name, preset=recipe.demo_preset, **making) for name in recipe.demos]
        left_out = _measure_left_out(recipe, without[-1], model, parts["test"], out, progress) if without else None
        tables = measure(
            model, parts["train"], [parts["test"], *demos], out / "measures", recipe.measures, left_out=left_out,
            progress=progress,
        )  # fmt: skip
    seconds = {run.stage.name: run.result["seconds"] for run in stages}
    if without:
        seconds["left_out"] = sum(run.result["seconds"] for run in without)
    facts = {
        "command": command(size, settings or {}),
        "made_before": {"database": database is not None, "run": run is not None},
        "data": _data_facts(parts, {part: len(files) for part, files in found.items()}),
        "first_weights": replace(stages[0], model=first_model(recipe)).digest == stages[0].started_from,
        "half": half,
        "seconds": {name: entry["seconds"] for name, entry in _times(out).items()} | seconds,
    }
    write_card(out / NAME, facts, recipe=asdict(recipe), stages=stages, tables=tables)
    log.info("%s: %s is made", out.name, NAME)
    return tables["goals"]


def _make_database(
    found: Mapping[str, Sequence[Path]], out: Path, recipe: TinyRecipe, workers: int | None, progress: bool
) -> Database:
    photographs = pick_photographs(found, recipe)
    return synthesize(
        photographs,
        out / "database" / recipe.database,
        types=recipe.types or None,
        levels=recipe.levels,
        metrics=recipe.metrics or None,
        size=recipe.size,
        subsets={name: path.parent.name for name, path in photographs.items()},
        seed=recipe.seed,
        device=recipe.labels_on,
        workers=workers,
        progress=progress,
    )


def _given_database(found: Mapping[str, Sequence[Path]], recipe: TinyRecipe, folder: str | Path) -> Database:
    """A database that was made before; ValueError if the recipe, or these photographs, would have given another one."""
    made = load_database("synthetic", folder, check_images=False)
    manifest = read_manifest(made.root)
    wanted = Recipe(
        recipe.types or None, recipe.levels, recipe.metrics or None, recipe.size, recipe.seed, device=recipe.labels_on
    ).to_dict()
    wrong = [name for name, value in wanted.items() if manifest.get(name) != value]
    entries = manifest["references"]
    if found:
        photographs = pick_photographs(found, recipe).items()
        asked = [(name, path.parent.name, file_digest(path)) for name, path in photographs]
        wrong += [] if asked == [(e["source"], e["subset"], e["sha256"]) for e in entries] else ["photographs"]
    for part in PARTS:
        count = sum(entry["subset"] == part for entry in entries)
        wrong += [] if count == (getattr(recipe, part) or count) else [f"number of photographs for {part}"]
    if wrong:
        raise ValueError(f"{folder} is not what the recipe would make: other {', '.join(wrong)}")
    return made


def _train_stages(
    recipe: TinyRecipe, parts: Mapping[str, Database], out: Path, run: str | Path | None, progress: bool
) -> list[Run]:
    options = {"accelerator": recipe.accelerator, "devices": recipe.devices, "progress": progress}
    if run is None:
        weak = train(first_model(recipe), recipe.weak, **_named(parts), out=out / recipe.weak.name, **options)
    else:
        weak = _given_run(recipe, parts["train"], run)
    finish = train(_model_of(weak), recipe.finish, **_named(parts), out=out / recipe.finish.name, **options)
    if not recipe.simulate:
        return [weak, finish]
    asked = {
        name: replace(part, preferences=simulate_preferences(part, per_reference=recipe.simulate, seed=recipe.seed))
        for name, part in parts.items()
    }
    stage = recipe.preferences
    return [weak, finish, train(_model_of(finish), stage, **_named(asked), out=out / stage.name, **options)]


def _model_of(run: Run) -> VTAMIQ:
    return VTAMIQ.from_pretrained(run.folder / "model")


def _named(parts: Mapping[str, Database]) -> dict[str, Database]:
    """As `train` calls them."""
    return {"training": parts["train"], "validation": parts["val"]} | (
        {"test": parts["test"]} if "test" in parts else {}
    )


def _given_run(recipe: TinyRecipe, training: Database, folder: str | Path) -> Run:
    run = Run.load(folder)
    wrong = {
        "stage `weak`": replace(run.stage, runtime=recipe.weak.runtime) != recipe.weak,
        "network": run.model.config != recipe.network,
        "training pairs": not run.was_trained_on(training),
    }
    if any(wrong.values()):
        what = ", ".join(name for name, is_wrong in wrong.items() if is_wrong)
        raise ValueError(f"{folder} is not what the recipe would train: other {what}; say the run's own with --set")
    return run


def _train_without(recipe: TinyRecipe, parts: Mapping[str, Database], out: Path, progress: bool) -> list[Run]:
    """The trainings without the types that are left out, if there are any; they are not tested here."""
    if not recipe.left_out:
        return []
    others = {name: without_types(parts[name], recipe.left_out)[0] for name in ("train", "val")}
    options = {"accelerator": recipe.accelerator, "devices": recipe.devices, "progress": progress}
    folder = out / "left_out"
    weak = train(first_model(recipe), recipe.weak, **_named(others), out=folder / recipe.weak.name, **options)
    return [weak, train(_model_of(weak), recipe.finish, **_named(others), out=folder / recipe.finish.name, **options)]


def _measure_left_out(
    recipe: TinyRecipe, without: Run, model: VTAMIQ, test: Database, out: Path, progress: bool
) -> pd.DataFrame:
    part = worth_testing(without_types(test, recipe.left_out)[1])
    models = without.model.to(next(model.parameters()).device), model
    rows = [predicted(m, part, out / "measures" / "scores", recipe.measures, progress=progress) for m in models]
    return left_out_table(*rows, part)


def _data_facts(parts: Mapping[str, Database], available: Mapping[str, int]) -> dict[str, Any]:
    """What the model card says of the photographs and pairs, from what the database itself says of them."""
    manifest = read_manifest(parts["train"].root)
    known = ("types", "levels", "metrics", "size", "seed", "device", "versions", "skipped")
    return {
        "database": parts["train"].name,
        "score_name": parts["train"].score_name,
        "photographs": {name: len(part.references) for name, part in parts.items()},
        "pairs": {name: len(part) for name, part in parts.items()},
        "available": dict(available),
    } | {name: manifest[name] for name in known}


# ---- times ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _timed(out: Path, part: str, really: bool) -> Iterator[None]:
    """Add the seconds of the block to `times.json`, interrupted or not, until it has been finished once."""
    before = _times(out).get(part, {"seconds": 0.0, "finished": False})
    if not really or before["finished"]:
        yield
        return
    began, finished = time.monotonic(), False
    try:
        yield
        finished = True
    finally:
        spent = {"seconds": round(before["seconds"] + time.monotonic() - began, 1), "finished": finished}
        write_text(out / "times.json", json.dumps(_times(out) | {part: spent}))


def _times(out: Path) -> dict[str, dict[str, Any]]:
    path = out / "times.json"
    return json.loads(path.read_text()) if path.is_file() else {}
