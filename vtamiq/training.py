"""One stage of training: a model, labelled pairs and a `Stage` in; a run folder with everything that came of it out.

Run folder: `run.json` (what was asked: stage, model, data, versions), `stage.yaml`, `history.csv` (one row per epoch),
`checkpoints/` (`best` by SROCC on the validation rows, `last`), `model/` (best weights, for `VTAMIQ.from_pretrained`),
`predictions.parquet` (validation and test rows, scored once at the end), `result.json`.

A run that was interrupted goes on at the start of the epoch it was in: patches, order and dropout are functions of the
seed and the epoch or step, so it ends with the weights of an uninterrupted run.
"""

import copy
import hashlib
import json
import logging
import math
import os
import platform
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pandas as pd
import torch
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from scipy.stats import spearmanr
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from vtamiq.caps import CAPS
from vtamiq.configs import build, conform, require
from vtamiq.databases import Database, LabelScale, Linearisation
from vtamiq.lineage import pictures_of
from vtamiq.losses import combined_loss
from vtamiq.model import VTAMIQ
from vtamiq.patches import Flips, PairPatches, patch_loader
from vtamiq.predictions import caps_for, predict, write_table

__all__ = ["Run", "Stage", "train"]

log = logging.getLogger(__name__)
SCHEDULES = ("exponential", "cosine", "constant")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # positions and labels must not be rounded to half precision


