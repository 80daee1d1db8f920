"""VTAMIQ: Vision Transformer for Attention Modulated Image Quality (Chubarau & Clark 2021, arXiv:2110.01655).

From top to bottom: the patch encoder, DiffNet, the quality head, and the network that joins them. Letters in shapes: B
batch, K images of an item (image 0 is the reference), N patches, P patch side, T tokens (class token, registers, patches),
D width. The encoder's batch is B·K images.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vtamiq.model.accelerate import accelerate, compile_blocks, decompile_blocks, first_token, restore
from vtamiq.model.backbone import check_backbone, create_vit, take_over
from vtamiq.model.config import VTAMIQConfig
from vtamiq.model.modes import evaluation
from vtamiq.model.pretrained import Pretrained

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

    Takes over the ViT's patch projection, class token, position table, first blocks and final norm.
    """

    recompute = False  # gradient checkpointing: less memory, about a third more time, the same gradients

    def __init__(self, config: VTAMIQConfig, vit: VisionTransformer):
        super().__init__()
        check_backbone(vit, config)
        width = vit.embed_dim
        self.patch_size = vit.patch_embed.patch_size[0]
        self.grid = (config.image_size or vit.patch_embed.img_size[0]) // self.patch_size
        self.class_token_position = config.class_token_position

        self.patch_projection = nn.Linear(3 * self.patch_size**2, width, bias=vit.patch_embed.proj.bias is not None)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.registers = nn.Parameter(torch.empty(1, config.num_registers, width)) if config.num_registers else None
        self.position_table = nn.Parameter(torch.empty(1 + self.grid**2, width))  # (1 + G·G, D)
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
        take_over(self, vit)

    def embed(self, patches: Tensor, uv: Tensor, scale: Tensor | None = None) -> Tensor:
        """Tokens that enter the first block, (B, T, D): class token, registers, then the patches in the given order.

        Args:
            patches: (B, N, 3, P, P) float, normalised.
            uv: (B, N, 2) float in [0, 1): vertical, horizontal position of each patch.
            scale: (B, N) int, used by a model with a scale table: how often the image was halved, clamped to S − 1.
        """
        x = self.patch_projection(patches.flatten(2))  # (B, N, D)
        # F.embedding, not indexing: the gradient of an indexed table is summed in any order by the threads of a CPU.
        x = x + F.embedding(self.position_rows(uv), self.position_table)  # (B, N, D)
        if self.scale_table is not None:
            x = x + F.embedding(scale.long().clamp(0, len(self.scale_table) - 1), self.scale_table)  # (B, N, D)
        ahead = self.class_token + self.position_table[0] if self.class_token_position else self.class_token
        if self.registers is not None:
            ahead = torch.cat([ahead, self.registers], dim=1)
        ahead = ahead.expand(x.shape[0], -1, -1)  # (B, T − N, D)
        return self.embedding_dropout(torch.cat([ahead, x], dim=1))  # (B, T, D)

    def position_rows(self, uv: Tensor) -> Tensor:
        """Row of the position table for each (u, v), (B, N): row-major cell of the G × G grid, after the class token's."""
        cell = (uv * self.grid).long().clamp(max=self.grid - 1)  # (B, N, 2)
        return cell[..., 0] * self.grid + cell[..., 1] + int(self.class_token_position)  # (B, N)

    def forward(self, patches: Tensor, uv: Tensor, scale: Tensor | None = None, class_token_only=False) -> Tensor:
        """All tokens after the final norm, (B, T, D), or the class token alone, (B, 1, D); arguments as in `embed`."""
        x = self.norm_pre(self.embed(patches, uv, scale))  # (B, T, D)
        *blocks, last = self.blocks
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)  # (B, T, D)
        x = first_token(last, x) if class_token_only else last(x)  # (B, 1 or T, D)
        return self.norm(x)


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


# ---------------------------------------------------------------------------------------------------------------- DiffNet


