"""One stage of training: a model, labelled pairs and a `Stage` in; a run folder with everything that came of it out.

Run folder: `run.json` (what was asked: stage, model, data, versions), `stage.yaml`, `environment.json` (packages,
device),
`history.csv` (a row per epoch), `steps.csv` (a row per batch), `tensorboard/` where that is installed, `checkpoints/`
(`best` by SROCC on the validation rows, `last`, `previous`), `model/` (best weights, for `VTAMIQ.from_pretrained`),
`predictions.parquet` (validation and test rows, scored once at the end), `start_predictions.parquet` (test rows, by the
weights that the run started from; if asked for), `result.json`; `run.lock` keeps a second process out. While rows are
scored, `scoring/` has the draws that are finished.

A run that was interrupted goes on at its last checkpoint, after an epoch or within one: patches, order and dropout are
functions of the seed, the epoch and the batch, so it ends with the weights of an uninterrupted run.
"""

import copy
import functools
import gc
import json
import logging
import math
import os
import platform
import shutil
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from importlib.metadata import distributions, version
from itertools import chain, count
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pandas as pd
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.utils.data import DataLoader, Subset

from vtamiq.caps import caps_for, centre_template
from vtamiq.databases.patches import ImagePatches, PairPatches, PreferencePatches, patch_loader
from vtamiq.databases.schema import Database, LabelScale
from vtamiq.databases.seen import pictures_of
from vtamiq.model.accelerate import decompile_blocks, restore
from vtamiq.model.config import VTAMIQConfig
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring.predictions import predict
from vtamiq.training.callbacks import (
    AtomicCheckpointIO,
    Compiled,
    History,
    OneDNN,
    Progress,
    Termination,
    checkpoints,
    readable_checkpoint,
)
from vtamiq.training.module import fitting_for
from vtamiq.training.stage import Stage
from vtamiq.utils.configs import build
from vtamiq.utils.digests import digest_file, digest_table, digest_weights
from vtamiq.utils.files import clear_unfinished, holding, write_table, write_text
from vtamiq.utils.processes import is_first_process

__all__ = ["Run", "Stage", "train"]

log = logging.getLogger(__name__)
Labels = LabelScale | None  # None: preferences are taken as they are
START = "start_predictions.parquet"  # in a run folder, if it was asked for
SCORING = "scoring"  # draws of tables to come, in a run folder
PATIENCE = 600  # seconds that a process waits for the main one to claim the run folder
COMPUTES = 2  # raise when the same settings give other results: runs begun before are then not resumed
TIMEOUT = timedelta(days=1)  # for the other processes, while the main one scores the test rows


@dataclass(frozen=True)
class Devices:
    """Where a training runs: arguments of Lightning's Trainer by the same names."""

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"

    @property
    def single(self) -> bool:
        return self.devices == 1 and self.num_nodes == 1

    @property
    def processes(self) -> int:
        """How many train together."""
        return (max(1, torch.cuda.device_count()) if self.devices == -1 else self.devices) * self.num_nodes

    @property
    def main(self) -> bool:
        """Whether this process is the only one, or the one that writes."""
        return self.single or is_first_process()


@dataclass(frozen=True)
class Run:
    """What a finished run left behind."""

    folder: Path
    stage: Stage
    model: VTAMIQ  # best weights by validation SROCC, in evaluation mode on the CPU
    labels: Labels
    history: pd.DataFrame
    predictions: pd.DataFrame
    record: dict[str, Any]  # run.json
    result: dict[str, Any]  # result.json

    @property
    def trained_on(self) -> str:
        """Name of the database that the training rows come from."""
        return self.record["data"]["train"]["database"]

    @property
    def started_from(self) -> str:
        """Digest of the weights that the run started from: the `digest` of the run before, in a chain of stages."""
        return self.record["start"]

    @property
    def digest(self) -> str:
        """Digest of the weights that the run has come to."""
        return digest_weights(self.model)

    def was_trained_on(self, database: Database) -> bool:
        """Whether exactly these rows, with these scores, were the training rows."""
        return self.record["data"]["train"] == _describe(database, self.stage)

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """Read a finished run folder.

        Raises:
            FileNotFoundError: the folder holds no finished run.
        """
        folder = Path(folder)
        if not (folder / "result.json").is_file():
            raise FileNotFoundError(f"{folder}: holds no finished run (no result.json)")
        record = json.loads((folder / "run.json").read_text())
        return cls(
            folder=folder,
            stage=build(Stage, record["stage"]),
            model=VTAMIQ.from_pretrained(folder / "model"),
            labels=LabelScale.from_dict(record["labels"]) if "best" in (record["labels"] or {}) else None,
            history=pd.read_csv(folder / "history.csv"),
            predictions=pd.read_parquet(folder / "predictions.parquet"),
            record=record,
            result=json.loads((folder / "result.json").read_text()),
        )


