"""The Lightning module of a VTAMIQ: training step, validation, optimiser.

On several devices, each one encodes its share of a batch; then all see the scores of the whole batch, so that rank and
Pearson compare the same rows as on one device. Gradients flow back through that exchange.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from scipy.stats import spearmanr
from timm.optim import Muon
from torch import Tensor, nn

from vtamiq.model.network import VTAMIQ, preference
from vtamiq.training.losses import combined_loss, mae_loss
from vtamiq.training.stage import Stage

ADAM_BETAS = (0.9, 0.999)  # PyTorch's, for what Muon leaves to Adam


class Fitting(lightning.LightningModule):
    """Learns the score of every pair, and auxiliary labels by heads that exist in training only.

    Raises:
        ValueError: `stage.freeze` names no part of the model, or all of it.
    """

    def __init__(self, model: VTAMIQ, stage: Stage):
        super().__init__()
        self.model, self.stage = model, stage
        self.heads = _auxiliary_heads(model, stage) if stage.auxiliary else None
        self.frozen = frozen_parameters(model, stage.freeze)
        self.register_parameter("sharpness", None)  # w of preferences
        self._validated: list[tuple[Tensor, Tensor, Tensor]] = []  # rows (B,), what was predicted and its target (B, C)

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        # Dropout is a function of (seed, epoch, batch), as patches and order are, so that a run resumes exactly. Devices
        # drop out differently.
        entropy = [self.stage.seed, self.current_epoch, batch_idx, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        learning = self.current_epoch >= self.stage.freeze_epochs
        for parameter in self.frozen:  # not once an epoch: a resumed epoch has no start
            parameter.requires_grad_(learning)

    def training_step(self, batch: dict[str, Tensor], _: int) -> dict[str, Any]:
        predicted, targets = (self.of_all_devices(value) for value in self.predict_all(batch))
        loss, parts = self.loss(predicted, targets)
        log = {f"train_{name}": value for name, value in parts.items()}
        return {"loss": loss, "log": {"train_loss": loss.detach(), **log}}

    def predict_all(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Predictions and targets of the rows of a batch, (B, C) each: q, then the auxiliary heads."""
        inputs = batch["patches"], batch["uv"], batch["scale"]
        target = batch["target"].reshape(-1, 1)  # from (B,), or (B, V): V distorted images per reference
        if self.heads is None:
            return self.model(*inputs).float().reshape(-1, 1), target
        embedding = self.model.encode(*inputs)  # (B, 1 + V, D)
        reference, distorted = embedding[:, :1], embedding[:, 1:]
        q = self.model.compare(reference, distorted).reshape(-1, 1)
        difference = reference - distorted
        vector = self.model.modulate(difference.flatten(0, 1), reference.expand_as(difference).flatten(0, 1))
        auxiliary = batch["auxiliary"].reshape(len(target), -1)
        return torch.cat([q, self.heads(vector)], dim=1).float(), torch.cat([target, auxiliary], dim=1)

    def loss(self, predicted: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the whole batch, and its parts for the log."""
        asked = self.stage.loss
        weights = {"mae": asked.mae_weight, "rank": asked.rank_weight, "pearson": asked.pearson_weight}
        loss, parts = combined_loss(predicted[:, 0], targets[:, 0], **weights)
        if self.heads is not None:
            columns = zip(predicted[:, 1:].T, targets[:, 1:].T, strict=True)
            auxiliary = torch.stack([combined_loss(q, target, **weights)[0] for q, target in columns]).mean()
            parts["auxiliary"] = auxiliary.detach()
            loss = loss + asked.auxiliary_weight * auxiliary
        return loss, parts

    def of_all_devices(self, values: Tensor) -> Tensor:
        """The rows of all devices, (B, …), in the order of a single device's batch; gradients find their way back."""
        return values if self.trainer.world_size == 1 else self.all_gather(values, sync_grads=True).flatten(0, 1)

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        self._validated.append(tuple(value.cpu() for value in (batch["row"], *self.predict_all(batch))))

    def on_validation_epoch_end(self) -> None:
        parts = self._validated
        if self.trainer.world_size > 1:  # processes may have different numbers of batches
            lists: list[list] = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(lists, parts)
            parts = [part for of_one in lists for part in of_one]
        self._validated = []
        rows, predicted, targets = (torch.cat(values) for values in zip(*parts, strict=True))
        order = rows.argsort()  # as on a single device, to the last bit
        for name, value in self.judge(predicted[order], targets[order]).items():
            self.log(f"val_{name}", value, logger=False)

    def judge(self, predicted: Tensor, targets: Tensor) -> dict[str, float]:
        """Validation measures over all rows; `srocc` decides which epoch is the best."""
        sroccs = _sroccs(predicted, targets)
        found = {"srocc": sroccs[0], "mae": float((predicted[:, 0] - targets[:, 0]).abs().mean())}
        return found | ({"auxiliary_srocc": float(np.mean(sroccs[1:]))} if self.heads is not None else {})

    def configure_optimizers(self) -> dict[str, Any]:
        settings, rate_at = self.stage.optimizer, self.stage.schedule.rate_at
        steps = self.trainer.estimated_stepping_batches
        encoder = list(self.model.encoder.parameters())
        others = [p for name, p in self.named_parameters() if not name.startswith("model.encoder.")]
        groups = [
            {"params": [p for p in others if p is not self.sharpness]},
            {"params": encoder, "lr": settings.lr * settings.lr_scale},
            *([] if self.sharpness is None else [{"params": [self.sharpness], "weight_decay": 0.0}]),
        ]
        options = {"lr": settings.lr, "weight_decay": settings.weight_decay}
        if settings.name == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=settings.momentum, **options)
        elif settings.name == "muon":
            groups = muon_groups(self.model, groups)
            optimizer = Muon(groups, momentum=settings.momentum, nesterov=True, betas=ADAM_BETAS, **options)
        else:
            optimizer = torch.optim.AdamW(groups, **options)
        # Step k uses the middle of its share: the first step of a warm-up must not have rate 0.
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: rate_at(min((k + 0.5) / steps, 1.0)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, *_: Any, **__: Any
    ) -> None:
        if gradient_clip_val and self.sharpness is not None:  # of the network only
            nn.utils.clip_grad_norm_([p for p in self.parameters() if p is not self.sharpness], gradient_clip_val)
        elif gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, "norm")


