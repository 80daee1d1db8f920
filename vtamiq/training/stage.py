"""The settings of one stage of training: a `Stage` with its loss, optimiser, schedule and runtime, kept as YAML."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from vtamiq.caps import CAPS
from vtamiq.databases.patches import Flips
from vtamiq.utils.configs import build, conform, read_yaml, require
from vtamiq.utils.files import write_text

OPTIMIZERS = ("adamw", "sgd", "muon")
SCHEDULES = ("exponential", "cosine", "constant")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # positions and labels must not be rounded to half precision


@dataclass(frozen=True)
class ScoreLoss:
    """Learn the score of every pair of images.

    Attributes:
        kind: "scores", which tells this loss from `PreferenceLoss` in YAML.
        mae_weight, rank_weight, pearson_weight: weights of the three losses (`combined_loss`).
        auxiliary: further columns of the pairs to learn, distortions in 0..1 such as `rank_vsi`, by linear heads on the
            modulated difference vector that exist in training only.
        auxiliary_weight: weight of the mean loss of these heads.
        zero_error: probability that a training pair is replaced by the reference twice, with label 0.
    """

    kind: str = "scores"
    mae_weight: float = 0.0
    rank_weight: float = 1.0
    pearson_weight: float = 1.0
    auxiliary: tuple[str, ...] = ()
    auxiliary_weight: float = 1.0
    zero_error: float = 0.0

    def __post_init__(self):
        conform(self)
        require(self, "kind", self.kind == "scores", "must be 'scores'")
        for name in ("mae_weight", "rank_weight", "pearson_weight"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        total = self.mae_weight + self.rank_weight + self.pearson_weight
        require(self, "rank_weight", total > 0, "must be positive where mae_weight and pearson_weight are 0")
        require(self, "auxiliary", len(set(self.auxiliary)) == len(self.auxiliary), "names a column twice")
        require(self, "auxiliary_weight", self.auxiliary_weight > 0, "must be positive")
        require(self, "zero_error", 0 <= self.zero_error <= 1, "must be a probability")


@dataclass(frozen=True)
class PreferenceLoss:
    """Learn which of two images people prefer, P(A) = σ(w (q_B − q_A)), by the mean absolute error of P.

    The sharpness w starts from the model's `preference_weight` and is learnt as well.
    """

    kind: str = "preferences"

    def __post_init__(self):
        require(self, "kind", self.kind == "preferences", "must be 'preferences'")


@dataclass(frozen=True)
class Optimizer:
    """How weights move.

    Attributes:
        name: "adamw", "sgd", or "muon" for networks that start from scratch, at a rate that suits AdamW (`muon_groups`).
        lr: learning rate.
        lr_scale: learning rate of the encoder, relative to `lr`.
        momentum: of "sgd" and "muon" (0.95 is usual there); "adamw" has its own.
        weight_decay: of all weights but the sharpness w of preferences.
        gradient_clip: largest global norm of the network's gradient, w apart; 0 switches clipping off.
    """

    name: str = "adamw"
    lr: float = 1e-4
    lr_scale: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.01
    gradient_clip: float = 1.0

    def __post_init__(self):
        conform(self)
        require(self, "name", self.name in OPTIMIZERS, f"must be one of {OPTIMIZERS}")
        for name in ("lr", "lr_scale"):
            require(self, name, getattr(self, name) > 0, "must be positive")
        for name in ("weight_decay", "gradient_clip"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        require(self, "momentum", 0 <= self.momentum < 1, "must lie in [0, 1)")


@dataclass(frozen=True)
class Schedule:
    """Learning rate over the steps.

    Attributes:
        name: "exponential" or "cosine", down to `min_lr_ratio` times the learning rate; or "constant".
        warmup: share of all steps in which the rate rises linearly from 0.
        min_lr_ratio: last learning rate, relative to the first.
    """

    name: str = "exponential"
    warmup: float = 0.0
    min_lr_ratio: float = 0.01

    def __post_init__(self):
        conform(self)
        require(self, "name", self.name in SCHEDULES, f"must be one of {SCHEDULES}")
        require(self, "warmup", 0 <= self.warmup < 1, "must lie in [0, 1)")
        require(self, "min_lr_ratio", self.min_lr_ratio > 0, "must be positive")

    def rate_at(self, progress: float) -> float:
        """Learning rate relative to the optimiser's at `progress` in [0, 1] of all steps."""
        if progress < self.warmup:
            return progress / self.warmup
        done = (progress - self.warmup) / (1 - self.warmup)
        if self.name == "exponential":
            return self.min_lr_ratio**done
        if self.name == "cosine":
            return self.min_lr_ratio + (1 - self.min_lr_ratio) * (1 + math.cos(math.pi * done)) / 2
        return 1.0