def train(
    model: VTAMIQ,
    stage: Stage,
    training: Database,
    validation: Database,
    test: Database | None = None,
    *,
    out: str | Path,
    set_aside: bool = False,
    accelerator: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    progress: bool = True,
    score_start: bool = False,
) -> Run:
    """Train `model`, or go on with the run that `out` holds, or return it if it is finished.

    Labels are normalised on the training rows only. Test rows are scored once, at the end, with the best weights.

    With several devices, each takes its share of every batch, and the result is that of one device but for dropout and
    rounding. Every process runs this function: under `torchrun`, or in a script, which Lightning then starts once more
    for each further device (in a notebook, `launch`).

    Args:
        model: trained in place; afterwards it is on the CPU, in evaluation mode, with the best weights, or after an
            interruption with those that it came with. They are part of what makes a run the same, so call again with a
            model built the same way.
        training, validation, test: parts without a common reference; `Database.split` makes such. With
            a `PreferenceLoss`, the preferences of the first two are learnt and validated on.
        out: run folder.
        set_aside: what to do if `out` holds another run: rename that folder and begin anew, instead of refusing.
        accelerator, devices, num_nodes, strategy: of Lightning's Trainer: "auto", "cpu" or "gpu"; devices on each
        node, -1
            for all; "auto" (one device, or DDP), "ddp", or another one of its strategies, of which none was tried here.
            FSDP cannot clip by the norm: it needs `optimizer.gradient_clip=0`.
        score_start: have the weights that the run starts from predict the test rows as well, once
            (`start_predictions.parquet`): what the training has gained.

    Raises:
        ValueError: `out` holds a run of another stage, model, start, data or code, or another process is training there,
            parts share contents, training diverged (try a lower learning rate), the batch cannot be shared evenly by the
            devices, or another process than this one failed, which has its own error.
        ImageError: an image cannot be read, unless it is one of the training rows and `stage.bad_images` is "skip".
        KeyboardInterrupt: after Ctrl-C; what is in the last checkpoint is kept.
    """
    out, places = Path(out), Devices(accelerator, devices, num_nodes, strategy)
    parts = {"train": training, "val": validation} | ({"test": test} if test is not None else {})
    _check_parts(parts, stage)
    labels = _labels(stage, parts)
    seen = None if model.seen is None else (*model.seen, pictures_of(training, "train"), pictures_of(validation, "val"))
    record = json.loads(json.dumps(_record(model, stage, parts, labels)))
    if not _holds(out, record):  # what is refused leaves no folder, and sets none aside
        check_stage(model, stage, training, validation, test, places)
    if places.main:
        _claim(out, record, set_aside)
    else:
        _wait_for_claim(out, record)
    scores_start = score_start and test is not None
    if (out / "result.json").is_file():
        log.info("%s holds this run, finished; loaded, not trained again", out.name)
        if places.main and scores_start and not (out / START).is_file():  # it was not asked for then
            _score_start((model.state_dict(), model.config), stage, test, out, accelerator, progress)
            shutil.rmtree(out / SCORING, ignore_errors=True)
        return _adopt(model, Run.load(out))

    with _alone(out) if places.main else nullcontext():
        if places.main:
            clear_unfinished(out)
            stage.save(out / "stage.yaml")
            write_text(out / "environment.json", json.dumps(_environment(), indent=1))
        before = copy.deepcopy(model.state_dict()), model.seen, model.config
        try:
            trainer, seconds = _fit(model, stage, training, validation, labels, out, places, progress)
            with _together(trainer) as main:
                if main:
                    weights, result = _best(out, stage)
                    model.load_state_dict(weights)
                    if stage.learns_preferences:
                        model.config = replace(model.config, preference_weight=result["preference_weight"])
                    model.seen = seen
                    card = {"training": _in_words(stage, training)}
                    model.cpu().eval().save_pretrained(out / "model", model_card_kwargs=card)
                    _score_parts(model, stage, parts, out, accelerator, progress)
                    if scores_start:
                        _score_start((before[0], before[2]), stage, test, out, accelerator, progress)
                    write_text(out / "result.json", json.dumps(result | {"seconds": round(seconds, 1)}))
                    shutil.rmtree(out / SCORING, ignore_errors=True)
        except BaseException:
            state, model.seen, model.config = before
            model.cpu().eval().load_state_dict(state)  # so that the same call can be made again
            raise
        finally:
            if stage.onednn:
                restore(model)
            if stage.compile:
                decompile_blocks(model.encoder.blocks)
            model.encoder.recompute = False
    return _adopt(model, Run.load(out))