@dataclass(frozen=True)
class Stage:
    """Everything that one stage of training is asked to do, beside its model and data.

    Attributes:
        caps: patch sampling in training; patch size, position convention and scales are taken from the model.
        test_patches, test_repeats: patches per image, and draws averaged, when validation and test rows are scored at the
            end; validation after each epoch uses `test_patches` and one draw, the same for every epoch.
        learning_rate, weight_decay: of AdamW.
        schedule: learning rate over the steps: "exponential" or "cosine" from `learning_rate` down to `final_rate` times
            it, or "constant"; after a linear rise over the first `warmup` share of the steps.
        mae, rank, pearson: weights of the losses (`vtamiq.losses.combined_loss`).
        auxiliary: further columns of the pairs to be learnt at once, distortions in 0..1 such as `iqm_vsi` (the eleven of
            synthetic databases). Each gets a linear head of its own on the modulated difference vector, in training
            only: the model and its score q stay as they are, and q is always trained on the database's score.
        auxiliary_weight: of the mean loss of these heads, beside the loss of q.
        linearise: prepare labels as the original does, with a curve fitted to the scores of all parts, test rows included
            (`vtamiq.databases.Linearisation`): a leak, for comparison with its numbers only.
        gradient_clip: largest global norm of the gradient; 0 switches clipping off.
        flips: augmentation.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        workers: processes that load patches.
        in_memory: decode every pair once and keep it, in each worker of training and validation; for small databases.
    """

    name: str = "fine_tuning"
    caps: CAPS = CAPS()  # noqa: RUF009 - frozen
    test_patches: int = 512
    test_repeats: int = 4
    epochs: int = 20
    batch_size: int = 16
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    schedule: str = "exponential"
    final_rate: float = 0.01
    warmup: float = 0.0
    mae: float = 0.0
    rank: float = 1.0
    pearson: float = 1.0
    auxiliary: tuple[str, ...] = ()
    auxiliary_weight: float = 1.0
    linearise: bool = False
    gradient_clip: float = 1.0
    flips: Flips = field(default_factory=lambda: Flips(horizontal=0.5, vertical=0.5))
    precision: str = "32-true"
    workers: int = 0
    in_memory: bool = False
    seed: int = 0

    def __post_init__(self):
        conform(self)
        for name in ("test_patches", "test_repeats", "epochs"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(
            self, "batch_size", self.batch_size >= 2, "must be at least 2: rank and Pearson compare rows of a batch"
        )
        for name in ("learning_rate", "final_rate", "auxiliary_weight"):
            require(self, name, getattr(self, name) > 0, "must be positive")
        for name in ("weight_decay", "mae", "rank", "pearson", "gradient_clip", "workers", "seed"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        require(self, "auxiliary", len(set(self.auxiliary)) == len(self.auxiliary), "names a column twice")
        require(self, "rank", self.mae + self.rank + self.pearson > 0, "is zero like all loss weights")
        require(self, "warmup", 0 <= self.warmup < 1, "must lie in [0, 1)")
        require(self, "precision", self.precision in PRECISIONS, f"must be one of {PRECISIONS}")
        require(self, "schedule", self.schedule in SCHEDULES, f"must be one of {SCHEDULES}")

    @classmethod
    def load(cls, path: str | Path) -> "Stage":
        """Read a stage from YAML; unknown names raise `ValueError` with the nearest known one."""
        return build(cls, yaml.safe_load(Path(path).read_text()) or {})

    def save(self, path: str | Path) -> None:
        """Write the stage as YAML."""
        _write_text(Path(path), yaml.safe_dump(asdict(self), sort_keys=False))

    def rate_at(self, progress: float) -> float:
        """Learning rate relative to `learning_rate` at `progress` in [0, 1] of all steps."""
        if progress < self.warmup:
            return progress / self.warmup
        if self.schedule == "constant":
            return 1.0
        done = (progress - self.warmup) / (1 - self.warmup)
        if self.schedule == "exponential":
            return self.final_rate**done
        return self.final_rate + (1 - self.final_rate) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Run:
    """What a finished run left behind."""

    folder: Path
    stage: Stage
    model: VTAMIQ  # best weights by validation SROCC, in evaluation mode on the CPU
    labels: LabelScale | Linearisation
    history: pd.DataFrame
    predictions: pd.DataFrame
    record: dict[str, Any]  # run.json

    @property
    def trained_on(self) -> str:
        """Name of the database that the training rows come from."""
        return self.record["data"]["train"]["database"]

    def was_trained_on(self, database: Database) -> bool:
        """Whether exactly these rows, with these scores, were the training rows."""
        return self.record["data"]["train"] == _describe(database, self.stage.auxiliary)

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
            labels=(LabelScale if "best" in record["labels"] else Linearisation).from_dict(record["labels"]),
            history=pd.read_csv(folder / "history.csv"),
            predictions=pd.read_parquet(folder / "predictions.parquet"),
            record=record,
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
    progress: bool = True,
) -> Run:
    """Train `model` on one device, or go on with the run that `out` holds, or return it if it is finished.

    Labels are normalised on the training rows only (but for `stage.linearise`). Test rows are scored once, at the end, with
    the best weights.

    Args:
        model: trained in place; afterwards it is on the CPU, in evaluation mode, with the best weights, or after an
            interruption with those that it came with. They are part of what makes a run the same, so call again with a
            model built the same way.
        training, validation, test: parts without a common reference; `Database.split` makes such.
        out: run folder.
        set_aside: what to do if `out` holds another run: rename that folder and begin anew, instead of refusing.

    Raises:
        ValueError: `out` holds a run of another stage, model, start, data or code, parts share contents, or training
            diverged (try a lower learning rate).
        KeyboardInterrupt: after Ctrl-C; the last whole epoch is kept.
    """
    out = Path(out)
    parts = {"train": training, "val": validation} | ({"test": test} if test is not None else {})
    _check_parts(parts)
    labels = Linearisation.fit(*parts.values()) if stage.linearise else LabelScale.fit(training)
    seen = None if model.seen is None else (*model.seen, pictures_of(training), pictures_of(validation))
    _claim(out, _record(model, stage, parts, labels), set_aside)
    if (out / "result.json").is_file():
        log.info("%s holds this run, finished; loaded, not trained again", out.name)
        run = Run.load(out)
        model.cpu().eval().load_state_dict(run.model.state_dict())
        model.seen = run.model.seen
        return run

    stage.save(out / "stage.yaml")
    start, seen_before = copy.deepcopy(model.state_dict()), model.seen
    try:
        best = _fit(model, stage, training, validation, labels, out, accelerator, progress)
        checkpoint = torch.load(best, map_location="cpu", weights_only=True)
        state = checkpoint["state_dict"]
        weights = {name.removeprefix("model."): state[name] for name in state if name.startswith("model.")}
        if not all(value.isfinite().all() for value in weights.values()):
            raise ValueError(f"{out.name}: training diverged, its weights are not finite; try a lower learning rate")
        model.load_state_dict(weights)
        model.seen = seen
        model.cpu().eval().save_pretrained(out / "model", model_card_kwargs={"training": _in_words(stage, training)})
        _score_parts(model, stage, parts, out, accelerator, progress)
    except BaseException:
        model.cpu().eval().load_state_dict(start)  # so that the same call can be made again
        model.seen = seen_before
        raise
    history = pd.read_csv(out / "history.csv").set_index("epoch")
    val_srocc = float(history["val_srocc"].loc[checkpoint["epoch"]])
    result = {"best_epoch": checkpoint["epoch"], "val_srocc": val_srocc if math.isfinite(val_srocc) else None}
    _write_text(out / "result.json", json.dumps(result))
    return Run.load(out)


class Fitting(lightning.LightningModule):
    """The training loop's view of a VTAMIQ: loss, validation and optimiser of a stage."""

    def __init__(self, model: VTAMIQ, stage: Stage):
        super().__init__()
        self.model, self.stage = model, stage
        self.heads = _auxiliary_heads(model, stage) if stage.auxiliary else None
        self._validated: list[tuple[Tensor, Tensor]] = []  # q and the heads (B, 1 + A), and their targets

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        # Dropout becomes a function of (seed, step), as patches and order are of (seed, epoch): after a crash, whatever
        # else drew random numbers since the start makes no difference.
        torch.manual_seed(int(np.random.SeedSequence([self.stage.seed, self.global_step]).generate_state(1)[0]))

    def predict_all(self, batch: dict[str, Tensor]) -> Tensor:
        """q, then what each auxiliary head says, (B, 1 + A)."""
        inputs = batch["patches"], batch["uv"], batch["scale"]
        if self.heads is None:
            return self.model(*inputs).float()
        embedding = self.model.encode(*inputs)  # (B, 2, D)
        reference, distorted = embedding[:, :1], embedding[:, 1:]
        q = self.model.compare(reference, distorted)
        vector = self.model.modulate((reference - distorted)[:, 0], reference[:, 0])  # (B, D), what the head reads
        return torch.cat([q, self.heads(vector)], dim=1).float()

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        predicted, stage = self.predict_all(batch), self.stage
        weights = {"mae": stage.mae, "rank": stage.rank, "pearson": stage.pearson}
        loss, parts = combined_loss(predicted[:, 0], batch["target"], **weights)
        losses = {"train_loss": loss.detach()} | {f"train_{name}": value for name, value in parts.items()}
        if self.heads is not None:
            columns = zip(predicted[:, 1:].T, batch["auxiliary"].T, strict=True)
            auxiliary = torch.stack([combined_loss(q, target, **weights)[0] for q, target in columns]).mean()
            losses["train_auxiliary"] = auxiliary.detach()
            loss = loss + stage.auxiliary_weight * auxiliary
        self.log_dict(losses, on_step=False, on_epoch=True, batch_size=len(predicted), logger=False)
        return loss

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        targets = [batch["target"][:, None], *([batch["auxiliary"]] if self.heads is not None else [])]
        self._validated.append((self.predict_all(batch).cpu(), torch.cat(targets, dim=1).cpu()))

    def on_validation_epoch_end(self) -> None:
        predicted, targets = (torch.cat(values) for values in zip(*self._validated, strict=True))
        self._validated.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant predictions: NaN says it
            sroccs = [float(spearmanr(q, y).statistic) for q, y in zip(predicted.T, targets.T, strict=True)]
        self.log("val_srocc", sroccs[0], logger=False)
        self.log("val_mae", (predicted[:, 0] - targets[:, 0]).abs().mean(), logger=False)
        if self.heads is not None:
            self.log("val_auxiliary_srocc", float(np.mean(sroccs[1:])), logger=False)

    def configure_optimizers(self) -> dict[str, Any]:
        stage, steps = self.stage, self.trainer.estimated_stepping_batches
        optimizer = torch.optim.AdamW(self.parameters(), lr=stage.learning_rate, weight_decay=stage.weight_decay)
        # Step k uses the middle of its share: the first step of a warm-up must not have rate 0.
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: stage.rate_at(min((k + 0.5) / steps, 1.0)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _auxiliary_heads(model: VTAMIQ, stage: Stage) -> torch.nn.Linear:
    """Linear heads, D → A, that start alike for one seed without disturbing other random numbers."""
    width = model.encoder.class_token.shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence([stage.seed, len(stage.auxiliary)]).generate_state(1)[0]))
        return torch.nn.Linear(width, len(stage.auxiliary))