class ChannelAttention(nn.Module):
    """u ↦ u · sigmoid(expand(activation(squeeze(u))))."""

    def __init__(self, width: int, config: VTAMIQConfig):
        super().__init__()
        bottleneck = max(1, width // config.reduction)
        self.squeeze = nn.Linear(width, bottleneck)
        self.activation = nn.PReLU() if config.channel_attention_prelu else nn.ReLU()
        self.expand = nn.Linear(bottleneck, width)

    def gate(self, u: Tensor) -> Tensor:
        """The attention itself, (…, D) in (0, 1)."""
        return self.expand(self.activation(self.squeeze(u))).sigmoid()

    def forward(self, u: Tensor) -> Tensor:
        return u * self.gate(u)


class ChannelAttentionBlock(nn.Module):
    """x ↦ x + attention(linear(PReLU(x)))."""

    def __init__(self, width: int, config: VTAMIQConfig):
        super().__init__()
        self.activation = nn.PReLU()
        self.linear = nn.Linear(width, width)
        self.attention = ChannelAttention(width, config)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.linear(self.activation(x)))


class ResidualGroup(nn.Module):
    """Channel-attention blocks and a linear; `residual=False` leaves out the skip around them (the difference gate)."""

    def __init__(self, width: int, config: VTAMIQConfig, residual: bool = True):
        super().__init__()
        self.blocks = nn.Sequential(*(ChannelAttentionBlock(width, config) for _ in range(config.blocks_per_group)))
        self.linear = nn.Linear(width, width)
        self.drop_path = DropPath(config.decoder_drop_path)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        body = self.linear(self.blocks(x))  # (…, D)
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
        x = self.activation(self.hidden(self.dropout(x)))  # (…, D/4)
        return self.output(self.dropout(x)).squeeze(-1)  # (…)


# ----------------------------------------------------------------------------------------------------------------- VTAMIQ


