"""Lightning callbacks: curves, a progress bar, checkpoints that survive any interruption, and faster computing."""

import importlib.util
import io
import logging
import os
import signal
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from tqdm.auto import tqdm

from vtamiq.model.accelerate import accelerate, accelerated, compile_blocks
from vtamiq.training.module import Fitting
from vtamiq.training.stage import Stage
from vtamiq.utils.files import replacing, write_table

log = logging.getLogger(__name__)
PREVIOUS = "previous.ckpt"
EVERY = 50  # batches between two points of a curve in TensorBoard


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on Apple's GPUs, which have none."""
    return torch.float32 if device.type == "mps" else torch.float64


class History(Callback):
    """Curves: `history.csv`, a row per epoch, and `tensorboard/` where that is installed.

    The history is kept in the checkpoint as well. Means over an epoch are of all its batches, also of those before an
    interruption.
    """

    def __init__(self, out: Path):
        self.out = out
        self.rows: list[dict[str, float]] = []
        self.batches = 0  # since the beginning of the run
        self._begin_epoch()
        self._board = None

    def _begin_epoch(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}  # on the device: to read a value there at every step would stall it
        self.count = 0

    @rank_zero_only
    def on_fit_start(self, trainer: lightning.Trainer, module: Fitting) -> None:
        if self.rows:  # whatever became of the file, and perhaps no epoch is left to write it
            write_table(pd.DataFrame(self.rows), self.out / "history.csv")

    @rank_zero_only
    def on_train_start(self, trainer: lightning.Trainer, module: Fitting) -> None:
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.batches + 1)

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Fitting, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        self.count += 1
        for name, value in outputs["log"].items():
            self.sums[name] = self.sums.get(name, 0.0) + value.to(widest_float(value.device))
        if self.batches % EVERY == 0:
            self._draw(outputs["log"])

    @rank_zero_only
    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Fitting) -> None:
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row["rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        row |= {name: float(total) / self.count for name, total in self.sums.items()}
        if "train_w" in row:  # where it has come to, not where it was on the way
            row["train_w"] = module.sharpness.item()
        metrics = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val_")}
        row |= metrics
        self.rows.append(row)
        write_table(pd.DataFrame(self.rows), self.out / "history.csv")
        self._draw(metrics)
        self._begin_epoch()

    def _draw(self, values: dict[str, Any]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, float(value), self.batches)

    @rank_zero_only
    def on_train_end(self, *_: Any) -> None:
        if self._board is not None:
            self._board.close()

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in ("rows", "batches", "count")}
        sums = {name: value.cpu() for name, value in self.sums.items()}
        return {**state, "sums": sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, type(value)(value))


class Progress(Callback):
    """One bar over all steps of the run: a bar for every epoch and validation would fill a notebook."""

    @rank_zero_only
    def on_train_start(self, trainer: lightning.Trainer, module: Fitting) -> None:
        total = int(trainer.estimated_stepping_batches)
        self.bar = tqdm(total=total, initial=trainer.global_step, desc=module.stage.name, unit="step", mininterval=1.0)

    @rank_zero_only
    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.bar.update(trainer.global_step - self.bar.n)

    @rank_zero_only
    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Fitting) -> None:
        srocc = float(trainer.callback_metrics["val_srocc"])
        done = f"{trainer.current_epoch + 1}/{module.stage.epochs}"
        self.bar.set_postfix({"epoch": done, "val_srocc": f"{srocc:.3f}"}, refresh=False)

    @rank_zero_only
    def on_train_end(self, *_: Any) -> None:
        self.bar.close()


class Termination(Callback):
    """SIGTERM ends the process at once; the run resumes at the last checkpoint.

    Lightning would keep the epoch as if it were whole, and exchange a message between all processes first, which waits
    forever where one of them is already waiting for another message.
    """

    def on_train_start(self, trainer: lightning.Trainer, module: Fitting) -> None:
        end_at_sigterm(trainer)  # in place of Lightning's handler


