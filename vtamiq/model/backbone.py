"""timm Vision Transformers that the patch encoder takes over: made anew, downloaded, or read from a JAX `.npz`."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from vtamiq.model.checkpoints import CheckpointError, first_bytes, read_safetensors
from vtamiq.model.config import VTAMIQConfig
from vtamiq.utils.configs import require

_JAX_POSITIONS = "Transformer/posembed_input/pos_embedding"


def create_vit(config: VTAMIQConfig, **options: object) -> VisionTransformer:
    """The ViT that a configuration names; ValueError if timm cannot build it. `options` are of `timm.create_model`."""
    names = {"image_size": "img_size", "patch_size": "patch_size", "width": "embed_dim"}
    names |= {"num_heads": "num_heads", "mlp_ratio": "mlp_ratio"}
    settings = {theirs: getattr(config, ours) for ours, theirs in names.items() if getattr(config, ours) is not None}
    if not timm.is_model(config.backbone):
        near = difflib.get_close_matches(config.backbone, timm.list_models("*vit*"), n=3)
        raise ValueError(f"timm knows no model `{config.backbone}`; near: {', '.join(near) or 'none'}")
    try:
        return timm.create_model(
            config.backbone, num_classes=0, drop_path_rate=config.encoder_drop_path, **settings, **options
        )
    except (TypeError, AssertionError) as error:  # another family does not know these settings, or they do not fit
        raise ValueError(f"backbone `{config.backbone}` cannot be built with {settings}: {error}") from error


def check_backbone(vit: nn.Module, config: VTAMIQConfig) -> None:
    """Raise ValueError unless the patch encoder can take over this model."""
    problem = _problem(vit)
    if problem:
        needs = "VTAMIQ needs a timm VisionTransformer with a class token and a learned position table"
        raise ValueError(f"backbone `{config.backbone}` {problem}; {needs}, for example `vit_base_patch16_384`")
    if config.num_blocks > len(vit.blocks):
        raise ValueError(f"num_blocks={config.num_blocks}, but `{config.backbone}` has {len(vit.blocks)} blocks")


def _problem(vit: nn.Module) -> str | None:
    if not isinstance(vit, VisionTransformer):
        return f"is a {type(vit).__name__}"
    if vit.cls_token is None:
        return "has no class token"
    if vit.pos_embed is None:
        return "has no learned position table"
    if not isinstance(vit.patch_embed.proj, nn.Conv2d) or vit.patch_embed.proj.in_channels != 3:
        return "does not project patches of pixels"
    if not all(hasattr(block, part) for block in vit.blocks for part in ("ls1", "ls2", "mlp")):
        return "has blocks of another kind"
    if vit.num_prefix_tokens != 1 + (0 if vit.reg_token is None else vit.reg_token.shape[1]):
        return "has a distillation token"
    if vit.patch_embed.grid_size[0] != vit.patch_embed.grid_size[1]:
        return f"has a {vit.patch_embed.grid_size} position grid, which is not square"
    return None


def load_vit(
    config: VTAMIQConfig, source: str | Path | Mapping[str, Tensor] | None = None
) -> tuple[VisionTransformer, VTAMIQConfig]:
    """A pre-trained ViT, downloaded by timm, from a file or a state dict, and the configuration with what it brings.

    It brings its image size and, where downloaded, its colour normalisation, unless the configuration has its own.
    Errors are those of `VTAMIQ.from_vit`.
    """
    if isinstance(source, Mapping):
        vit = _from_state(config, source, "the given state dict")
    elif source is not None:
        vit = _read_file(config, Path(source))
    else:
        for name in ("width", "num_heads", "mlp_ratio", "patch_size"):
            require(config, name, getattr(config, name) is None, "cannot be changed in a pre-trained ViT")
        try:
            vit = create_vit(replace(config, image_size=None), pretrained=True)
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise CheckpointError(
                f"timm's weights of `{config.backbone}` are not in the local cache and cannot be downloaded ({reason}); "
                "give a file or state dict as `pretrained`, or pretrained=False (in YAML, `start:` a file, or empty)"
            ) from error
        if (config.mean, config.std) == (VTAMIQConfig.mean, VTAMIQConfig.std):
            known = vit.pretrained_cfg
            config = replace(config, mean=tuple(known["mean"]), std=tuple(known["std"]))
    return vit, replace(config, image_size=config.image_size or vit.patch_embed.img_size[0])


def _from_state(config: VTAMIQConfig, state: Mapping[str, Tensor], where: str) -> VisionTransformer:
    """The ViT of a state dict with timm's names."""
    vit = create_vit(replace(config, image_size=None))
    try:
        missing, _ = vit.load_state_dict(checkpoint_filter_fn(dict(state), vit), strict=False)
    except Exception as error:  # timm and torch each have their own way of refusing what does not fit
        raise CheckpointError(f"{where}: does not fit `{config.backbone}` ({error})") from error
    if missing:
        raise CheckpointError(f"{where}: has no `{missing[0]}`, so it is no state dict of timm's `{config.backbone}`")
    return vit