class History(Callback):
    """One row per epoch, kept in the checkpoint and rewritten to `history.csv`, so that a resumed run has it whole."""

    COLUMNS = ("train_loss", "train_mae", "train_rank", "train_pearson", "val_srocc", "val_mae")
    AUXILIARY = ("train_auxiliary", "val_auxiliary_srocc")  # mean loss and mean SROCC of the heads, if there are any

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        columns = self.COLUMNS + (self.AUXILIARY if module.stage.auxiliary else ())
        metrics = {name: float(trainer.callback_metrics[name]) for name in columns}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, "rate": rate} | metrics)
        write_table(pd.DataFrame(self.rows), self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])


class Progress(Callback):
    """One bar over all steps of the run: a bar for every epoch and validation would fill a notebook."""

    def on_train_start(self, trainer: lightning.Trainer, module: Fitting) -> None:
        total = int(trainer.estimated_stepping_batches)
        self.bar = tqdm(total=total, initial=trainer.global_step, desc=module.stage.name, unit="step", mininterval=1.0)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Fitting) -> None:
        srocc = float(trainer.callback_metrics["val_srocc"])
        done = f"{trainer.current_epoch + 1}/{module.stage.epochs}"
        self.bar.set_postfix({"epoch": done, "val_srocc": f"{srocc:.3f}"}, refresh=False)

    def on_train_end(self, *_: Any) -> None:
        self.bar.close()

    def on_exception(self, *_: Any) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint is replaced in one step: a process killed while it writes leaves the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        temporary = f"{path}.tmp"
        super().save_checkpoint(checkpoint, temporary, storage_options)
        os.replace(temporary, path)