def check_stage(
    model: VTAMIQ,
    stage: Stage,
    training: Database,
    validation: Database,
    test: Database | None = None,
    places: Devices = Devices(),
) -> None:
    """Refuse what `train` would only find out about as it goes; no image is read.

    Raises:
        ValueError: as `train`, but for what is in the run folder or goes wrong while it trains.
    """
    parts = {"train": training, "val": validation} | ({"test": test} if test is not None else {})
    _check_parts(parts, stage)
    if stage.caps.centre_map is not None and stage.caps.centre > 0:
        centre_template(stage.caps.centre_map)
    rows, held_out = _datasets(model, stage, training, validation, _labels(stage, parts))
    fitting_for(model, stage)
    _check_batches(rows, held_out, stage, places.processes)


def _adopt(model: VTAMIQ, run: Run) -> Run:
    """Bring `model` to what the run has come to; returns the run."""
    model.cpu().eval().load_state_dict(run.model.state_dict())
    model.seen, model.config = run.model.seen, run.model.config
    return run


def _labels(stage: Stage, parts: dict[str, Database]) -> Labels:
    return None if stage.learns_preferences else LabelScale.fit(parts["train"])


# ---- the loop ---------------------------------------------------------------------------------------------------


def _fit(
    model: VTAMIQ,
    stage: Stage,
    training: Database,
    validation: Database,
    labels: Labels,
    out: Path,
    places: Devices,
    progress: bool,
) -> tuple[lightning.Trainer, float]:
    """Run the training loop from where `out` left off; returns the trainer and the seconds that all of it took."""
    gc.collect()  # Lightning's cycles keep the images of a training before this one, if they are in memory
    rows, held_out = _datasets(model, stage, training, validation, labels)
    history, folder = History(out, rows), out / "checkpoints"
    callbacks = [history, Termination(), *checkpoints(folder, stage)]
    if stage.onednn:
        callbacks.append(OneDNN())
    if stage.compile:
        callbacks.append(Compiled())
    if stage.ema:
        callbacks.append(EMAWeightAveraging(decay=stage.ema))
    if stage.patience:  # NaN is a validation without an order, no reason to stop
        callbacks.append(
            EarlyStopping(
                "val_srocc", mode="max", patience=stage.patience, check_on_train_epoch_end=True, check_finite=False
            )
        )
    if progress:
        callbacks.append(Progress())
    fitting = fitting_for(model, stage)
    with _quiet():
        trainer = lightning.Trainer(
            default_root_dir=out,
            accelerator=places.accelerator,
            devices=places.devices,
            num_nodes=places.num_nodes,
            strategy=_strategy(places, stage),
            precision=stage.precision,
            max_epochs=stage.epochs,
            accumulate_grad_batches=stage.accumulate,
            gradient_clip_val=stage.optimizer.gradient_clip or None,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            logger=False,  # `History` is ours
            enable_progress_bar=False,  # `Progress` is ours
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        loaders = _loaders(rows, held_out, stage, trainer)
        model.encoder.recompute = stage.runtime.gradient_checkpointing
        model.train()  # Lightning keeps the mode: a loaded model would be trained without dropout
        on_interrupt = signal.getsignal(signal.SIGINT)
        resumed = readable_checkpoint(folder)
        if resumed is None and folder.is_dir() and any(folder.glob("*.ckpt")):
            log.warning("%s: no checkpoint can be read; the training begins anew", out.name)
        if resumed is not None and _has_stopped_early(resumed[1], stage):
            # Lightning would go on for one more. Not to fit at all would leave several processes without a connection.
            trainer.fit_loop.max_epochs = len(resumed[1]["callbacks"]["History"]["rows"])
        if resumed is not None:  # Lightning has made its iterator before it would load this
            loaders[0].load_state_dict(resumed[1]["loops"]["fit_loop"]["state_dict"]["combined_loader"][0])
        try:
            trainer.fit(fitting, *loaders, ckpt_path=resumed and resumed[0], weights_only=True)
        except SystemExit as end:
            if trainer.received_sigterm or end.code == 128 + signal.SIGTERM:
                raise SystemExit(128 + signal.SIGTERM) from None  # as of a process that had no handler for it
            if not trainer.interrupted:
                raise
            # Lightning answers Ctrl-C by leaving the process, with further ones ignored.
            signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt("training interrupted; the same call goes on after the last checkpoint") from None
        finally:
            for parameter in fitting.frozen:
                parameter.requires_grad_(True)
    return trainer, history.seconds


def _datasets(
    model: VTAMIQ, stage: Stage, training: Database, validation: Database, labels: Labels
) -> tuple[ImagePatches, ImagePatches]:
    caps, test_caps = caps_for(model, stage.caps), caps_for(model, stage.caps, num_patches=stage.test_patches)
    rows = _dataset(training, caps, stage, labels, augmented=True)
    return rows, _dataset(validation, test_caps, stage, labels, augmented=False)


def _dataset(database: Database, caps: Any, stage: Stage, labels: Labels, augmented: bool) -> ImagePatches:
    options: dict[str, Any] = {"seed": stage.seed, "in_memory": stage.runtime.in_memory}
    if augmented:
        options |= {"flips": stage.flips, "skip_bad": stage.bad_images == "skip"}
    if stage.learns_preferences:
        return PreferencePatches(database, caps, **options)
    if augmented:
        options |= {"zero_error": stage.loss.zero_error, "distorted_per_reference": stage.distorted_per_reference}
    return PairPatches(database, caps, labels=labels, auxiliary=stage.auxiliary, **options)


def _loaders(
    rows: ImagePatches, held_out: ImagePatches, stage: Stage, trainer: lightning.Trainer
) -> tuple[DataLoader, DataLoader]:
    """Batches of this process for training and validation."""
    rank, world_size = trainer.global_rank, trainer.world_size
    items = stage.batch_size // stage.distorted_per_reference  # of a batch
    _check_batches(rows, held_out, stage, world_size)
    batches = patch_loader(
        rows,
        batch_size=items,
        workers=stage.runtime.workers,
        shuffle=True,
        drop_last=len(rows) >= items,
        rank=rank,
        world_size=world_size,
    )
    # A plain loader: without an epoch in its indices, every epoch is validated on the same patches.
    val_batches = DataLoader(
        Subset(held_out, range(rank, len(held_out), world_size)),
        batch_size=max(1, stage.batch_size // world_size),
        num_workers=stage.runtime.workers,
        persistent_workers=stage.runtime.workers > 0,
    )
    return batches, val_batches


def _check_batches(rows: ImagePatches, held_out: ImagePatches, stage: Stage, world_size: int) -> None:
    items = stage.batch_size // stage.distorted_per_reference
    if items % world_size:
        of = f" of {stage.distorted_per_reference} distorted images each" if stage.distorted_per_reference > 1 else ""
        raise ValueError(
            f"batch_size={stage.batch_size}: {items} items{of} cannot be shared evenly by {world_size} devices"
        )
    if world_size > 1 and min(len(rows) // items, len(held_out) // world_size) < 1:
        raise ValueError(
            f"{len(rows) * stage.distorted_per_reference} training and {len(held_out)} validation rows are too few "
            f"for batches of {stage.batch_size} on {world_size} devices"
        )


def _strategy(places: Devices, stage: Stage) -> str | Strategy:
    if places.strategy not in ("auto", "ddp") or places.single:
        return places.strategy
    # Validation rows may not share out evenly, which an exchange of buffers, constants here, would not survive.
    unused = bool(stage.freeze)  # parameters that do not learn at first
    return DDPStrategy(find_unused_parameters=unused, broadcast_buffers=False, timeout=TIMEOUT)


@contextmanager
def _together(trainer: lightning.Trainer) -> Iterator[bool]:
    """Whether this is the main process; the others wait at the end of the block, and fail there if the main one
    failed."""
    main = trainer.is_global_zero
    try:
        yield main
    except BaseException as error:
        with suppress(Exception):  # of another process that is gone: not what went wrong first
            trainer.strategy.broadcast(f"{type(error).__name__}: {error}")
        raise
    failure = trainer.strategy.broadcast("")
    if failure:
        raise ValueError(f"the main process failed: {failure}")


def _has_stopped_early(checkpoint: dict[str, Any], stage: Stage) -> bool:
    """Whether nothing is left to train although epochs are left."""
    states = [state for name, state in checkpoint["callbacks"].items() if name.startswith("EarlyStopping")]
    return any(state["wait_count"] >= stage.patience for state in states)


def _best(out: Path, stage: Stage) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights of the best epoch, and what is to be said of the run."""
    try:
        checkpoint = torch.load(out / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True)
    except Exception as error:  # each kind of damage has its own exception
        raise ValueError(
            f"{out.name}/checkpoints/best.ckpt is damaged ({type(error).__name__}); "
            "remove the folder checkpoints to train again"
        ) from error
    state = checkpoint["state_dict"]
    weights = {name.removeprefix("model."): state[name] for name in state if name.startswith("model.")}
    if not all(value.isfinite().all() for value in state.values()):
        raise ValueError(f"{out.name}: training diverged, its weights are not finite; try a lower learning rate")
    history = pd.read_csv(out / "history.csv").set_index("epoch")
    val_srocc = float(history["val_srocc"].loc[checkpoint["epoch"]])
    if not math.isfinite(val_srocc):
        log.warning(
            "%s: the validation rows have no SROCC (one row, or scores that are all alike), so that no epoch could be told "
            "from another; the first one's weights are kept", out.name,
        )  # fmt: skip
    result = {"best_epoch": checkpoint["epoch"], "val_srocc": val_srocc if math.isfinite(val_srocc) else None}
    result["epochs"] = len(history)
    return weights, result | ({"preference_weight": float(state["sharpness"])} if stage.learns_preferences else {})


def _score_parts(
    model: VTAMIQ, stage: Stage, parts: dict[str, Database], out: Path, accelerator: str, progress: bool
) -> None:
    """Write the prediction table of the validation and test rows."""
    held_out = {name: database for name, database in parts.items() if name != "train"}
    tables = [
        _score(model, stage, database, out, accelerator, progress, split=name, stage=stage.name)
        for name, database in held_out.items()
    ]
    write_table(pd.concat(tables, ignore_index=True), out / "predictions.parquet")


def _score_start(
    start: tuple[dict[str, torch.Tensor], VTAMIQConfig], stage: Stage, test: Database, out: Path, accelerator: str,
    progress: bool,
) -> None:  # fmt: skip
    """Write the prediction table of the test rows by the weights that the run started from."""
    state, config = start
    model = VTAMIQ(config)
    model.load_state_dict(state)
    write_table(_score(model, stage, test, out, accelerator, progress, split="test"), out / START)


def _score(
    model: VTAMIQ, stage: Stage, database: Database, out: Path, accelerator: str, progress: bool, /, **labels: str
) -> pd.DataFrame:
    """What the model predicts for a part, where an interruption left off; afterwards it is on the CPU."""
    keep = out / SCORING / f"{labels['split']}-{digest_weights(model)}"
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    model = model.cuda() if on_gpu else model
    caps = caps_for(model, stage.caps, num_patches=stage.test_patches)
    table = predict(
        model, database, caps, repeats=stage.num_draws, seed=stage.seed, batch_size=stage.batch_size,
        workers=stage.runtime.workers, progress=progress, keep=keep, **labels,
    )  # fmt: skip
    model.cpu()
    return table


def _check_parts(parts: dict[str, Database], stage: Stage) -> None:
    seen: dict[str, str] = {}
    for name, database in parts.items():
        if not len(database):
            raise ValueError(f"the {name} part of {database.name} is empty")
        if stage.learns_preferences and name != "test" and database.preferences is None:
            raise ValueError(
                f"the {name} part of {database.name} has no preferences, which the stage {stage.name} learns"
            )
        for content in set(database.contents.values()):
            if (database.name, content) in seen:
                raise ValueError(
                    f"content {content} of {database.name} is in both {seen[database.name, content]} and {name}: "
                    "parts must not share contents"
                )
            seen[database.name, content] = name


# ---- what makes a run the same ------------------------------------------------------------------------------------


def _record(model: VTAMIQ, stage: Stage, parts: dict[str, Database], labels: Labels) -> dict[str, Any]:
    return {
        "stage": asdict(stage),
        "model": asdict(model.config),
        "start": digest_weights(model),
        "data": {name: _describe(database, stage) for name, database in parts.items()},
        "labels": None if labels is None else labels.to_dict(),
        "code": COMPUTES,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("vtamiq", "torch", "timm", "lightning", "numpy")},
    }


def _describe(database: Database, stage: Stage) -> dict[str, Any]:
    columns = ["dist_path", "score", *(name for name in (*stage.auxiliary, "recipe_seed") if name in database.pairs)]
    described = {
        "database": database.name,
        "references": list(database.references),
        "pairs": len(database),
        "synthetic": database.synthetic,
        "rows_sha256": digest_table(database.pairs[columns]),
    }
    if stage.learns_preferences and database.preferences is not None:
        asked = database.preferences[["a_path", "b_path", "p_a"]]
        described |= {"preferences": len(asked), "preferences_sha256": digest_table(asked)}
    return described


def _in_words(stage: Stage, training: Database) -> str:
    """For the model card."""
    beside = f" Beside the score, auxiliary heads learnt {', '.join(stage.auxiliary)}." if stage.auxiliary else ""
    if stage.learns_preferences:
        what = f"{len(training.preferences)} pairwise preferences about"
        simulated = (training.preferences["kind"] == "simulated").any()
        kind = "SIMULATED, nobody was asked" if simulated or training.synthetic else "preferences of people"
    else:
        what = f"{len(training)} pairs of"
        kind = "SYNTHETIC scores, not human opinion" if training.synthetic else "scores of people"
        kind = f"{kind} ({training.score_name})"
    pairs = f"{what} {len(training.references)} references of the database {training.name}"
    return f"Stage {stage.name}: {pairs}, with {kind}.{beside}"


def _environment() -> dict[str, Any]:
    """What may explain a difference that nothing else does; no name of the machine or of a folder."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "packages": _packages(),
    }


@functools.cache
def _packages() -> dict[str, str]:
    """Version of every package that is installed; read once, for the metadata of hundreds take a sixth of a second."""
    versions = {item.name: item.version for item in distributions() if item.name}
    return dict(sorted(versions.items(), key=lambda item: item[0].lower()))


def _claim(out: Path, record: dict[str, Any], set_aside: bool) -> None:
    """Write `run.json`, or refuse or rename a folder that holds another run. Versions may differ, with a warning."""
    path = out / "run.json"
    if not path.is_file():
        write_text(path, json.dumps(record, indent=1))
        return
    held = json.loads(path.read_text())
    different = _differences(record, held)
    if different and set_aside:
        aside = _unused(out.with_name(f"{out.name}.{digest_file(path)[:8]}"))
        log.warning("%s held another run (other %s), which is now %s", out.name, ", ".join(different), aside.name)
        with _alone(out):
            os.replace(out, aside)
        return _claim(out, record, set_aside)
    if different:
        raise ValueError(
            f"{out} holds another run (other {', '.join(different)}); choose another folder, or let it be set aside "
            "(set_aside=True, in the shell --set-aside)"
        )
    if record["versions"] != held.get("versions"):
        log.warning("%s was begun with %s, now %s", out.name, held.get("versions"), record["versions"])


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other processes from training in the same folder; those of this run on other devices write nothing."""
    with ExitStack() as held:
        try:
            held.enter_context(holding(out / "run.lock"))
        except BlockingIOError as error:
            raise ValueError(f"{out}: another process is training there; wait until it has ended") from error
        yield


def _wait_for_claim(out: Path, record: dict[str, Any]) -> None:
    """Until the main process has made the folder ready for this very run."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if _holds(out, record):
            return
        time.sleep(0.2)
    raise ValueError(f"{out}: the main process has not made this run's folder ready; does every node see the folder?")


def _holds(out: Path, record: dict[str, Any]) -> bool:
    """Whether the folder is that of this very run, begun or finished."""
    path = out / "run.json"
    return path.is_file() and not _differences(record, json.loads(path.read_text()))


def _differences(record: dict[str, Any], held: dict[str, Any]) -> list[str]:
    return [key for key in record if key != "versions" and _decisive(record[key]) != _decisive(held.get(key))]


def _unused(path: Path) -> Path:
    """The path, or with .2, .3 … behind it if it is taken: the same run may be set aside more than once."""
    numbered = (path.with_name(f"{path.name}.{n}") for n in count(2))
    return next(candidate for candidate in chain([path], numbered) if not candidate.exists())


def _decisive(part: Any) -> Any:
    """A part of the record without settings that cannot change the result."""
    return {name: part[name] for name in part if name != "runtime"} if isinstance(part, dict) else part


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's notices about devices, unused workers and tips, which do not concern this loop, off within the
    block."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (
                ".*does not have many workers",
                ".*Checkpoint directory",
                ".*number of training batches",
                ".*LeafSpec",
                ".*You are using a CUDA device",
                ".*sync_dist=True",
            ):
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
