"""The same network written the obvious way, as the original computes: what the benchmark measures speed against.

One pass per image, separate query, key and value layers, explicit softmax, every token through every block. The golden
vectors hold for it as well, so it is also a second implementation to check the first with.
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vtamiq.model.network import VTAMIQ

__all__ = ["TwinNetwork"]


class TwinNetwork(nn.Module):
    """The plain twin of a VTAMIQ with timm's usual blocks, in evaluation or training mode; shares its weights, copied.

    Raises:
        ValueError: the model has adapters, blocks of another kind, or is in training with dropout in its encoder.
    """

    def __init__(self, model: VTAMIQ):
        super().__init__()
        config = model.config
        random = config.mlp_dropout or config.embedding_dropout or config.encoder_drop_path
        if config.adapters or (random and model.training):
            raise ValueError("the plain twin has neither adapters nor, in training, randomness in its encoder")
        if not all(type(b) is Block and type(b.attn) is Attention and b.attn.gate is None and type(b.mlp) is Mlp
                   and isinstance(b.attn.q_norm, nn.Identity) for b in model.encoder.blocks):  # fmt: skip
            raise ValueError(f"the plain twin has timm's usual blocks only, `{config.backbone}` has others")
        encoder = model.encoder
        self.zero_anchor, self.grid, self.patch_size = config.zero_anchor, encoder.grid, encoder.patch_size
        self.first_row = int(config.class_token_position)
        width = encoder.class_token.shape[-1]
        self.projection = nn.Conv2d(3, width, self.patch_size, stride=self.patch_size)
        self.projection.weight.data = encoder.patch_projection.weight.detach().clone().view_as(self.projection.weight)
        self.projection.bias.data = encoder.patch_projection.bias.detach().clone()
        for name in ("class_token", "registers", "position_table", "scale_table"):
            table = getattr(encoder, name)
            setattr(self, name, None if table is None else nn.Parameter(table.detach().clone()))
        self.blocks = nn.ModuleList(_TwinBlock(block) for block in encoder.blocks)
        self.norm = _copied_norm(encoder.norm)
        scale = model.difference_scale
        self.difference_scale = None if scale is None else nn.Parameter(scale.detach().clone())
        self.gate = None if model.difference_gate is None else _TwinGroup(model.difference_gate)
        self.groups = nn.ModuleList(_TwinGroup(group) for group in getattr(model.diffnet, "groups", ()))
        self.last = _copied_linear(model.diffnet.linear) if config.num_groups else nn.Identity()
        self.hidden, self.output = _copied_linear(model.head.hidden), _copied_linear(model.head.output)
        self.activation = _copied_prelu(model.head.activation)
        self.dropout = nn.Dropout(config.head_dropout)
        self.register_buffer("mean", model._mean.clone(), persistent=False)
        self.register_buffer("std", model._std.clone(), persistent=False)
        self.train(model.training)

    def forward(self, reference: Tensor, distorted: Tensor, uv: Tensor, scale: Tensor | None = None) -> Tensor:
        """q (B,) of patches (B, N, 3, P, P) of each image, float normalised or uint8; uv (B, N, 2), scale (B, N)."""
        reference, distorted = self.encode(reference, uv, scale), self.encode(distorted, uv, scale)
        q = self.decode(reference - distorted, reference)
        return q - self.decode(torch.zeros_like(reference), reference) if self.zero_anchor else q

    def encode(self, patches: Tensor, uv: Tensor, scale: Tensor | None = None) -> Tensor:
        """Class tokens (B, D) of one image of each item."""
        if patches.dtype == torch.uint8:
            patches = (patches.float() / 255 - self.mean) / self.std
        B, N = patches.shape[:2]
        tokens = self.projection(patches.flatten(0, 1)).view(B, N, -1)
        row = torch.floor(uv[..., 0] * self.grid) * self.grid + torch.floor(uv[..., 1] * self.grid)
        tokens = tokens + self.position_table[row.long() + self.first_row]
        if self.scale_table is not None:
            tokens = tokens + self.scale_table[scale.long().clamp(0, len(self.scale_table) - 1)]
        first = self.class_token + self.position_table[0] if self.first_row else self.class_token
        parts = [first.expand(B, -1, -1)]
        if self.registers is not None:
            parts.append(self.registers.expand(B, -1, -1))
        x = torch.cat([*parts, tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def decode(self, difference: Tensor, reference: Tensor) -> Tensor:
        """q (B,) of differences (B, D) and class tokens of the references (B, D)."""
        x = difference if self.difference_scale is None else difference * self.difference_scale
        if self.gate is not None:
            x = x * self.gate.body(reference)
        for group in self.groups:
            x = group(x)
        x = self.activation(self.hidden(self.dropout(self.last(x))))
        return self.output(self.dropout(x))[:, 0]


class _TwinBlock(nn.Module):
    def __init__(self, block: nn.Module):
        super().__init__()
        self.heads = block.attn.num_heads
        self.norm1, self.norm2 = _copied_norm(block.norm1), _copied_norm(block.norm2)
        width = block.attn.qkv.in_features
        self.query, self.key, self.value = (
            _copied_linear(block.attn.qkv, slice(start, start + width)) for start in (0, width, 2 * width)
        )
        self.out = _copied_linear(block.attn.proj)
        self.fc1, self.fc2 = _copied_linear(block.mlp.fc1), _copied_linear(block.mlp.fc2)
        for name in ("ls1", "ls2"):
            gain = getattr(getattr(block, name), "gamma", None)
            setattr(self, name, None if gain is None else nn.Parameter(gain.detach().clone()))

    def forward(self, x: Tensor) -> Tensor:
        a = self.attend(self.norm1(x))
        x = x + (a if self.ls1 is None else self.ls1 * a)
        f = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + (f if self.ls2 is None else self.ls2 * f)

    def attend(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        query, key, value = (
            layer(x).view(B, T, self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )  # (B, A, T, D/A)
        weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(D // self.heads), dim=-1)
        return self.out((weights @ value).transpose(1, 2).reshape(B, T, D))


class _TwinGroup(nn.Module):
    def __init__(self, group: nn.Module):
        super().__init__()
        self.linear, self.drop = _copied_linear(group.linear), group.drop_path.drop_prob
        self.activations = nn.ModuleList(_copied_prelu(block.activation) for block in group.blocks)
        self.linears = nn.ModuleList(_copied_linear(block.linear) for block in group.blocks)
        self.squeezes = nn.ModuleList(_copied_linear(block.attention.squeeze) for block in group.blocks)
        self.gates = nn.ModuleList(_copied_prelu(block.attention.activation) for block in group.blocks)
        self.expands = nn.ModuleList(_copied_linear(block.attention.expand) for block in group.blocks)

    def forward(self, x: Tensor) -> Tensor:
        body = self.body(x)
        if self.training and self.drop:
            kept = torch.rand(len(body), 1, device=body.device) >= self.drop
            body = body * kept / (1 - self.drop)
        return x + body

    def body(self, x: Tensor) -> Tensor:
        parts = (self.activations, self.linears, self.squeezes, self.gates, self.expands)
        for activation, linear, squeeze, gate, expand in zip(*parts, strict=True):
            u = linear(activation(x))
            x = x + u * torch.sigmoid(expand(gate(squeeze(u))))
        return self.linear(x)


def _copied_linear(linear: nn.Linear, rows: slice = slice(None)) -> nn.Linear:
    weight = linear.weight.detach()[rows]
    copy = nn.Linear(weight.shape[1], weight.shape[0], bias=linear.bias is not None)
    copy.weight.data = weight.clone()
    if linear.bias is not None:
        copy.bias.data = linear.bias.detach()[rows].clone()
    return copy


def _copied_norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    copy = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
    copy.load_state_dict(norm.state_dict())
    return copy


def _copied_prelu(activation: nn.Module) -> nn.Module:
    if not isinstance(activation, nn.PReLU):
        return nn.ReLU()
    copy = nn.PReLU()
    copy.load_state_dict(activation.state_dict())
    return copy