class VTAMIQ(nn.Module, Pretrained):
    """Full-reference image quality: q = head(DiffNet(γ · (class token of reference − class token of distorted))).

    Lower is better. Weights are random until loaded (`from_pretrained`, `from_original`), trained, or started from an
    ImageNet ViT (`from_vit`).

    Attributes:
        lower_better: True, always.
        score_range: no bounds, since the head is a plain linear layer: nearly perfect copies may come out below 0.
        perfect_score: score of an image compared with itself: 0.0 with `zero_anchor`; else None, since it is whatever the
            weights give to a zero difference.
        origin, seen: where the weights come from, and which pictures they have seen; see `Pretrained`.
    """

    lower_better = True
    score_range = (float("-inf"), float("inf"))

    def __init__(self, config: VTAMIQConfig = VTAMIQConfig(), *, _vit: VisionTransformer | None = None):
        super().__init__()
        self.config = config
        self.encoder = PatchEncoder(config, _vit or create_vit(config))
        width = self.encoder.class_token.shape[-1]
        self.difference_scale = nn.Parameter(torch.ones(width)) if config.difference_scale else None  # (D,)
        self.difference_gate = ResidualGroup(width, config, residual=False) if config.difference_gate else None
        self.diffnet = DiffNet(width, config) if config.num_groups else nn.Identity()
        self.head = QualityHead(width, config.head_dropout)
        self.register_buffer("_mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    def forward(self, patches: Tensor, uv: Tensor, scale: Tensor | None = None) -> Tensor:
        """Score every distorted image of each item against the item's reference.

        Args:
            patches: (B, K, N, 3, P, P), K ≥ 2, image 0 of each item the reference; uint8, or float as `normalise` makes it
                ([-1, 1] by default).
            uv: (B, N, 2) shared by the images of an item, or (B, K, N, 2); float in [0, 1).
            scale: (B, N) or (B, K, N) int; needed by a model with `num_scales > 1`, of no effect in others.

        Returns:
            q: (B, K−1) float, lower is better.

        Raises:
            ValueError: shapes that do not fit the model or each other.
        """
        embedding = self.encode(patches, uv, scale)  # (B, K, D)
        if embedding.shape[1] < 2:
            raise ValueError(f"patches must have at least 2 images per item, got {tuple(patches.shape)}")
        q = self.compare(embedding[:, :1], embedding[:, 1:])  # (B, K−1)
        if self.config.zero_anchor:  # rounding may depend on the place in the batch: an exact copy is exactly 0
            q = q.masked_fill(_copies(patches, uv, scale), 0.0)
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
            uv = uv[:, None].expand(B, K, N, 2)  # (B, K, N, 2)
        if scale is not None and scale.ndim == 2:
            scale = scale[:, None].expand(B, K, N)  # (B, K, N)
        scale = None if scale is None else scale.flatten(0, 1)  # (B·K, N)
        token = self.encoder(patches.flatten(0, 1), uv.flatten(0, 1), scale, class_token_only=True)  # (B·K, 1, D)
        return token[:, 0].reshape(B, K, token.shape[-1])  # (B, K, D)

    def compare(self, reference: Tensor, distorted: Tensor) -> Tensor:
        """Score from class tokens: reference (B, 1, D), distorted (B, K−1, D) → q (B, K−1)."""
        difference = reference - distorted  # (B, K−1, D)
        reference = reference.expand_as(difference)  # (B, K−1, D)
        q = self._decode(difference.flatten(0, 1), reference.flatten(0, 1))  # (B·(K−1),)
        q = q.reshape(difference.shape[:2])  # (B, K−1)
        if self.config.zero_anchor:
            training = any(part.training for part in self.modules())
            with (
                evaluation(self) if training else nullcontext()
            ):  # one anchor for all: dropout must not make it another for each row
                anchor = self._decode(torch.zeros_like(reference[:, 0]), reference[:, 0])  # (B,)
            q = (q - anchor[:, None]).masked_fill((difference == 0).all(-1), 0.0)  # (B, K−1)
        return q

    def modulate(self, difference: Tensor, reference: Tensor) -> Tensor:
        """Difference of class tokens (B, D) → what the head reads (B, D): scaled, gated, through DiffNet."""
        if self.difference_scale is not None:
            difference = difference * self.difference_scale  # (B, D)
        if self.difference_gate is not None:
            difference = difference * self.difference_gate(reference)  # (B, D)
        return self.diffnet(difference)

    def _decode(self, difference: Tensor, reference: Tensor) -> Tensor:
        return self.head(self.modulate(difference, reference))

    def optimize_for_inference(self, enable: bool = True, *, compile: bool = False) -> "VTAMIQ":
        """Compute with oneDNN where a timing of a second says that it is faster on this CPU, in place; returns the model.

        Scores change by rounding only (1e-5); packed weights take as much memory again. False undoes it. `compile` also
        compiles the encoder's blocks where the model is, which takes seconds to minutes: for GPUs and long work.
        """
        decompile_blocks(self.encoder.blocks)
        accelerate(self) if enable else restore(self)
        if enable and compile:
            compile_blocks(self.encoder.blocks, self.encoder.class_token.shape[-1])
        return self

    def _check_inputs(self, patches: Tensor, uv: Tensor, scale: Tensor | None) -> None:
        P = self.encoder.patch_size
        if patches.ndim != 6 or patches.shape[3:] != (3, P, P):
            raise ValueError(f"patches must be (B, K, N, 3, {P}, {P}), got {tuple(patches.shape)}")
        B, K, N = patches.shape[:3]
        if tuple(uv.shape) not in ((B, N, 2), (B, K, N, 2)):
            raise ValueError(f"uv must be {(B, N, 2)} or {(B, K, N, 2)} to fit the patches, got {tuple(uv.shape)}")
        # A check on a GPU would stall it, one in a graph cannot be recorded.
        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if not recorded and uv.device.type == "cpu" and uv.numel() and not (uv.min() >= 0 and uv.max() < 1):
            raise ValueError(f"uv must lie in [0, 1), got values from {uv.min():g} to {uv.max():g}")
        if scale is None:
            if self.encoder.scale_table is not None:
                raise ValueError(f"a model with num_scales={self.config.num_scales} needs the scale of every patch")
        elif tuple(scale.shape) not in ((B, N), (B, K, N)):
            raise ValueError(f"scale must be {(B, N)} or {(B, K, N)} to fit the patches, got {tuple(scale.shape)}")
        elif scale.is_floating_point() or scale.dtype == torch.bool:
            raise ValueError(f"scale must be integers, got {scale.dtype}")


def _copies(patches: Tensor, uv: Tensor, scale: Tensor | None) -> Tensor:
    """Which distorted images are the reference, looked at in the same places: (B, K−1) bool."""
    copies = (patches[:, 1:] == patches[:, :1]).flatten(2).all(-1)
    if uv.ndim == 4:
        copies &= (uv[:, 1:] == uv[:, :1]).flatten(2).all(-1)
    if scale is not None and scale.ndim == 3:
        copies &= (scale[:, 1:] == scale[:, :1]).all(-1)
    return copies


def preference(q_a: Tensor, q_b: Tensor, w: Tensor | float) -> Tensor:
    """Probability that image A is preferred over B of the same reference: sigmoid(w · (q_B − q_A)), in any one shape."""
    return torch.sigmoid(w * (q_b - q_a))
