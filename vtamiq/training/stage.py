"""What one stage of training is asked to do: a `Stage`, kept as YAML with its run."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from vtamiq.caps import CAPS
from vtamiq.databases.patches import Flips
from vtamiq.utils.configs import build, conform, require
from vtamiq.utils.files import write_text

__all__ = ["Stage"]

LABELS = ("scores", "preferences")
OPTIMIZERS = ("adamw", "sgd", "muon")
SCHEDULES = ("exponential", "cosine", "multistep", "constant")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # positions and labels must not be rounded to half precision
BAD_IMAGES = ("stop", "skip")
ON_SCORES = (
    "mae", "mae_decay", "rank", "pearson", "auxiliary", "auxiliary_weight", "linearise", "zero_error", "versions",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """Everything that one stage of training is asked to do, beside its model and data.

    Attributes:
        labels: what is learnt. "scores": the score of every pair of images, by MAE, rank and Pearson losses.
            "preferences": which of two images people prefer, P(A) = σ(w (q_B − q_A)), by the mean error of P; the
            sharpness w, which starts from the model's `preference_weight`, is learnt as well.
        caps: patch sampling in training; patch size, position convention and scales are taken from the model.
        test_patches, test_repeats: patches per image, and draws averaged, when validation and test rows are scored at the
            end; validation after each epoch uses `test_patches` and one draw, the same for every epoch.
        epochs: at most so many; see `patience`.
        batch_size: of all devices together. Rank and Pearson losses compare all of its rows.
        versions: distorted images that share a reference, and the places of their patches: it is encoded once for them,
            so that V of them cost 1 + V images instead of 2 V, and a batch has fewer references. KADIS-700k has five of
            each. Validation and tests score every pair by itself.
        accumulate: batches whose gradients are added up before a step. Rows are compared within each batch only.
        optimizer: "adamw"; "sgd" with `momentum`; or "muon" with `momentum` (0.95 is usual), for networks that start from
            scratch, at a rate that suits AdamW. See `muon_groups`.
        learning_rate, weight_decay: of the optimiser; w of preferences is not decayed.
        encoder_rate: learning rate of the encoder, relative to `learning_rate`.
        freeze: parts of the model that do not learn in the first `freeze_epochs` epochs: names of modules or parameters,
            such as "encoder", "encoder.patch_projection", "encoder.blocks.0".
        schedule: learning rate over the steps: "exponential" or "cosine" from `learning_rate` down to `final_rate` times
            it; "multistep", times `step_factor` at each of the `milestones` (shares of all steps); or "constant"; after a
            linear rise over the first `warmup` share of the steps.
        mae, rank, pearson: weights of the losses (`combined_loss`).
        mae_decay: factor on the weight `mae` after each epoch (0.975 in the 2021 code).
        auxiliary: further columns of the pairs to be learnt at once, distortions in 0..1 such as `rank_vsi` (the eleven of
            synthetic databases). Each gets a linear head of its own on the modulated difference vector, in training
            only: the model and its score q stay as they are, and q is always trained on the database's score.
        auxiliary_weight: of the mean loss of these heads, beside the loss of q.
        linearise: prepare labels as the original does, with a curve fitted to the scores of all parts, test rows included
            (`Linearisation`): a leak, for comparison with its numbers only.
        zero_error: probability that a training pair is replaced by the reference twice, with label 0.
        squared: mean square instead of mean absolute error of P (the 2021 code); of preferences only.
        gradient_clip: largest global norm of the network's gradient; 0 switches clipping off. w is not clipped.
        ema: decay of a moving average of the weights over the steps, which is then what is validated and kept; 0 for
        none.
        patience: stop after so many epochs without a better validation SROCC; 0 never does.
        flips: augmentation.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        bad_images: "stop" ends the training with the name of an image that cannot be read; "skip" trains on the next pair
            instead and counts (`history.csv`, and `skipped.csv` with names). Validation and test rows are never skipped.
        onednn: on a CPU, let linear layers compute with oneDNN where a timing at the start says that it pays; same
        weights,
            results that differ by rounding only, from machine to machine as well. What was chosen is kept in the
            checkpoint, so that an interrupted run goes on with it.
        compile: compile the encoder's blocks with torch.compile, for GPUs: minutes at the start; results differ by
        rounding
            only, but `mlp_dropout` and `encoder_drop_path` of the model draw other numbers. A warning says where it
            fails.
        gradient_checkpointing: compute the encoder's blocks anew in the backward pass instead of keeping all of their
            results: less memory, about a third more time, the same weights.
        workers: processes that load patches, for each device.
        in_memory: decode every pair once and keep it, in each worker of training and validation; for small databases.
        checkpoint_minutes: an interrupted run loses at most about so much, however long its epochs are.
        seed: of patches, order, dropout and heads.
    """

    name: str = "fine_tuning"
    labels: str = "scores"
    caps: CAPS = CAPS()  # noqa: RUF009 - frozen
    test_patches: int = 512
    test_repeats: int = 4
    epochs: int = 20
    batch_size: int = 16
    versions: int = 1
    accumulate: int = 1
    optimizer: str = "adamw"
    momentum: float = 0.9
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    encoder_rate: float = 1.0
    freeze: tuple[str, ...] = ()
    freeze_epochs: int = 0
    schedule: str = "exponential"
    final_rate: float = 0.01
    milestones: tuple[float, ...] = (0.5, 0.75)
    step_factor: float = 0.1
    warmup: float = 0.0
    mae: float = 0.0
    mae_decay: float = 1.0
    rank: float = 1.0
    pearson: float = 1.0
    auxiliary: tuple[str, ...] = ()
    auxiliary_weight: float = 1.0
    linearise: bool = False
    zero_error: float = 0.0
    squared: bool = False
    gradient_clip: float = 1.0
    ema: float = 0.0
    patience: int = 0
    flips: Flips = field(default_factory=lambda: Flips(horizontal=0.5, vertical=0.5))
    precision: str = "32-true"
    bad_images: str = "stop"
    onednn: bool = False
    compile: bool = False
    gradient_checkpointing: bool = False
    workers: int = 0
    in_memory: bool = False
    checkpoint_minutes: float = 10.0
    seed: int = 0

    def __post_init__(self):
        conform(self)
        for name in ("test_patches", "test_repeats", "epochs", "accumulate", "versions"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(
            self, "batch_size", self.batch_size >= 2, "must be at least 2: rank and Pearson compare rows of a batch"
        )
        for name in ("learning_rate", "final_rate", "auxiliary_weight", "encoder_rate", "checkpoint_minutes"):
            require(self, name, getattr(self, name) > 0, "must be positive")
        for name in ("weight_decay", "mae", "rank", "pearson", "gradient_clip", "workers", "seed", "patience"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        for name in ("mae_decay", "step_factor"):
            require(self, name, 0 < getattr(self, name) <= 1, "must lie in (0, 1]")
        for name in ("warmup", "momentum", "ema"):
            require(self, name, 0 <= getattr(self, name) < 1, "must lie in [0, 1)")
        require(self, "versions", self.batch_size % self.versions == 0, f"must divide batch_size={self.batch_size}")
        alone = self.versions == 1 or self.bad_images == "stop"
        require(self, "versions", alone, "must be 1 with bad_images='skip': a bad image would spoil its whole item")
        require(self, "zero_error", 0 <= self.zero_error <= 1, "must be a probability")
        for name, known in (
            ("labels", LABELS), ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS),
            ("bad_images", BAD_IMAGES),
        ):  # fmt: skip
            require(self, name, getattr(self, name) in known, f"must be one of {known}")
        require(self, "auxiliary", len(set(self.auxiliary)) == len(self.auxiliary), "names a column twice")
        require(self, "rank", self.mae + self.rank + self.pearson > 0, "is zero like all loss weights")
        rising = list(self.milestones) == sorted(set(self.milestones)) and all(0 < at < 1 for at in self.milestones)
        require(self, "milestones", rising, "must rise within (0, 1)")
        require(
            self,
            "freeze_epochs",
            (self.freeze_epochs >= 1) == bool(self.freeze),
            "must be from 1 where `freeze` names parts, else 0",
        )
        require(self, "compile", not (self.compile and self.onednn), "takes the place of onednn: choose one of them")
        self._refuse_what_would_not_act()

    def _refuse_what_would_not_act(self) -> None:
        """A setting that another one switches off must keep its default: nobody should believe that it acts."""
        scores, preferences = (self.labels == kind for kind in LABELS)
        idle = {
            "optimizer='sgd' or 'muon'": ("momentum",) if self.optimizer == "adamw" else (),
            "schedule='multistep'": ("milestones", "step_factor") if self.schedule != "multistep" else (),
            "schedule='exponential' or 'cosine'": (
                ("final_rate",) if self.schedule not in ("exponential", "cosine") else ()
            ),
            "labels='preferences'": ("squared",) if scores else (),
            "labels='scores'": ON_SCORES if preferences else (),
            "precision='32-true'": ("onednn",) if self.precision != "32-true" else (),
            "mae above 0": ("mae_decay",) if scores and not self.mae else (),
            "auxiliary columns": ("auxiliary_weight",) if scores and not self.auxiliary else (),
        }
        idle = {name: condition for condition, names in idle.items() for name in names}
        for name, condition in idle.items():
            default = type(self).__dataclass_fields__[name].default
            require(self, name, getattr(self, name) == default, f"acts with {condition} only; leave it at {default!r}")

    @classmethod
    def load(cls, path: str | Path) -> "Stage":
        """Read a stage from YAML; unknown names raise `ValueError` with the nearest known one."""
        return build(cls, yaml.safe_load(Path(path).read_text()) or {})

    def save(self, path: str | Path) -> None:
        """Write the stage as YAML."""
        write_text(path, yaml.safe_dump(asdict(self), sort_keys=False))

    def rate_at(self, progress: float) -> float:
        """Learning rate relative to `learning_rate` at `progress` in [0, 1] of all steps."""
        if progress < self.warmup:
            return progress / self.warmup
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "multistep":
            return self.step_factor ** sum(progress >= at for at in self.milestones)
        done = (progress - self.warmup) / (1 - self.warmup)
        if self.schedule == "exponential":
            return self.final_rate**done
        return self.final_rate + (1 - self.final_rate) * (1 + math.cos(math.pi * done)) / 2