class PreferenceFitting(Fitting):
    """Learns P(A is preferred) = σ(w (q_B − q_A)) of triplets, and w; the reference is encoded once for both images."""

    def __init__(self, model: VTAMIQ, stage: Stage):
        super().__init__(model, stage)
        self.sharpness = nn.Parameter(torch.tensor(model.config.preference_weight))

    def predict_all(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """P(A is preferred) and the share of people that preferred A, (B, 1) each."""
        q_a, q_b = self.model(batch["patches"], batch["uv"], batch["scale"]).float().unbind(dim=1)
        return preference(q_a, q_b, self.sharpness)[:, None], batch["target"][:, None]

    def loss(self, predicted: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = mae_loss(predicted[:, 0], targets[:, 0])
        agree = (predicted > 0.5) == (targets > 0.5)
        return loss, {"accuracy": agree[targets != 0.5].float().mean().nan_to_num(0.5), "w": self.sharpness.detach()}

    def judge(self, predicted: Tensor, targets: Tensor) -> dict[str, float]:
        decided = targets[:, 0] != 0.5
        agree = ((predicted > 0.5) == (targets > 0.5))[decided]
        error = float((predicted - targets).abs().mean())
        return {"srocc": _sroccs(predicted, targets)[0], "mae": error, "accuracy": float(agree.float().mean())}


def muon_groups(model: VTAMIQ, groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Split each of the optimiser's groups into what Muon moves and what stays with AdamW (with Nesterov momentum).

    Muon (K. Jordan 2024; here timm's) makes every step of a matrix orthogonal. It moves the linear layers of encoder and
    DiffNet; tables, tokens, gains, biases and heads stay with AdamW. Steps are scaled to the size of AdamW's (Liu et al.
    2025, arXiv 2502.16982), so that one rate serves both.
    """
    parts = [part for part in (model.encoder, model.diffnet, model.difference_gate) if part is not None]
    linears = [layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear)]
    matrices = {id(layer.weight) for layer in linears}
    parted = []
    for group in groups:
        for by_muon in (True, False):
            parameters = [p for p in group["params"] if (id(p) in matrices) == by_muon]
            if parameters:
                parted.append(group | {"params": parameters} | ({} if by_muon else {"use_fallback": True}))
    return parted


def frozen_parameters(model: VTAMIQ, names: Sequence[str]) -> list[nn.Parameter]:
    """Trainable parameters whose name starts with one of `names`.

    Raises:
        ValueError: a name fits nothing, or nothing is left to learn.
    """
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = {part: [name for name in learning if f"{name}.".startswith(f"{part}.")] for part in names}
    for part, matches in found.items():
        if not matches:
            first = [name.split(".")[0] for name in learning]
            within = [".".join(name.split(".")[:2]) for name in learning if name.startswith("encoder.")]
            parts = ", ".join(dict.fromkeys(first + within))
            raise ValueError(f"freeze: the model has no {part!r} that learns; parts are names such as {parts}")
    frozen = {name for matches in found.values() for name in matches}
    if frozen == set(learning):
        raise ValueError("freeze: nothing would be left to learn")
    return [learning[name] for name in sorted(frozen)]


def _auxiliary_heads(model: VTAMIQ, stage: Stage) -> nn.Linear:
    """Linear heads, D → A, drawn from the seed without disturbing other random numbers."""
    width = model.encoder.class_token.shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence([stage.seed, len(stage.auxiliary)]).generate_state(1)[0]))
        return nn.Linear(width, len(stage.auxiliary))


def _sroccs(predicted: Tensor, targets: Tensor) -> list[float]:
    """SROCC of each column; NaN of constant ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant predictions: NaN says it
        return [float(spearmanr(q, y).statistic) for q, y in zip(predicted.T, targets.T, strict=True)]