def _read_file(config: VTAMIQConfig, path: Path) -> VisionTransformer:
    """The ViT of a safetensors file of timm's, or of a JAX `.npz`, by timm's own loader at the grid that the file has."""
    first_bytes(path)
    if path.suffix == ".safetensors":
        return _from_state(config, read_safetensors(path), str(path))
    if path.suffix != ".npz":
        raise CheckpointError(
            f"{path}: a ViT is read from .npz (JAX) or .safetensors (timm); give others as a state dict"
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            name = next((name for name in arrays.files if name.endswith(_JAX_POSITIONS)), None)
            if name is None:
                raise ValueError(f"no `{_JAX_POSITIONS}`, which a ViT in the original JAX layout has")
            grid = math.isqrt(arrays[name].shape[1] - 1)
            patch_size = arrays[name.removesuffix(_JAX_POSITIONS) + "embedding/kernel"].shape[0]
        vit = create_vit(replace(config, image_size=grid * patch_size), depth=config.num_blocks)
        vit.load_pretrained(str(path))
    except Exception as error:  # zipfile, numpy and timm each have their own way of refusing a bad file
        raise CheckpointError(f"{path}: does not fit `{config.backbone}` or is damaged ({error})") from error
    return vit


@torch.no_grad()
def take_over(encoder: nn.Module, vit: VisionTransformer) -> None:
    """Copy the embedding weights of a ViT into a `PatchEncoder`; the position table is resized when the grids differ."""
    encoder.patch_projection.weight.copy_(vit.patch_embed.proj.weight.flatten(1))  # (D, 3·P·P)
    if encoder.patch_projection.bias is not None:
        encoder.patch_projection.bias.copy_(vit.patch_embed.proj.bias)
    if vit.cls_token.std() > 1e-4:  # timm leaves an untrained class token at 1e-6; keep our N(0, 0.02²) then
        encoder.class_token.copy_(vit.cls_token)
    if encoder.registers is not None and vit.reg_token is not None:
        count = min(encoder.registers.shape[1], vit.reg_token.shape[1])
        encoder.registers[:, :count] = vit.reg_token[:, :count]
    table = vit.pos_embed[0]  # (rows, D)
    prefix = len(table) - vit.patch_embed.num_patches  # 1 + registers, 1, or 0 rows ahead of the grid
    ahead = table[:1] if prefix else torch.zeros_like(table[:1])
    encoder.position_table.copy_(resize_position_table(torch.cat([ahead, table[prefix:]]), encoder.grid))


def resize_position_table(table: Tensor, grid: int) -> Tensor:
    """Resize a (1 + g·g, D) position table to (1 + grid·grid, D), corners fixed, bilinear, as the original code does.

    Row 0 belongs to the class token and is kept; the others are a g × g image, row by row.
    """
    old = math.isqrt(len(table) - 1)
    if old == grid:
        return table
    image = table[1:].T.reshape(1, -1, old, old).float()  # (1, D, g, g)
    image = F.interpolate(image, size=(grid, grid), mode="bilinear", align_corners=True)  # (1, D, grid, grid)
    return torch.cat([table[:1], image.flatten(2)[0].T.to(table.dtype)])  # (1 + grid·grid, D)
