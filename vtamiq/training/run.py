"""One stage of training: a model, labelled pairs and a `Stage` in; a run folder out.

Run folder: `run.json` (stage, model, data, versions), `stage.yaml`, `history.csv` (a row per epoch), `tensorboard/` where
that is installed, `checkpoints/` (`best` by validation SROCC, `last`, `previous`), `model/` (best weights),
`predictions.parquet` (validation and test rows), `start_predictions.parquet` (test rows, by the first weights; if asked
for), `result.json`, `run.lock` (keeps a second process out), and `scoring/` (finished draws, while rows are scored).
"""

import copy
import gc
import json
import logging
import math
import platform
import shutil
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pandas as pd
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, Timer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.utils.data import DataLoader, Subset

from vtamiq.caps import CAPS, caps_for, centre_template
from vtamiq.databases.patches import ImagePatches, PairPatches, PatchLoader, PreferencePatches
from vtamiq.databases.schema import Database, LabelScale
from vtamiq.databases.seen import pictures_of
from vtamiq.model.accelerate import decompile_blocks, restore
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
    end_at_sigterm,
    readable_checkpoint,
)
from vtamiq.training.module import Fitting, PreferenceFitting, frozen_parameters
from vtamiq.training.stage import Stage
from vtamiq.utils.configs import build
from vtamiq.utils.digests import digest_file, digest_table, digest_weights
from vtamiq.utils.files import AGAIN, clear_unfinished, holding, read_json, read_table, write_table, write_text
from vtamiq.utils.processes import is_first_process

log = logging.getLogger(__name__)
START = "start_predictions.parquet"  # in a run folder, if it was asked for
ANEW = "remove the run folder and train again"
RESCORE = "remove the result.json of the run and run again, which writes it anew"
SCORING = "scoring"  # draws of tables to come, in a run folder
PATIENCE = 600  # seconds that a process waits for the main one to claim the run folder
COMPUTES = 2  # raise when the same settings give other results: runs begun before are then not resumed
TIMEOUT = timedelta(days=1)  # for the other processes, while the main one scores the test rows


@dataclass(frozen=True)
class Devices:
    """Where a training runs; arguments of Lightning's Trainer."""

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"

    @property
    def processes(self) -> int:
        return (max(1, torch.cuda.device_count()) if self.devices == -1 else self.devices) * self.num_nodes

    @property
    def main(self) -> bool:
        """Whether this process is the only one, or the one that writes."""
        return self.processes == 1 or is_first_process()


