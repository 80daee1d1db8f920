"""The configuration of the network: frozen, validated, saved as `config.json` beside the weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from vtamiq.utils.configs import build, conform, require

MOST = {
    "num_blocks": 200, "num_groups": 100, "blocks_per_group": 100, "num_registers": 1024, "num_scales": 64,
    "image_size": 16_384, "patch_size": 1024, "width": 16_384, "num_heads": 1024, "mlp_ratio": 64, "reduction": 16_384,
}  # fmt: skip


@dataclass(frozen=True)
class VTAMIQConfig:
    """Everything that defines the network.

    The defaults are the authors' later configuration (May 2024); `paper_2021()` is the one close to the paper.

    Attributes:
        backbone: name of a timm Vision Transformer with a class token and a learned position table.
        num_blocks: transformer blocks kept, counted from the input.
        image_size: G·P, the image side in pixels that the position grid stands for; None takes the backbone's.
        patch_size, width, num_heads, mlp_ratio: override the backbone's (only without its pre-trained weights).
        num_registers: learned tokens beside the class token, without position.
        num_scales: 1, or the number of image scales that get a learned embedding each.
        layer_scale: learned per-feature gains on both branches of every block.
        adapters: residual bottlenecks (D → D/4 → D) after attention and MLP of every block.
        class_token_position: the class token owns row 0 of the position table, patches start at row 1. Off (2021): the
            class token has no position and patches start at row 0.
        difference_scale: learned per-feature gain on the difference of class tokens.
        difference_gate: multiply the difference by features of the reference ("difference embedding" of 2021).
        num_groups, blocks_per_group, reduction: DiffNet; `num_groups=0` leaves DiffNet out.
        channel_attention_prelu: PReLU instead of ReLU in the channel-attention bottleneck (2021).
        zero_anchor: subtract the score of a zero difference, so that a perfect copy scores exactly 0. Our addition; in
            the published code its score is an arbitrary constant.
        embedding_dropout, mlp_dropout, encoder_drop_path, decoder_drop_path, head_dropout: act in training only.
        mean, std: input normalisation per colour channel, (value/255 − mean)/std; `VTAMIQ.from_vit` replaces the defaults
            by those of timm's weights.
        preference_weight: w of `preference`; learnt by training on preferences, of no effect on scores.
        uv_anchor: which point of a patch `uv` refers to: its "centre", or its top-left "corner" (2021).
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
        for name, most in MOST.items():  # before anything of absurd size is built
            require(self, name, (getattr(self, name) or 0) <= most, f"must be at most {most}")
        layers = 12 * self.num_blocks + 2 * self.num_groups * self.blocks_per_group
        require(
            self,
            "width",
            (self.width or 0) ** 2 * layers <= 4e9,
            "and numbers of blocks ask for over 4 billion weights",
        )
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