@dataclass(frozen=True)
class Runtime:
    """Settings that cannot change the result: a run may be resumed with others.

    Attributes:
        workers: processes that load patches, for each device.
        in_memory: decode every pair once and keep it, in each worker; for small databases.
        checkpoint_minutes: an interrupted run loses at most about this much.
        gradient_checkpointing: compute the encoder's blocks again in the backward pass: less memory, about a third more
            time, the same weights.
    """

    workers: int = 0
    in_memory: bool = False
    checkpoint_minutes: float = 10.0
    gradient_checkpointing: bool = False

    def __post_init__(self):
        conform(self)
        require(self, "workers", self.workers >= 0, "must not be negative")
        require(self, "checkpoint_minutes", self.checkpoint_minutes > 0, "must be positive")


@dataclass(frozen=True)
class Stage:
    """The settings of one stage of training, beside its model and data.

    Attributes:
        loss: what is learnt, scores or preferences. In YAML, `loss: {kind: preferences}`; without a kind, scores.
        caps: patch sampling in training; patch size, position convention and scales are taken from the model.
        test_patches, num_draws: patches per image, and draws averaged, when rows are scored at the end; validation after
            each epoch uses one draw, always the same.
        epochs: passes over the training rows.
        batch_size: of all devices together. Rank and Pearson losses compare all of its rows.
        distorted_per_reference: distorted images of a batch that share a reference, which is encoded once, and the
            positions of their patches. In training only, not for preferences.
        freeze: modules or parameters that do not learn in the first `freeze_epochs` epochs, such as "encoder" or
            "encoder.blocks.0".
        ema: decay of a moving average of the weights, which is then validated and kept; 0 for none.
        flips: augmentation.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        onednn: on a CPU, compute linear layers with oneDNN where a timing at the start says that it pays. Results differ
            by rounding.
        compile: compile the encoder's blocks with torch.compile, for GPUs. Results differ by rounding, and the model's
            `mlp_dropout` and `encoder_drop_path` draw other numbers.
        seed: random seed of patches, order, dropout and heads.
    """

    name: str = "fine_tuning"
    loss: ScoreLoss | PreferenceLoss = ScoreLoss()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    caps: CAPS = CAPS()  # noqa: RUF009
    test_patches: int = 512
    num_draws: int = 4
    epochs: int = 20
    batch_size: int = 16
    distorted_per_reference: int = 1
    freeze: tuple[str, ...] = ()
    freeze_epochs: int = 0
    ema: float = 0.0
    flips: Flips = Flips(horizontal=0.5, vertical=0.5)  # noqa: RUF009
    precision: str = "32-true"
    onednn: bool = False
    compile: bool = False
    runtime: Runtime = Runtime()
    seed: int = 0

    def __post_init__(self):
        conform(self)
        for name in ("test_patches", "num_draws", "epochs", "distorted_per_reference"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "batch_size", self.batch_size >= 2, "must be at least 2: losses compare rows of a batch")
        shared = self.batch_size % self.distorted_per_reference == 0
        require(self, "distorted_per_reference", shared, f"must divide batch_size={self.batch_size}")
        alone = self.distorted_per_reference == 1 or not self.learns_preferences
        require(self, "distorted_per_reference", alone, "must be 1 for preferences")
        for name in ("seed", "freeze_epochs"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        together = (self.freeze_epochs >= 1) == bool(self.freeze)
        require(self, "freeze_epochs", together, "must be from 1 where `freeze` names parts, else 0")
        require(self, "ema", 0 <= self.ema < 1, "must lie in [0, 1)")
        require(self, "precision", self.precision in PRECISIONS, f"must be one of {PRECISIONS}")
        full = not self.onednn or self.precision == "32-true"
        require(self, "onednn", full, "needs precision='32-true'")
        require(self, "compile", not (self.compile and self.onednn), "takes the place of onednn: choose one of them")

    @property
    def learns_preferences(self) -> bool:
        return isinstance(self.loss, PreferenceLoss)

    @property
    def auxiliary(self) -> tuple[str, ...]:
        """Columns of the pairs that heads learn in training only."""
        return () if self.learns_preferences else self.loss.auxiliary

    @classmethod
    def load(cls, path: str | Path) -> "Stage":
        """Read a stage from YAML; unknown names raise `ValueError` with the nearest known one."""
        try:
            return build(cls, read_yaml(Path(path).read_bytes()) or {})
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def upgraded(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Settings of run folders that had all of them side by side, as those of today, without those that have left.

        Single settings under an older name raise `ValueError` with the new one.
        """
        if "milestones" in values and "labels" in values:
            return _nested(values)
        values = {name: value for name, value in values.items() if (name, value) not in GONE.items()}
        moved = {old: f"{part}.{new}" for part, names in FLAT_NAMES.items() for new, old in names.items()}
        moved |= FLAT_RENAMED
        for name, value in values.items():
            if name in moved and (name not in cls.__dataclass_fields__ or isinstance(value, str)):
                raise ValueError(f"Stage.{name} is now `{moved[name]}`")
        return values

    def save(self, path: str | Path) -> None:
        """Write the stage as YAML."""
        write_text(path, yaml.safe_dump(asdict(self), sort_keys=False))


FLAT_NAMES = {  # today's → in run folders whose stage had all settings side by side
    "loss": {
        "kind": "labels", "mae_weight": "mae", "rank_weight": "rank", "pearson_weight": "pearson",
        "auxiliary": "auxiliary", "auxiliary_weight": "auxiliary_weight", "zero_error": "zero_error",
    },
    "optimizer": {
        "name": "optimizer", "lr": "learning_rate", "lr_scale": "encoder_rate", "momentum": "momentum",
        "weight_decay": "weight_decay", "gradient_clip": "gradient_clip",
    },
    "schedule": {"name": "schedule", "warmup": "warmup", "min_lr_ratio": "final_rate"},
    "runtime": {name: name for name in Runtime.__dataclass_fields__},
}  # fmt: skip
FLAT_RENAMED = {"labels": "loss.kind", "test_repeats": "num_draws", "versions": "distorted_per_reference"}
GONE = {"accumulate": 1, "patience": 0, "bad_images": "stop"}  # settings that have left, and how they are left out
FLAT_GONE = ("linearise", "squared", "mae_decay", "milestones", "step_factor", *GONE)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in flat.items() if name not in FLAT_GONE}
    parts = {part: {new: values.pop(old) for new, old in names.items()} for part, names in FLAT_NAMES.items()}
    if flat["labels"] == "preferences":
        parts["loss"] = {"kind": "preferences"}
    else:
        parts["loss"]["auxiliary"] = [name.replace("iqm_", "rank_") for name in flat["auxiliary"]]
    if flat["schedule"] == "multistep":
        parts["schedule"]["name"] = "constant"
    renamed = {"num_draws": values.pop("test_repeats"), "distorted_per_reference": values.pop("versions")}
    return {**values, **renamed, **parts}