def end_at_sigterm(trainer: lightning.Trainer) -> bool:
    """Let SIGTERM end this process and those that it has started; False where a thread cannot."""

    def end(number: int, frame: Any) -> None:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))  # they may wait for us
        raise SystemExit(128 + number)

    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        signal.signal(signal.SIGTERM, end)
    return in_main_thread


class OneDNN(Callback):
    """Compute linear layers with oneDNN where that pays: timed once in a run, the same in all its processes."""

    def __init__(self):
        self.shapes: list[tuple[int, int]] | None = None

    def on_fit_start(self, trainer: lightning.Trainer, module: Fitting) -> None:
        if module.device.type != "cpu":
            log.warning("onednn: of no effect on %s, oneDNN is for CPUs", module.device.type)
            return
        if self.shapes is None:
            self.shapes = trainer.strategy.broadcast(accelerated(accelerate(module.model, training=True)))
        accelerate(module.model, training=True, shapes=self.shapes)
        if accelerated(module.model) != sorted(self.shapes):
            log.warning("onednn: began where oneDNN computes what it cannot here; results change by rounding")

    def state_dict(self) -> dict[str, Any]:
        return {"shapes": self.shapes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shapes = state["shapes"] and [tuple(shape) for shape in state["shapes"]]


class Compiled(Callback):
    """Compile the encoder's blocks, once they are on their device."""

    def on_fit_start(self, trainer: lightning.Trainer, module: Fitting) -> None:
        encoder = module.model.encoder
        with trainer.precision_plugin.forward_context():
            compile_blocks(encoder.blocks, encoder.class_token.shape[-1], training=True)


# ---- checkpoints ------------------------------------------------------------------------------------------------


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replace a checkpoint in one step, and keep the one before `last.ckpt`, in case a disk damages the last."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path, content = (
            Path(path),
            io.BytesIO(),
        )  # Lightning would write by way of the system's folder for temporary files
        torch.save(checkpoint, content)
        with replacing(path) as temporary:
            temporary.write_bytes(content.getbuffer())
            if path.name == "last.ckpt" and path.exists():
                os.replace(path, path.with_name(PREVIOUS))


class MovableCheckpoint(ModelCheckpoint):
    """Still knows the best checkpoint after the run folder has been moved or renamed."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(self.dirpath) / Path(path).name) if path else path

        moved = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | moved | {"best_k_models": best, "dirpath": self.dirpath})


class TimedCheckpoint(MovableCheckpoint):
    """Every few minutes within an epoch, but not after its last step, where the epoch's own follows."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *rest: Any) -> None:
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *rest)


def checkpoints(folder: Path, stage: Stage) -> list[ModelCheckpoint]:
    """`best.ckpt` by validation SROCC, and `last.ckpt`, after each epoch and every `checkpoint_minutes`."""
    keep = {"dirpath": folder, "enable_version_counter": False}
    epochs = {"save_on_train_epoch_end": True}
    return [
        MovableCheckpoint(filename="best", monitor="val_srocc", mode="max", **epochs, **keep),
        # `save_last` would skip epochs that are not the best.
        MovableCheckpoint(filename="last", **epochs, **keep),
        TimedCheckpoint(
            filename="last", train_time_interval=timedelta(minutes=stage.runtime.checkpoint_minutes), **keep
        ),
    ]


def readable_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Path and content of the last checkpoint that can be read, or None; warns of damaged ones."""
    for name in ("last.ckpt", PREVIOUS):
        path = folder / name
        if not path.is_file():
            continue
        try:
            held = torch.load(path, map_location="cpu", weights_only=True)
            if not {"epoch", "state_dict", "optimizer_states", "loops"} <= set(held):
                raise ValueError("not a checkpoint of a training")
        except Exception as error:  # zipfile, pickle and torch each have their own way of refusing a damaged file
            # Its kind only: in words, torch advises to load the file unsafely.
            log.warning("%s is damaged (%s); falling back to the one before", name, type(error).__name__)
            continue
        return path, held
    return None