@dataclass(frozen=True)
class Run:
    """What a finished run left behind."""

    folder: Path
    stage: Stage
    model: VTAMIQ  # best weights by validation SROCC, in evaluation mode on the CPU
    labels: LabelScale | None  # None: preferences are taken as they are
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
        """Digest of the weights that the run started from."""
        return self.record["start"]

    @property
    def digest(self) -> str:
        """Digest of the best weights."""
        return digest_weights(self.model)

    def was_trained_on(self, database: Database) -> bool:
        """Whether exactly these rows, with these scores, were the training rows."""
        return self.record["data"]["train"] == _describe(database, self.stage)

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """Read a finished run folder.

        Raises:
            FileNotFoundError: the folder holds no finished run.
            ValueError: a file is damaged.
        """
        folder = Path(folder)
        result = read_result(folder)
        if result is None:
            raise FileNotFoundError(f"{folder}: holds no finished run (no result.json)")
        record = _read_record(folder)
        try:
            stage = build(Stage, record["stage"])
            labels = LabelScale(**record["labels"]) if "best" in (record["labels"] or {}) else None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / 'run.json'} is damaged ({error}); {ANEW}") from error
        return cls(
            folder=folder,
            stage=stage,
            model=VTAMIQ.from_pretrained(folder / "model"),
            labels=labels,
            history=read_table(folder / "history.csv", ["epoch", "val_srocc"], RESCORE),
            predictions=read_table(folder / "predictions.parquet", ["q", "split"], RESCORE),
            record=record,
            result=result,
        )

    def start_predictions(self) -> pd.DataFrame:
        """What the first weights predicted for the test rows, if that was asked for; FileNotFoundError if not."""
        return read_table(self.folder / START, ["q"])


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a finished run, None of an unfinished one; ValueError if one of its files is damaged."""
    path = folder / "result.json"
    if not path.is_file():
        return None
    result = read_json(path, best_epoch=int, val_srocc=int | float | None, epochs=int, seconds=int | float)
    files = result.get("files", {})  # folders of older versions have none
    if not isinstance(files, dict):
        raise ValueError(f"{path} is damaged (its `files` are of another kind); {AGAIN}")
    for name, held in files.items():
        if not (folder / name).is_file() or digest_file(folder / name) != held:
            mend = ANEW if name == "run.json" else RESCORE
            raise ValueError(f"{folder / name} is damaged: it is not what the run left; {mend}")
    return result


def _read_record(folder: Path) -> dict[str, Any]:
    kinds = {"stage": dict, "model": dict, "start": str, "data": dict, "labels": dict | None}
    record = read_json(folder / "run.json", ANEW, **kinds)
    if not isinstance(record["data"].get("train"), dict) or "database" not in record["data"]["train"]:
        raise ValueError(f"{folder / 'run.json'} is damaged (no training rows); {ANEW}")
    return record


@dataclass(frozen=True)
class Prepared:
    """A checked stage, its data and devices."""

    stage: Stage
    parts: dict[str, Database]  # train, val and, if it is tested, test
    labels: LabelScale | None
    rows: ImagePatches
    held_out: ImagePatches
    places: Devices


def train(
    model: VTAMIQ,
    stage: Stage,
    training: Database,
    validation: Database,
    test: Database | None = None,
    *,
    out: str | Path,
    accelerator: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    progress: bool = True,
    score_start: bool = False,
) -> Run:
    """Train `model`, or resume the run that `out` holds, or return it if it is finished.

    Labels are normalised on the training rows only. Test rows are scored once, at the end, with the best weights. An
    interrupted run resumes at its last checkpoint and ends with the weights of an uninterrupted one.

    With several devices, each takes its share of every batch; the result is that of one device but for dropout and
    rounding. Every process runs this function: under `torchrun`, or in a script, which Lightning starts once more for
    each further device (in a notebook, `launch`).

    Args:
        model: trained in place; afterwards on the CPU, in evaluation mode, with the best weights (after an interruption,
            with its own). Its weights are part of what makes a run the same.
        training, validation, test: parts without a common reference, as of `Database.split`.
        out: run folder.
        accelerator, devices, num_nodes, strategy: of Lightning's Trainer: "auto", "cpu" or "gpu"; devices on each node,
            -1 for all; "auto" (one device, or DDP), "ddp", or another one, of which none was tried here.
        score_start: also score the test rows with the first weights: what the training has gained.

    Raises:
        ValueError: `out` holds a run of another stage, model, start, data or code, or a damaged one, or another process is
            training there; parts share contents; training diverged (try a lower learning rate); the batch cannot be
            shared evenly by the devices; another process failed.
        ImageError: an image cannot be read.
        KeyboardInterrupt: after Ctrl-C; SystemExit with status 143 after SIGTERM.
    """
    out, places = Path(out), Devices(accelerator, devices, num_nodes, strategy)
    job = check_stage(model, stage, training, validation, test, places)
    record = _record(model, job)
    if places.main:
        _claim(out, record)
    else:
        _wait_for_claim(out, record)
    score_start = score_start and test is not None
    if read_result(out) is None:
        _train(model, job, out, progress, score_start)
    else:
        log.info("%s holds this run, finished; loaded, not trained again", out.name)
        if places.main and score_start and not (out / START).is_file():  # it was not asked for then
            _score_start(model, job, out, progress)
            shutil.rmtree(out / SCORING, ignore_errors=True)
    run = Run.load(out)
    _become(model, run.model)
    return run


def check_stage(
    model: VTAMIQ,
    stage: Stage,
    training: Database,
    validation: Database,
    test: Database | None = None,
    places: Devices = Devices(),
) -> Prepared:
    """Prepare a training, refusing with ValueError what would stop it on the way; no image is read."""
    parts = {"train": training, "val": validation} | ({"test": test} if test is not None else {})
    _check_parts(parts, stage)
    if stage.caps.centre_map is not None and stage.caps.centre > 0:
        centre_template(stage.caps.centre_map)
    labels = None if stage.learns_preferences else LabelScale.fit(training)
    rows = _dataset(training, caps_for(model, stage.caps), stage, labels, augmented=True)
    test_caps = caps_for(model, stage.caps, num_patches=stage.test_patches)
    held_out = _dataset(validation, test_caps, stage, labels, augmented=False)
    frozen_parameters(model, stage.freeze)
    _check_batches(rows, held_out, stage, places.processes)
    return Prepared(stage, parts, labels, rows, held_out, places)


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


def _dataset(database: Database, caps: CAPS, stage: Stage, labels: LabelScale | None, augmented: bool) -> ImagePatches:
    options: dict[str, Any] = {"seed": stage.seed, "in_memory": stage.runtime.in_memory}
    if augmented:
        options["flips"] = stage.flips
    if stage.learns_preferences:
        return PreferencePatches(database, caps, **options)
    if augmented:
        options |= {"zero_error": stage.loss.zero_error, "distorted_per_reference": stage.distorted_per_reference}
    return PairPatches(database, caps, labels=labels, auxiliary=stage.auxiliary, **options)


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


def _train(model: VTAMIQ, job: Prepared, out: Path, progress: bool, score_start: bool) -> None:
    """Fit, keep the best weights, score. Where it fails, the model gets its own weights back."""
    start, main = copy.deepcopy(model), job.places.main
    with _alone(out) if main else nullcontext():
        if main:
            clear_unfinished(out)
            job.stage.save(out / "stage.yaml")
        try:
            trainer, seconds = _fit(model, job, out, progress)
            with _together(trainer) as main:
                if main:
                    result = _keep_best(model, job, out)
                    _score_parts(model, job, out, progress)
                    if score_start:
                        _score_start(start, job, out, progress)
                    result |= {"seconds": round(seconds, 1), "files": _digests(out)}
                    write_text(out / "result.json", json.dumps(result))
                    shutil.rmtree(out / SCORING, ignore_errors=True)
        except BaseException:
            _become(model, start)
            raise
        finally:
            if job.stage.onednn:
                restore(model)
            if job.stage.compile:
                decompile_blocks(model.encoder.blocks)
            model.encoder.recompute = False


def _become(model: VTAMIQ, other: VTAMIQ) -> None:
    """Give `model` the weights and the history of another one; afterwards it is on the CPU, in evaluation mode."""
    model.cpu().eval().load_state_dict(other.state_dict())
    model.seen, model.config = other.seen, other.config


# ---- fit --------------------------------------------------------------------------------------------------------


def _fit(model: VTAMIQ, job: Prepared, out: Path, progress: bool) -> tuple[lightning.Trainer, float]:
    """Run the training loop from where `out` left off; returns the trainer and the seconds that all of it took."""
    gc.collect()  # Lightning's cycles keep the images of a training before this one, if they are in memory
    stage, folder = job.stage, out / "checkpoints"
    fitting = (PreferenceFitting if stage.learns_preferences else Fitting)(model, stage)
    with _quiet():
        trainer = _trainer(job, out, timer := Timer(), progress)
        loaders = _loaders(job, trainer)
        resumed = readable_checkpoint(folder)
        if resumed is not None:
            # Lightning makes its iterator before it would load this
            loaders[0].load_state_dict(resumed[1]["loops"]["fit_loop"]["state_dict"]["combined_loader"][0])
        elif folder.is_dir() and any(folder.glob("*.ckpt")):
            log.warning("%s: no checkpoint can be read; the training begins anew", out.name)
        model.encoder.recompute = stage.runtime.gradient_checkpointing
        model.train()  # Lightning keeps the mode: a loaded model would be trained without dropout
        try:
            with _signals(trainer):
                trainer.fit(fitting, *loaders, ckpt_path=resumed and resumed[0], weights_only=True)
        finally:
            for parameter in fitting.frozen:
                parameter.requires_grad_(True)
    return trainer, timer.time_elapsed("train")


def _trainer(job: Prepared, out: Path, timer: Timer, progress: bool) -> lightning.Trainer:
    stage, places = job.stage, job.places
    callbacks = [timer, History(out), Termination(), *checkpoints(out / "checkpoints", stage)]
    if stage.onednn:
        callbacks.append(OneDNN())
    if stage.compile:
        callbacks.append(Compiled())
    if stage.ema:
        callbacks.append(EMAWeightAveraging(decay=stage.ema))
    if progress:
        callbacks.append(Progress())
    return lightning.Trainer(
        default_root_dir=out,
        accelerator=places.accelerator,
        devices=places.devices,
        num_nodes=places.num_nodes,
        strategy=_strategy(places, stage),
        precision=stage.precision,
        max_epochs=stage.epochs,
        gradient_clip_val=stage.optimizer.gradient_clip or None,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        logger=False,  # `History` is ours
        enable_progress_bar=False,  # `Progress` is ours
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def _strategy(places: Devices, stage: Stage) -> str | Strategy:
    if places.strategy not in ("auto", "ddp") or places.processes == 1:
        return places.strategy
    # Validation rows may not share out evenly, which an exchange of buffers, constants here, would not survive.
    unused = bool(stage.freeze)  # parameters that do not learn at first
    return DDPStrategy(find_unused_parameters=unused, broadcast_buffers=False, timeout=TIMEOUT)


def _loaders(job: Prepared, trainer: lightning.Trainer) -> tuple[DataLoader, DataLoader]:
    """Batches of this process for training and validation."""
    stage, rank, world_size = job.stage, trainer.global_rank, trainer.world_size
    items, workers = stage.batch_size // stage.distorted_per_reference, stage.runtime.workers
    batches = PatchLoader(
        job.rows, batch_size=items, workers=workers, shuffle=True, drop_last=len(job.rows) >= items, rank=rank,
        world_size=world_size,
    )  # fmt: skip
    # A plain loader: without an epoch in its indices, every epoch is validated on the same patches.
    val_batches = DataLoader(
        Subset(job.held_out, range(rank, len(job.held_out), world_size)),
        batch_size=max(1, stage.batch_size // world_size),
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return batches, val_batches


@contextmanager
def _signals(trainer: lightning.Trainer) -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, and SIGTERM ends the process with its usual status."""
    on_interrupt, on_termination = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    handles_sigterm = end_at_sigterm(trainer)
    try:
        yield
    except SystemExit as end:
        if end.code == 128 + signal.SIGTERM:
            raise
        # Lightning answers Ctrl-C by leaving the process, with further ones ignored.
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt("training interrupted; the same call resumes at the last checkpoint") from None
    finally:
        if handles_sigterm:
            signal.signal(signal.SIGTERM, on_termination)