class MovableCheckpoint(ModelCheckpoint):
    """Still knows the best checkpoint after the run folder has been moved or renamed."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(self.dirpath) / Path(path).name) if path else path

        moved = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | moved | {"best_k_models": best, "dirpath": self.dirpath})


def _fit(
    model: VTAMIQ,
    stage: Stage,
    training: Database,
    validation: Database,
    labels: LabelScale | Linearisation,
    out: Path,
    accelerator: str,
    progress: bool,
) -> Path:
    """Run the training loop from where `out` left off; returns the best checkpoint."""
    caps = caps_for(model, stage.caps)
    shared = {"labels": labels, "auxiliary": stage.auxiliary, "seed": stage.seed, "in_memory": stage.in_memory}
    pairs = PairPatches(training, caps, flips=stage.flips, **shared)
    batches = patch_loader(
        pairs,
        batch_size=stage.batch_size,
        workers=stage.workers,
        shuffle=True,
        drop_last=len(pairs) >= stage.batch_size,
    )
    test_caps = caps_for(model, stage.caps, num_patches=stage.test_patches)
    # A plain loader: without an epoch in its indices, every epoch is validated on the same patches.
    val_batches = DataLoader(
        PairPatches(validation, test_caps, **shared),
        batch_size=stage.batch_size,
        num_workers=stage.workers,
        persistent_workers=stage.workers > 0,
    )
    keep = {"dirpath": out / "checkpoints", "save_on_train_epoch_end": True, "enable_version_counter": False}
    best = MovableCheckpoint(filename="best", monitor="val_srocc", mode="max", **keep)
    last = MovableCheckpoint(filename="last", **keep)  # not `save_last`, which skips the epochs that are not the best
    callbacks = [History(out / "history.csv"), best, last]
    if progress:
        callbacks.append(Progress())
    resume_from = out / "checkpoints" / "last.ckpt"
    with _quiet():
        trainer = lightning.Trainer(
            default_root_dir=out,
            accelerator=accelerator,
            devices=1,
            precision=stage.precision,
            max_epochs=stage.epochs,
            gradient_clip_val=stage.gradient_clip or None,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            logger=False,
            enable_progress_bar=False,  # `Progress` is ours
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        model.train()  # Lightning keeps the mode: a loaded model would be trained without dropout
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            ckpt_path = resume_from if resume_from.is_file() else None
            if ckpt_path:  # Lightning says the epoch too late: workers fetch their first batches before
                batches.sampler.set_epoch(torch.load(ckpt_path, map_location="cpu", weights_only=True)["epoch"] + 1)
            trainer.fit(Fitting(model, stage), batches, val_batches, ckpt_path=ckpt_path, weights_only=True)
        except SystemExit:
            if not trainer.interrupted:
                raise
            # Lightning answers Ctrl-C by leaving the process, with further ones ignored.
            signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt("training interrupted; the same call goes on after the last whole epoch") from None
    return Path(best.best_model_path)


def _score_parts(
    model: VTAMIQ, stage: Stage, parts: dict[str, Database], out: Path, accelerator: str, progress: bool
) -> None:
    """Write the prediction table of the validation and test rows."""
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    model = model.cuda() if on_gpu else model
    caps = caps_for(model, stage.caps, num_patches=stage.test_patches)
    tables = [
        predict(
            model, database, caps, repeats=stage.test_repeats, seed=stage.seed, batch_size=stage.batch_size,
            workers=stage.workers, progress=progress, split=name, stage=stage.name,
        )
        for name, database in parts.items() if name != "train"
    ]  # fmt: skip
    model.cpu()
    write_table(pd.concat(tables, ignore_index=True), out / "predictions.parquet")


def _check_parts(parts: dict[str, Database]) -> None:
    seen: dict[str, str] = {}
    for name, database in parts.items():
        if not len(database):
            raise ValueError(f"the {name} part of {database.name} is empty")
        for content in set(database.contents.values()):
            if (database.name, content) in seen:
                raise ValueError(
                    f"content {content} of {database.name} is in both {seen[database.name, content]} and {name}: "
                    "parts must not share contents"
                )
            seen[database.name, content] = name


def _record(
    model: VTAMIQ, stage: Stage, parts: dict[str, Database], labels: LabelScale | Linearisation
) -> dict[str, Any]:
    return {
        "stage": asdict(stage),
        "model": asdict(model.config),
        "start": _weights_digest(model),
        "data": {name: _describe(database, stage.auxiliary) for name, database in parts.items()},
        "labels": labels.to_dict(),
        "code": _code_digest(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("vtamiq", "torch", "timm", "lightning", "numpy")},
    }


def _describe(database: Database, auxiliary: tuple[str, ...] = ()) -> dict[str, Any]:
    columns = ["dist_path", "score", *(name for name in (*auxiliary, "recipe_seed") if name in database.pairs)]
    rows = database.pairs[columns].to_csv(index=False)
    return {
        "database": database.name,
        "references": list(database.references),
        "pairs": len(database),
        "synthetic": database.synthetic,
        "rows_sha256": hashlib.sha256(rows.encode()).hexdigest()[:16],
    }


def _in_words(stage: Stage, training: Database) -> str:
    """For the model card."""
    beside = f" Beside the score, auxiliary heads learnt {', '.join(stage.auxiliary)}." if stage.auxiliary else ""
    kind = (
        f"SYNTHETIC scores, not human opinion ({training.score_name})"
        if training.synthetic
        else f"scores of people ({training.score_name})"
    )
    pairs = f"{len(training)} pairs of {len(training.references)} references of the database {training.name}"
    return f"Stage {stage.name}: {pairs}, with {kind}.{beside}"


def _code_digest() -> str:
    """Tells a run of other code from this one: of the files that decide what training computes."""
    digest = hashlib.sha256()
    for name in ("caps", "distortions", "images", "losses", "model", "pairs", "patches", "predictions", "training"):
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()[:16]


def _weights_digest(model: VTAMIQ) -> str:
    """Tells a run started from other weights from this one."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _claim(out: Path, record: dict[str, Any], set_aside: bool) -> None:
    """Write `run.json`, or refuse or rename a folder that holds another run. Versions may differ, with a warning."""
    path = out / "run.json"
    record = json.loads(json.dumps(record))
    if not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        _write_text(path, json.dumps(record, indent=1))
        return
    held = json.loads(path.read_text())
    different = [key for key in record if key != "versions" and _essence(record[key]) != _essence(held.get(key))]
    if different and set_aside:
        aside = _unused(out.with_name(f"{out.name}.{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"))
        log.warning("%s held another run (other %s), which is now %s", out.name, ", ".join(different), aside.name)
        os.replace(out, aside)
        return _claim(out, record, set_aside)
    if different:
        raise ValueError(f"{out} holds another run (other {', '.join(different)}); choose another folder or remove it")
    if record["versions"] != held.get("versions"):
        log.warning("%s was begun with %s, now %s", out.name, held.get("versions"), record["versions"])


def _unused(path: Path) -> Path:
    """The path, or with .2, .3 … behind it if it is taken: the same run may be set aside more than once."""
    numbered = (path.with_name(f"{path.name}.{n}") for n in count(2))
    return next(candidate for candidate in chain([path], numbered) if not candidate.exists())


def _essence(part: Any) -> Any:
    """A part of the record without what makes no difference to the result."""
    if isinstance(part, dict):
        return {name: value for name, value in part.items() if name not in ("workers", "in_memory")}
    return part


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's notices about devices, unused workers and tips, which do not concern this loop, off within the block."""
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
            ):
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
