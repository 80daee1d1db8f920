"""VTAMIQ: Vision Transformer for Attention Modulated Image Quality (Chubarau & Clark 2021, arXiv:2110.01655).

Read from top to bottom: a configuration, the patch encoder (a timm Vision Transformer fed with unordered patches),
DiffNet
(residual groups with channel attention), the quality head, and the network that joins them.

Letters in shape comments: B batch, K images of an item (image 0 is the reference), N patches, P patch side, T tokens
(class token, registers, patches), D width, S scales, G side of the position grid.
"""

import contextlib
import difflib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import Attention, DropPath, LayerScale
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vtamiq.model.accelerate import OneDNNLinear, accelerate, compile_blocks, decompile_blocks, linear_rows, restore
from vtamiq.model.checkpoints import CheckpointError, convert_original, read_original, resize_position_table
from vtamiq.utils.configs import build, conform, require

__all__ = ["VTAMIQ", "CheckpointError", "VTAMIQConfig", "preference"]

log = logging.getLogger(__name__)

SEEN = "seen.json"  # beside the weights of a trained model
SHIPPED = Path(__file__).parents[1] / "weights"  # models that come with the package, each in a folder of its name


@dataclass(frozen=True)
class VTAMIQConfig:
    """Everything that defines the network; saved as `config.json` beside its weights.

    The defaults are the authors' later configuration (May 2024); `VTAMIQConfig.paper_2021()` is the one close to the
    paper.

    Attributes:
        backbone: name of a timm Vision Transformer with a class token and a learned position table.
        num_blocks: transformer blocks kept, counted from the input.
        image_size: G·P, the image side in pixels that the position grid stands for; None takes the backbone's.
        patch_size, width, num_heads, mlp_ratio: override the backbone's (only without its pre-trained weights).
        num_registers: learned tokens beside the class token, without position.
        num_scales: 1, or the number of image scales that get a learned embedding each.
        layer_scale: learned per-feature gains on both branches of every block.
        adapters: residual bottlenecks (D → D/4 → D) after attention and MLP of every block.
        class_token_position: the class token owns row 0 of the position table and patches start at row 1. The 2021 code
            gives the class token no position and lets patches start at row 0.
        difference_scale: learned per-feature gain on the difference of class tokens.
        difference_gate: multiply the difference by features of the reference ("difference embedding" of 2021).
        num_groups, blocks_per_group, reduction: DiffNet; `num_groups=0` leaves DiffNet out.
        channel_attention_prelu: PReLU instead of ReLU in the channel-attention bottleneck (2021).
        zero_anchor: subtract the score of a zero difference, so that an image compared with itself scores exactly 0. Our
            addition; off in the published code, whose score of a perfect copy is an arbitrary constant.
        embedding_dropout, mlp_dropout, encoder_drop_path, decoder_drop_path, head_dropout: act in training only.
        mean, std: input normalisation per colour channel, (value/255 − mean)/std; `VTAMIQ.from_vit` replaces the defaults
            by those that timm's weights were trained with.
        preference_weight: w of `preference`, the probability that one image is preferred to another; learnt by stages of
            training on preferences, of no effect on scores.
        uv_anchor: which point of a patch `uv` refers to: its "centre", or its top-left "corner" (2021); see
        `vtamiq.caps`.
    """

    backbone: str = "vit_base_patch16_384"
    num_blocks: int = 6
    image_size: int | None = None
    patch_size: int | None = None
    width: int | None = None
    num_heads: int | None = None
    mlp_ratio: float | None = None
    num_registers: int = 8
    num_scales: int = 1
    layer_scale: bool = True
    adapters: bool = False
    class_token_position: bool = True
    difference_scale: bool = True
    difference_gate: bool = False
    num_groups: int = 4
    blocks_per_group: int = 4
    reduction: int = 16
    channel_attention_prelu: bool = False
    zero_anchor: bool = False
    embedding_dropout: float = 0.0
    mlp_dropout: float = 0.0
    encoder_drop_path: float = 0.0
    decoder_drop_path: float = 0.1
    head_dropout: float = 0.1
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    preference_weight: float = 6.0
    uv_anchor: str = "centre"

    def __post_init__(self):
        conform(self)
        for name in ("num_blocks", "num_scales", "blocks_per_group", "reduction"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("num_registers", "num_groups"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        for name in ("image_size", "patch_size", "width", "num_heads", "mlp_ratio"):
            require(self, name, getattr(self, name) is None or getattr(self, name) > 0, "must be positive")
        for field in fields(self):
            if field.name.endswith(("dropout", "drop_path")):
                require(self, field.name, 0 <= getattr(self, field.name) < 1, "must lie in [0, 1)")
        for name in ("mean", "std"):
            require(self, name, len(getattr(self, name)) == 3, "must have three values, one per colour channel")
        require(self, "std", min(self.std) > 0, "must be positive")
        require(self, "preference_weight", math.isfinite(self.preference_weight), "must be finite")
        if self.width and self.num_heads:
            require(self, "width", self.width % self.num_heads == 0, f"must divide by num_heads={self.num_heads}")
        require(self, "uv_anchor", self.uv_anchor in ("centre", "corner"), 'must be "centre" or "corner"')

    @classmethod
    def paper_2021(cls, **changes: Any) -> "VTAMIQConfig":
        """The configuration of the authors' first public code (October 2021), close to the paper."""
        published = cls(
            num_registers=0,
            layer_scale=False,
            class_token_position=False,
            difference_scale=False,
            channel_attention_prelu=True,
            embedding_dropout=0.2,
            mlp_dropout=0.1,
            decoder_drop_path=0.0,
            head_dropout=0.2,
            preference_weight=1.0,  # their preferences have no sharpness
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            uv_anchor="corner",
        )
        return replace(published, **changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "VTAMIQConfig":
        """Inverse of `dataclasses.asdict`; unknown names raise `ValueError` with the nearest known one."""
        return build(cls, values)


# ---------------------------------------------------------------------------------------------------------- patch encoder


class Adapter(nn.Module):
    """Residual bottleneck for parameter-efficient fine-tuning; the identity at first, since `up` starts at zero."""

    def __init__(self, width: int):
        super().__init__()
        self.down = nn.Linear(width, width // 4)
        self.up = nn.Linear(width // 4, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(nn.functional.gelu(self.down(x)))


class PatchEncoder(nn.Module):
    """A timm Vision Transformer that reads an unordered set of patches; positions are looked up by each patch's (u, v).

    Takes over the ViT's patch projection, class token, position table, first blocks and final norm. The network is
    invariant to the order of the patches, and their number is free.

    Attributes:
        recompute: keep no more than the input of each block for the gradient, and compute it anew in the backward pass
            (gradient checkpointing): less memory, about a third more time, the same gradients.
    """

    recompute = False

    def __init__(self, config: VTAMIQConfig, vit: VisionTransformer):
        super().__init__()
        _check_backbone(vit, config)
        width = vit.embed_dim
        self.patch_size = vit.patch_embed.patch_size[0]
        self.grid = vit.patch_embed.grid_size[0]
        self.class_token_position = config.class_token_position

        self.patch_projection = nn.Linear(3 * self.patch_size**2, width, bias=vit.patch_embed.proj.bias is not None)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.registers = nn.Parameter(torch.empty(1, config.num_registers, width)) if config.num_registers else None
        self.position_table = nn.Parameter(torch.empty(1 + self.grid**2, width))
        self.scale_table = nn.Parameter(torch.empty(config.num_scales, width)) if config.num_scales > 1 else None
        for table in (self.class_token, self.registers, self.position_table, self.scale_table):
            if table is not None:
                nn.init.normal_(table, std=0.02)

        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.norm_pre = vit.norm_pre
        self.blocks = vit.blocks[: config.num_blocks]
        self.norm = vit.norm
        for block in self.blocks:
            _prepare_block(block, width, config)
        self._take_over(vit)

    @torch.no_grad()
    def _take_over(self, vit: VisionTransformer) -> None:
        """Copy the embedding weights of `vit`; its position table is resized when the grids differ."""
        self.patch_projection.weight.copy_(vit.patch_embed.proj.weight.flatten(1))
        if self.patch_projection.bias is not None:
            self.patch_projection.bias.copy_(vit.patch_embed.proj.bias)
        if vit.cls_token.std() > 1e-4:  # timm leaves an untrained class token at 1e-6; keep our N(0, 0.02²) then
            self.class_token.copy_(vit.cls_token)
        if self.registers is not None and vit.reg_token is not None:
            count = min(self.registers.shape[1], vit.reg_token.shape[1])
            self.registers[:, :count] = vit.reg_token[:, :count]
        table = vit.pos_embed[0]
        prefix = len(table) - vit.patch_embed.num_patches  # 1 + registers, 1, or 0 rows ahead of the grid
        ahead = table[:1] if prefix else torch.zeros_like(table[:1])
        self.position_table.copy_(resize_position_table(torch.cat([ahead, table[prefix:]]), self.grid))

    def embed(self, patches: Tensor, uv: Tensor, scale: Tensor | None = None) -> Tensor:
        """Tokens that enter the first block.

        Args:
            patches: (B, N, 3, P, P) float, normalised.
            uv: (B, N, 2) float in [0, 1): vertical, horizontal position of each patch.
            scale: (B, N) int, used by a model with a scale table: how often the image was halved, clamped to S − 1.

        Returns:
            (B, T, D): class token, registers, then the patches in the given order.
        """
        tokens = self.patch_projection(patches.flatten(2))  # (B, N, D)
        # F.embedding, not indexing: the gradient of an indexed table is summed in any order by the threads of a CPU.
        tokens = tokens + F.embedding(self.position_rows(uv), self.position_table)
        if self.scale_table is not None:
            tokens = tokens + F.embedding(scale.long().clamp(0, len(self.scale_table) - 1), self.scale_table)
        class_token = self.class_token + self.position_table[0] if self.class_token_position else self.class_token
        ahead = [class_token] if self.registers is None else [class_token, self.registers]
        ahead = torch.cat(ahead, dim=1).expand(len(tokens), -1, -1)
        return self.embedding_dropout(torch.cat([ahead, tokens], dim=1))  # (B, T, D)

    def position_rows(self, uv: Tensor) -> Tensor:
        """Row of the position table for each (u, v): row-major cell of the G × G grid, after the class token's row."""
        cell = (uv * self.grid).long().clamp(max=self.grid - 1)
        return cell[..., 0] * self.grid + cell[..., 1] + int(self.class_token_position)

    def forward(
        self, patches: Tensor, uv: Tensor, scale: Tensor | None = None, *, class_token_only: bool = False
    ) -> Tensor:
        """All tokens after the final norm, (B, T, D); arguments as in `embed`. Token 0 encodes the image.

        `class_token_only` gives that one alone, (B, 1, D), and leaves out what the last block computes for the others.
        """
        x = self.norm_pre(self.embed(patches, uv, scale))
        for block in self.blocks[:-1]:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        last = self.blocks[-1]
        return self.norm(_first_token(last, x) if class_token_only else last(x))


def _first_token(block: nn.Module, x: Tensor) -> Tensor:
    """Token 0 of `block(x)`, (B, 1, D): it looks at all tokens of x (B, T, D), but only its own query, projection and MLP
    are needed.

    A block of another kind, one that somebody has hooked, and unfused attention, whose maps somebody wants, run as a
    whole.
    """
    attention = block.attn
    if not _is_plain(block):
        return block(x)[:, :1]
    width, heads = attention.attn_dim, (attention.num_heads, attention.head_dim)
    normed = block.norm1(x)
    query = linear_rows(attention.qkv, normed[:, :1], 0, width)  # (B, 1, D)
    key, value = linear_rows(attention.qkv, normed, width, 3 * width).chunk(2, dim=-1)  # (B, T, D) each
    query, key, value = (part.unflatten(-1, heads).transpose(1, 2) for part in (query, key, value))  # (B, A, ·, D/A)
    dropout = attention.attn_drop.p if attention.training else 0.0
    query, key = attention.q_norm(query), attention.k_norm(key)
    looked = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    looked = attention.norm(looked.transpose(1, 2).flatten(2))  # (B, 1, D)
    x = x[:, :1] + block.drop_path1(block.ls1(attention.proj_drop(attention.proj(looked))))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _is_plain(block: nn.Module) -> bool:
    """Whether `block(x)` is what `_first_token` takes it for, and nobody watches it."""
    attention = block.attn
    if type(block) is not Block or type(attention) is not Attention or attention.gate is not None:
        return False
    parts = (block, attention, attention.qkv)
    watched = any(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) for part in parts)
    return attention.fused_attn and type(attention.qkv) in (nn.Linear, OneDNNLinear) and not watched


def _check_backbone(vit: nn.Module, config: VTAMIQConfig) -> None:
    def refuse(reason: str) -> None:
        needs = "VTAMIQ needs a timm VisionTransformer with a class token and a learned position table"
        raise ValueError(f"backbone `{config.backbone}` {reason}; {needs}, for example `vit_base_patch16_384`")

    if not isinstance(vit, VisionTransformer):
        refuse(f"is a {type(vit).__name__}")
    if vit.cls_token is None:
        refuse("has no class token")
    if vit.pos_embed is None:
        refuse("has no learned position table")
    if not isinstance(vit.patch_embed.proj, nn.Conv2d) or vit.patch_embed.proj.in_channels != 3:
        refuse("does not project patches of pixels")
    if not all(hasattr(block, part) for block in vit.blocks for part in ("ls1", "ls2", "mlp")):
        refuse("has blocks of another kind")
    if vit.num_prefix_tokens != 1 + (0 if vit.reg_token is None else vit.reg_token.shape[1]):
        refuse("has a distillation token")
    if vit.patch_embed.grid_size[0] != vit.patch_embed.grid_size[1]:
        refuse(f"has a {vit.patch_embed.grid_size} position grid, which is not square")
    if config.num_blocks > len(vit.blocks):
        raise ValueError(f"num_blocks={config.num_blocks}, but `{config.backbone}` has {len(vit.blocks)} blocks")


def _prepare_block(block: nn.Module, width: int, config: VTAMIQConfig) -> None:
    """Give a timm block the layer scale, adapters and MLP dropout that the configuration asks for."""
    for name in ("ls1", "ls2"):
        if config.layer_scale and isinstance(getattr(block, name), nn.Identity):
            setattr(block, name, LayerScale(width, init_values=1.0))
        if config.adapters:
            setattr(block, name, nn.Sequential(Adapter(width), getattr(block, name)))
    if config.mlp_dropout:
        block.mlp.drop1 = nn.Dropout(config.mlp_dropout)
        block.mlp.drop2 = nn.Dropout(config.mlp_dropout)


def _with_normalisation(config: VTAMIQConfig, cfg: Mapping[str, Any]) -> VTAMIQConfig:
    """The configuration with the `mean` and `std` that timm notes for its weights, unless it has values of its own."""
    default = VTAMIQConfig()
    if (config.mean, config.std) != (default.mean, default.std):
        return config
    return replace(config, mean=tuple(cfg["mean"]), std=tuple(cfg["std"]))


def _create_vit(config: VTAMIQConfig, pretrained: bool = False, **overrides: Any) -> VisionTransformer:
    settings = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "num_heads": config.num_heads,
        "mlp_ratio": config.mlp_ratio,
    }
    settings = {name: value for name, value in settings.items() if value is not None} | overrides
    if not timm.is_model(config.backbone):
        near = difflib.get_close_matches(config.backbone, timm.list_models("*vit*"), n=3)
        raise ValueError(f"timm knows no model `{config.backbone}`; near: {', '.join(near) or 'none'}")
    try:
        return timm.create_model(
            config.backbone,
            pretrained=pretrained,
            num_classes=0,
            drop_path_rate=config.encoder_drop_path,
            **settings,
        )
    except (TypeError, AssertionError) as error:  # another family does not know these settings, or they do not fit
        raise ValueError(f"backbone `{config.backbone}` cannot be built with {settings}: {error}") from error


# ---------------------------------------------------------------------------------------------------------------- DiffNet


class ChannelAttention(nn.Module):
    """u ↦ u · sigmoid(expand(activation(squeeze(u)))): each feature of the difference is damped or let through."""

    def __init__(self, width: int, reduction: int, prelu: bool):
        super().__init__()
        bottleneck = max(1, width // reduction)
        self.squeeze = nn.Linear(width, bottleneck)
        self.activation = nn.PReLU() if prelu else nn.ReLU()
        self.expand = nn.Linear(bottleneck, width)

    def gate(self, u: Tensor) -> Tensor:
        """The attention itself, (…, D) in (0, 1)."""
        return self.expand(self.activation(self.squeeze(u))).sigmoid()

    def forward(self, u: Tensor) -> Tensor:
        return u * self.gate(u)


class ChannelAttentionBlock(nn.Module):
    """x ↦ x + attention(linear(PReLU(x)))."""

    def __init__(self, width: int, reduction: int, prelu: bool):
        super().__init__()
        self.activation = nn.PReLU()
        self.linear = nn.Linear(width, width)
        self.attention = ChannelAttention(width, reduction, prelu)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.linear(self.activation(x)))


class ResidualGroup(nn.Module):
    """Channel-attention blocks and a linear; `residual=False` leaves out the skip around them (the difference gate)."""

    def __init__(self, width: int, config: VTAMIQConfig, residual: bool = True):
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                ChannelAttentionBlock(width, config.reduction, config.channel_attention_prelu)
                for _ in range(config.blocks_per_group)
            )
        )
        self.linear = nn.Linear(width, width)
        self.drop_path = DropPath(config.decoder_drop_path)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        body = self.linear(self.blocks(x))
        return x + self.drop_path(body) if self.residual else body


class DiffNet(nn.Module):
    """Modulates the difference of two class tokens: residual groups, then one linear; no skip around the whole."""

    def __init__(self, width: int, config: VTAMIQConfig):
        super().__init__()
        self.groups = nn.Sequential(*(ResidualGroup(width, config) for _ in range(config.num_groups)))
        self.linear = nn.Linear(width, width)

    def forward(self, difference: Tensor) -> Tensor:
        return self.linear(self.groups(difference))


class QualityHead(nn.Module):
    """(…, D) → (…): the scalar score, without a final activation."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(width, width // 4)
        self.activation = nn.PReLU()
        self.output = nn.Linear(width // 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.hidden(self.dropout(x)))
        return self.output(self.dropout(x)).squeeze(-1)


# ----------------------------------------------------------------------------------------------------------------- VTAMIQ


_CARD = """---
{{ card_data }}
---

# VTAMIQ

A full-reference image quality metric (Chubarau & Clark 2021, {{ paper_url }}): it compares a distorted image with its
reference. **Lower is better.** Load it with `VTAMIQ.from_pretrained(folder)` and score pairs with `vtamiq.score`.

## What it was trained on

{{ training | default("Not stated.", true) }}
"""


class VTAMIQ(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="vtamiq",
    paper_url="https://arxiv.org/abs/2110.01655",
    model_card_template=_CARD,
    tags=["image-quality-assessment", "full-reference"],
):
    """Full-reference image quality: q = head(DiffNet(γ · (class token of reference − class token of distorted))).

    Lower is better; a score is a perceived amount of distortion. Weights are random until loaded (`from_pretrained`,
    `from_original`), trained, or started from an ImageNet ViT (`from_vit`).

    Attributes:
        lower_better: True, always.
        score_range: lowest and highest score that there can be. The head is a plain linear layer, so there is no bound:
            nearly perfect copies may come out below 0, and how large the worst distortions get depends on the training.
        perfect_score: score of an image compared with itself, 0.0 by construction with `zero_anchor` where both are
        looked
            at in the same places; None without it, it is then whatever number the weights give to a zero difference.
        origin: where the weights come from, in words; set by whatever loads them.
        seen: pictures that the weights were trained or validated on for image quality, as `vtamiq.databases.seen` has
        them;
            empty for initial values and for an ImageNet ViT, None if nobody knows. Kept by `save_pretrained`.
    """

    lower_better = True
    score_range = (-math.inf, math.inf)
    origin = "initial values, not loaded from anywhere"
    seen: tuple[dict[str, Any], ...] | None = ()

    def __init__(self, config: VTAMIQConfig = VTAMIQConfig(), *, _vit: VisionTransformer | None = None):
        super().__init__()
        self.config = self._hub_mixin_config = config
        self.encoder = PatchEncoder(config, _vit or _create_vit(config))
        width = self.encoder.class_token.shape[-1]
        self.difference_scale = nn.Parameter(torch.ones(width)) if config.difference_scale else None
        self.difference_gate = ResidualGroup(width, config, residual=False) if config.difference_gate else None
        self.diffnet = DiffNet(width, config) if config.num_groups else nn.Identity()
        self.head = QualityHead(width, config.head_dropout)
        self.register_buffer("_mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    def forward(self, patches: Tensor, uv: Tensor, scale: Tensor | None = None) -> Tensor:
        """Score every distorted image of each item against the item's reference.

        Args:
            patches: (B, K, N, 3, P, P), K ≥ 2, image 0 of each item the reference; float normalised as `normalise` does
                ([-1, 1] by default), or uint8, which is normalised here.
            uv: (B, N, 2) shared by the images of an item, or (B, K, N, 2); float in [0, 1).
            scale: (B, N) or (B, K, N) int; needed by a model with `num_scales > 1`, of no effect in others.

        Returns:
            q: (B, K−1) float, lower is better.

        Raises:
            ValueError: shapes that do not fit the model or each other.
        """
        self._check_inputs(patches, uv, scale, least=2)
        embedding = self.encode(patches, uv, scale)  # (B, K, D)
        q = self.compare(embedding[:, :1], embedding[:, 1:])  # (B, K-1)
        if self.config.zero_anchor:  # rounding may depend on the place in the batch: an exact copy is exactly 0
            copies = (patches[:, 1:] == patches[:, :1]).flatten(2).all(-1)
            if uv.ndim == 4:
                copies &= (uv[:, 1:] == uv[:, :1]).flatten(2).all(-1)
            if scale is not None and scale.ndim == 3:
                copies &= (scale[:, 1:] == scale[:, :1]).all(-1)
            q = q.masked_fill(copies, 0.0)
        return q

    @property
    def perfect_score(self) -> float | None:
        return 0.0 if self.config.zero_anchor else None

    def normalise(self, patches: Tensor) -> Tensor:
        """uint8 patches (…, 3, P, P) to the float values that the encoder was trained on."""
        return (patches.to(self._mean.dtype) / 255 - self._mean) / self._std

    def encode(self, patches: Tensor, uv: Tensor, scale: Tensor | None = None) -> Tensor:
        """Class tokens of all images, (B, K, D), in one pass; arguments as in `forward`, K ≥ 1."""
        self._check_inputs(patches, uv, scale)
        if patches.dtype == torch.uint8:
            patches = self.normalise(patches)
        B, K, N = patches.shape[:3]
        if uv.ndim == 3:
            uv = uv[:, None].expand(B, K, N, 2)
        if scale is not None and scale.ndim == 2:
            scale = scale[:, None].expand(B, K, N)
        scale = None if scale is None else scale.flatten(0, 1)
        tokens = self.encoder(patches.flatten(0, 1), uv.flatten(0, 1), scale, class_token_only=True)  # (B·K, 1, D)
        return tokens[:, 0].unflatten(0, (B, K))

    def compare(self, reference: Tensor, distorted: Tensor) -> Tensor:
        """Score from class tokens: reference (B, 1, D), distorted (B, K−1, D) → q (B, K−1)."""
        difference = reference - distorted
        reference = reference.expand_as(difference)
        rows = self._decode(difference.flatten(0, 1), reference.flatten(0, 1))
        q = rows.unflatten(0, difference.shape[:2])
        if self.config.zero_anchor:
            with _evaluating(self):  # one anchor for all: dropout must not make it another for each row
                q = q - self._decode(torch.zeros_like(reference[:, 0]), reference[:, 0])[:, None]
            q = q.masked_fill((difference == 0).all(-1), 0.0)
        return q

    def optimize_for_inference(self, enable: bool = True, *, compile: bool = False) -> "VTAMIQ":
        """Compute with oneDNN where a timing of a second says that it is faster on this CPU, in place; returns the model.

        Scores change by rounding only (1e-5). Weights, saving, training and other devices are as before. Packed weights
        take as much memory again. False undoes it.

        Args:
            compile: also compile the encoder's blocks with torch.compile, on the device where the model is: seconds to
                minutes once, for GPUs and long work. They use the compiler's products then, which on CPUs are rarely
                faster than oneDNN's: `make benchmark ARGS="--only precision"` measures it.
        """
        decompile_blocks(self.encoder.blocks)
        accelerate(self) if enable else restore(self)
        if enable and compile:
            compile_blocks(self.encoder.blocks, self.encoder.class_token.shape[-1])
        return self

    def modulate(self, difference: Tensor, reference: Tensor) -> Tensor:
        """Difference of class tokens (B, D) → what the head reads (B, D): scaled, gated, through DiffNet."""
        if self.difference_scale is not None:
            difference = difference * self.difference_scale
        if self.difference_gate is not None:
            difference = difference * self.difference_gate(reference)
        return self.diffnet(difference)

    def _decode(self, difference: Tensor, reference: Tensor) -> Tensor:
        return self.head(self.modulate(difference, reference))

    def _check_inputs(self, patches: Tensor, uv: Tensor, scale: Tensor | None, least: int = 1) -> None:
        P = self.encoder.patch_size
        if patches.ndim != 6 or patches.shape[3:] != (3, P, P):
            raise ValueError(f"patches must be (B, K, N, 3, {P}, {P}), got {tuple(patches.shape)}")
        B, K, N = patches.shape[:3]
        if least > K:
            raise ValueError(f"patches must have at least {least} images per item, got {tuple(patches.shape)}")
        if tuple(uv.shape) not in ((B, N, 2), (B, K, N, 2)):
            raise ValueError(f"uv must be {(B, N, 2)} or {(B, K, N, 2)} to fit the patches, got {tuple(uv.shape)}")
        # A check on a GPU would stall it.
        if uv.device.type == "cpu" and uv.numel() and not (uv.min() >= 0 and uv.max() < 1):
            raise ValueError(f"uv must lie in [0, 1), got values from {uv.min():g} to {uv.max():g}")
        if scale is not None and tuple(scale.shape) not in ((B, N), (B, K, N)):
            raise ValueError(f"scale must be {(B, N)} or {(B, K, N)} to fit the patches, got {tuple(scale.shape)}")
        if scale is not None and (scale.is_floating_point() or scale.dtype == torch.bool):
            raise ValueError(f"scale must be integers, got {scale.dtype}")
        if scale is None and self.encoder.scale_table is not None:
            raise ValueError(f"a model with num_scales={self.config.num_scales} needs the scale of every patch")

    # ------------------------------------------------------------------------------------------------- weights, in and out

    @classmethod
    def from_vit(
        cls,
        config: VTAMIQConfig = VTAMIQConfig(),
        *,
        pretrained: bool | str | Path = True,
    ) -> "VTAMIQ":
        """A new VTAMIQ whose encoder starts from a pre-trained ViT; all else keeps its initial values.

        Args:
            config: its `backbone` names the ViT. `image_size` may differ from the ViT's: the position table is resized;
                None takes the ViT's.
            pretrained: True downloads timm's weights of that name (needs a network), and takes over the colour
                normalisation that they were trained with (CLIP, DINO and others have their own), unless `mean` or
                `std` is
                set; a path reads a `.npz` in the original JAX layout, such as `imagenet21k+imagenet2012_ViT-B_16.npz`.

        Raises:
            CheckpointError: the file is missing, damaged or of another architecture.
            ValueError: a downloaded ViT is asked to have another width, number of heads, MLP or patch size.
        """
        if isinstance(pretrained, str | Path):
            vit = _vit_from_npz(config, Path(pretrained))
        elif pretrained:
            for name in ("width", "num_heads", "mlp_ratio", "patch_size"):
                require(config, name, getattr(config, name) is None, "cannot be changed in a pre-trained ViT")
            vit = _create_vit(replace(config, image_size=None), pretrained=True)
            config = _with_normalisation(config, vit.pretrained_cfg)
        else:
            return cls(config)
        size = (
            config.image_size or vit.patch_embed.img_size[0]
        )  # kept in the configuration: a file may have its own grid
        return cls(replace(config, image_size=size), _vit=_with_grid(vit, size))

    @classmethod
    def from_original(cls, source: str | Path | Mapping[str, Any], *, num_heads: int = 12, **changes: Any) -> "VTAMIQ":
        """Load a checkpoint of the original authors' repository (ch-andrei/VTAMIQ, states of 2021 and 2024).

        Args:
            source: checkpoint file, or its (or its network's) state dict of tensors or arrays.
            num_heads: attention heads, the one setting that the weights' shapes do not tell: with another number than
                they were trained with, weights load all the same and scores are wrong.
            changes: further fields of `VTAMIQConfig`, for example `zero_anchor=True` or dropout rates.

        Returns:
            The model in evaluation mode.

        Raises:
            CheckpointError: unreadable, unsafe, or not such a checkpoint; also if weights and `changes` disagree.
        """
        read, state = convert_original(read_original(source))
        base = VTAMIQConfig.paper_2021() if read.pop("variant") == 2021 else VTAMIQConfig()
        try:
            model = cls(replace(base, **(read | {"num_heads": num_heads} | changes)))
        except ValueError as error:
            raise CheckpointError(f"original checkpoint: {error}") from error
        _load_strictly(model, state, "original checkpoint")
        model.origin, model.seen = "a given state dict" if isinstance(source, Mapping) else str(source), None
        return model.eval()

    @classmethod
    def from_pretrained(
        cls, folder_or_id: str | Path, *, download: bool = False, revision: str | None = None
    ) -> "VTAMIQ":
        """Load what `save_pretrained` wrote: a folder, the name of a model that comes with the package
        ("vtamiq-tiny"), or
        a Hugging Face Hub id.

        Nothing touches the network unless `download=True`; without it a hub id is looked up in the local cache. Weights
        that are kept in half precision are widened to float32.

        Returns:
            The model in evaluation mode, on the CPU.

        Raises:
            CheckpointError: nothing there, damaged files, weights that are pickled, not finite or of another
                configuration.
        """
        folder = Path(folder_or_id)
        if not os.path.isdir(folder):  # Path.is_dir raises where a name is too long
            folder = _shipped(str(folder_or_id)) or _snapshot(str(folder_or_id), download, revision)
        config_file, weights_file = folder / "config.json", folder / "model.safetensors"
        for file in (config_file, weights_file):
            if not file.is_file():
                pickled = sorted(
                    path.name for path in folder.iterdir() if path.suffix in (".bin", ".pth", ".pt", ".ckpt")
                )
                hint = f"; pickled weights ({pickled[0]}) are not read, they may run code" if pickled else ""
                raise CheckpointError(
                    f"{folder}: has no {file.name}; expected a folder written by `save_pretrained`{hint}"
                )
        try:
            model = cls(VTAMIQConfig.from_dict(json.loads(config_file.read_text(encoding="utf-8"))))
        except (ValueError, OSError, RuntimeError, MemoryError) as error:  # the latter two: sizes beyond all memory
            raise CheckpointError(f"{config_file}: not a VTAMIQ configuration ({error})") from error
        try:
            state = load_file(weights_file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{weights_file}: damaged or truncated ({error})") from error
        _load_strictly(model, state, str(weights_file))
        broken = [name for name, value in state.items() if not value.isfinite().all()]
        if broken:
            raise CheckpointError(f"{weights_file}: `{broken[0]}` holds NaN or infinite values")
        from_hub = revision and folder != Path(folder_or_id)
        model.origin = f"{folder_or_id}@{revision}" if from_hub else str(folder_or_id)
        if folder.parent == SHIPPED:
            model.origin = f"{folder.name}, which ships with vtamiq"
        model.seen = _read_seen(folder / SEEN)
        return model.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        config = json.dumps(asdict(self.config), sort_keys=True, indent=2)  # training may have learnt a field of it
        (save_directory / "config.json").write_text(config, encoding="utf-8")
        if self.seen is None:  # and not what another model left there
            (save_directory / SEEN).unlink(missing_ok=True)
        else:
            (save_directory / SEEN).write_text(json.dumps(self.seen), encoding="utf-8")


def preference(q_a: Tensor, q_b: Tensor, w: Tensor | float) -> Tensor:
    """Probability that image A is preferred over image B of the same reference: sigmoid(w · (q_B − q_A)).

    PieAPP's pairwise setting with VTAMIQ's learned sharpness `w` (initially 6 in the original code). Any one shape.
    """
    return torch.sigmoid(w * (q_b - q_a))


def _read_seen(path: Path) -> tuple[dict[str, Any], ...] | None:
    """What `_save_pretrained` wrote; None if there is no such file, or a damaged one."""
    try:
        seen = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    entries = {"database", "contents", "pictures"}
    whole = isinstance(seen, list) and all(isinstance(entry, dict) and entries <= set(entry) for entry in seen)
    return tuple(seen) if whole else None


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Dropout and drop path off within the block."""
    training = [part for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


def _vit_from_npz(config: VTAMIQConfig, path: Path) -> VisionTransformer:
    """The ViT of a JAX `.npz`, read by timm's own loader at the grid that the file has."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            key = "Transformer/posembed_input/pos_embedding"
            name = next((name for name in arrays.files if name.endswith(key)), None)
            if name is None:
                raise CheckpointError(f"{path}: has no `{key}`; expected a ViT in the original JAX layout")
            grid = math.isqrt(arrays[name].shape[1] - 1)
            patch_size = arrays[name.removesuffix(key) + "embedding/kernel"].shape[0]
        vit = _create_vit(replace(config, image_size=grid * patch_size), depth=config.num_blocks)
        vit.load_pretrained(str(path))
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, numpy and timm each have their own way of refusing a bad file
        raise CheckpointError(f"{path}: does not fit `{config.backbone}` or is damaged ({error})") from error
    return vit


@torch.no_grad()
def _with_grid(vit: VisionTransformer, image_size: int) -> VisionTransformer:
    """The ViT with its position table brought to the grid of another image size."""
    if image_size == vit.patch_embed.img_size[0]:
        return vit
    grid = image_size // vit.patch_embed.patch_size[0]
    table = vit.pos_embed[0]
    prefix = len(table) - vit.patch_embed.num_patches
    ahead = table[:prefix]
    body = resize_position_table(torch.cat([table[:1], table[prefix:]]), grid)[1:]
    vit.pos_embed = nn.Parameter(torch.cat([ahead, body])[None])
    vit.patch_embed.img_size = (image_size, image_size)
    vit.patch_embed.grid_size = (grid, grid)
    vit.patch_embed.num_patches = grid * grid
    return vit


def _shipped(name: str) -> Path | None:
    """The folder of a model that comes with the package."""
    return next((path for path in SHIPPED.glob("*") if path.name == name), None)


def _snapshot(hub_id: str, download: bool, revision: str | None) -> Path:
    try:
        return Path(
            snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=["config.json", "model.safetensors", SEEN],
                local_files_only=not download,
            )
        )
    except LocalEntryNotFoundError as error:
        if download:  # it was asked for, and the cause says why it does not come, such as a network that is down
            raise CheckpointError(
                f"`{hub_id}` is neither a folder nor in the local Hugging Face cache, and cannot be fetched "
                f"({error.__cause__ or error})"
            ) from error
        raise CheckpointError(
            f"`{hub_id}` is neither a folder nor in the local Hugging Face cache; pass download=True to fetch it"
        ) from error
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"`{hub_id}` is neither a folder nor to be had from the Hugging Face Hub ({error})"
        ) from error


def _load_strictly(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{where}: weights do not fit the configuration: {error}") from error