@contextmanager
def _together(trainer: lightning.Trainer) -> Iterator[bool]:
    """Whether this is the main process; the others wait at the end of the block, and fail where it failed."""
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's notices about devices, workers and folders."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    noise = ("does not have many workers", "Checkpoint directory", "number of training batches", "LeafSpec",
             "You are using a CUDA device", "sync_dist=True")  # fmt: skip
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", f".*({'|'.join(noise)})")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# ---- the best weights, and what they predict ---------------------------------------------------------------------


def _keep_best(model: VTAMIQ, job: Prepared, out: Path) -> dict[str, Any]:
    """Give the model the weights of the best epoch and save it; returns the result of the run."""
    stage, training, validation = job.stage, job.parts["train"], job.parts["val"]
    weights, result = _best(out, stage)
    model.load_state_dict(weights)
    if stage.learns_preferences:
        model.config = replace(model.config, preference_weight=result["preference_weight"])
    if model.seen is not None:
        model.seen = (*model.seen, pictures_of(training, "train"), pictures_of(validation, "val"))
    card = {"training": _in_words(stage, training)}
    model.cpu().eval().save_pretrained(out / "model", model_card_kwargs=card)
    return result


def _best(out: Path, stage: Stage) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights of the best epoch, and the result of the run."""
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
    history = read_table(out / "history.csv", ["epoch"]).set_index("epoch")
    val_srocc = float(history["val_srocc"].loc[checkpoint["epoch"]])
    if not math.isfinite(val_srocc):
        log.warning(
            "%s: the validation rows have no SROCC (one row, or scores that are all alike), so that no epoch could be told "
            "from another; the first one's weights are kept", out.name,
        )  # fmt: skip
        val_srocc = None
    result = {"best_epoch": checkpoint["epoch"], "val_srocc": val_srocc, "epochs": len(history)}
    if stage.learns_preferences:
        result["preference_weight"] = float(state["sharpness"])
    return weights, result


def _score_parts(model: VTAMIQ, job: Prepared, out: Path, progress: bool) -> None:
    """Write the prediction table of the validation and test rows."""
    names = [name for name in job.parts if name != "train"]
    tables = [_score(model, job, out, progress, split=name, stage=job.stage.name) for name in names]
    write_table(pd.concat(tables, ignore_index=True), out / "predictions.parquet")


def _score_start(start: VTAMIQ, job: Prepared, out: Path, progress: bool) -> None:
    """Write the prediction table of the test rows by the first weights."""
    write_table(_score(start, job, out, progress, split="test"), out / START)


def _score(model: VTAMIQ, job: Prepared, out: Path, progress: bool, /, **labels: str) -> pd.DataFrame:
    """Predict one split, resuming from finished draws; afterwards the model is on the CPU, in evaluation mode."""
    stage = job.stage
    keep = out / SCORING / f"{labels['split']}-{digest_weights(model)}"
    on_gpu = job.places.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    model = model.eval().cuda() if on_gpu else model.eval()
    caps = caps_for(model, stage.caps, num_patches=stage.test_patches)
    table = predict(
        model, job.parts[labels["split"]], caps, repeats=stage.num_draws, seed=stage.seed, batch_size=stage.batch_size,
        workers=stage.runtime.workers, progress=progress, keep=keep, **labels,
    )  # fmt: skip
    model.cpu()
    return table


def _digests(out: Path) -> dict[str, str]:
    """Digests of the files of a finished run, by which damage is told."""
    names = [f"model/{name}" for name in ("config.json", "model.safetensors", "seen.json")]
    names = ["run.json", "history.csv", "predictions.parquet", *names]
    return {name: digest_file(out / name) for name in names if (out / name).is_file()}


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


# ---- what makes a run the same ------------------------------------------------------------------------------------


def _record(model: VTAMIQ, job: Prepared) -> dict[str, Any]:
    """The content of `run.json`; all of it but versions and runtime settings makes a run the same."""
    record = {
        "stage": asdict(job.stage),
        "model": asdict(model.config),
        "start": digest_weights(model),
        "data": {name: _describe(database, job.stage) for name, database in job.parts.items()},
        "labels": None if job.labels is None else asdict(job.labels),
        "code": COMPUTES,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("vtamiq", "torch", "timm", "lightning", "numpy")},
        },
    }
    return json.loads(json.dumps(record))


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


def _claim(out: Path, record: dict[str, Any]) -> None:
    """Write `run.json`; ValueError if the folder holds another run. Versions may differ, with a warning."""
    path = out / "run.json"
    if not path.is_file():
        write_text(path, json.dumps(record, indent=1))
        return
    held = _read_record(out)
    different = _differences(record, held)
    if different:
        raise ValueError(
            f"{out} holds another run (other {', '.join(different)}); choose another folder, or remove this one"
        )
    if record["versions"] != held.get("versions"):
        log.warning("%s was begun with %s, now %s", out.name, held.get("versions"), record["versions"])


def _wait_for_claim(out: Path, record: dict[str, Any]) -> None:
    """Wait until the main process has claimed the folder for this run."""
    path, until = out / "run.json", time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if path.is_file() and not _differences(record, _read_record(out)):
            return
        time.sleep(0.2)
    raise ValueError(f"{out}: the main process has not made this run's folder ready; does every node see the folder?")


def _differences(record: dict[str, Any], held: dict[str, Any]) -> list[str]:
    """Names of the parts in which two records are of different runs."""
    one, other = ({**part, "stage": {**part["stage"], "runtime": None}} for part in (record, held))
    return [name for name in one if name != "versions" and one[name] != other.get(name)]


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other processes from training in the same folder; those of this run on other devices write nothing."""
    with ExitStack() as held:
        try:
            held.enter_context(holding(out / "run.lock"))
        except BlockingIOError as error:
            raise ValueError(f"{out}: another process is training there; wait until it has ended") from error
        yield
