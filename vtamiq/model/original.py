"""Checkpoints of the original authors' repository ch-andrei/VTAMIQ (October 2021 and May 2024), translated."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtamiq.model.checkpoints import CheckpointError, first_bytes, read_safetensors
from vtamiq.model.config import VTAMIQConfig

# Original name (regular expression) -> our name. Linears that the original keeps as kernel-1 convolutions are reshaped.
_RENAMES = [
    (r"transformer\.embeddings\.cls_token", "encoder.class_token"),
    (r"transformer\.embeddings\.extra_tokens", "encoder.registers"),
    (r"transformer\.embeddings\.patch_embeddings\.(weight|bias)", r"encoder.patch_projection.\1"),
    (r"transformer\.embeddings\.positional_embeddings\.positional_embeddings", "encoder.position_table"),
    (r"transformer\.embeddings\.scale_embeddings\.scale_embeddings", "encoder.scale_table"),
    (r"transformer\.encoder\.encoder_norm\.(weight|bias)", r"encoder.norm.\1"),
    (r"transformer\.encoder\.layers?\.(\d+)\.attention_norm\.(\w+)", r"encoder.blocks.\1.norm1.\2"),
    (r"transformer\.encoder\.layers?\.(\d+)\.ffn_norm\.(\w+)", r"encoder.blocks.\1.norm2.\2"),
    (r"transformer\.encoder\.layers?\.(\d+)\.attn\.out\.(\w+)", r"encoder.blocks.\1.attn.proj.\2"),
    (r"transformer\.encoder\.layers?\.(\d+)\.attn\.(query|key|value)\.(\w+)", r"encoder.blocks.\1.attn.\2.\3"),
    (r"transformer\.encoder\.layers?\.(\d+)\.ffn\.(fc[12])\.(\w+)", r"encoder.blocks.\1.mlp.\2.\3"),
    (r"transformer\.encoder\.layers?\.(\d+)\.(ls[12])\.gamma", r"encoder.blocks.\1.\2.gamma"),
    (r"diff_scale\.gamma", "difference_scale"),
    (r"(?:quality_decoder|diff_net)\.(\d+)\.body\.(\d+)\.body\.(.+)\.(\w+)", r"diffnet.groups.\1.blocks.\2.<\3>.\4"),
    (r"(?:quality_decoder|diff_net)\.(\d+)\.body\.(\d+)\.(weight|bias)", r"diffnet.groups.\1.linear.\3"),
    (r"(?:quality_decoder|diff_net)\.(\d+)\.(weight|bias)", r"diffnet.linear.\2"),
    (r"diff_embedding\.body\.(\d+)\.body\.(.+)\.(\w+)", r"difference_gate.blocks.\1.<\2>.\3"),
    (r"diff_embedding\.body\.(\d+)\.(weight|bias)", r"difference_gate.linear.\2"),
    (r"q_predictor\.1\.(weight|bias)", r"head.hidden.\1"),
    (r"q_predictor\.2\.weight", "head.activation.weight"),
    (r"q_predictor\.4\.(weight|bias)", r"head.output.\1"),
]
# <Part> of a channel-attention block. The 2021 state has no pooling layer in front of the bottleneck, so numbers differ.
_BLOCK_PARTS = {
    2021: {
        "4.conv_du.0": "attention.squeeze",
        "4.conv_du.1": "attention.activation",
        "4.conv_du.2": "attention.expand",
    },
    2024: {"4.conv_du.1": "attention.squeeze", "4.conv_du.4": "attention.expand"},
}
_ANY_BLOCK = {"1": "activation", "2": "linear"}

_WRAPPERS = r"^(module\.|_orig_mod\.|model\.)+"  # what data-parallel training and compilation put before all names

# The original's checkpoints record their SROCC as a numpy scalar: data, not code, but torch wants to be told.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS = [(_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
_NUMPY_SCALARS += [np.dtype, *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8"))]
_ARRAY = np.zeros(0).__reduce__()[0]  # and so are arrays
_NUMPY_SCALARS += [np.ndarray, *((_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core"))]
_HOLDERS = ("model_state_dict", "state_dict", "model")  # entries that hold the network in a training's checkpoint


def read_original(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the network's state dict from a checkpoint file or mapping, of tensors or arrays, without unpickling objects.

    Raises:
        CheckpointError: file missing or damaged, holds more than tensors, or holds no VTAMIQ weights.
    """
    where = "the given state dict"
    if not isinstance(source, Mapping):
        where, source = str(source), _read_file(Path(source))
    try:
        state = next((source[name] for name in _HOLDERS if isinstance(source.get(name), Mapping)), source)
        sharpness = source.get("pref_module_state_dict") or {}  # w of preferences, kept beside the network
        state = {**state, **{f"pref_module.{name}": value for name, value in sharpness.items()}}
        state = {re.sub(_WRAPPERS, "", name): torch.as_tensor(value).detach() for name, value in state.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: is no state dict of named tensors ({_first_line(error)})") from error
    if "transformer.embeddings.cls_token" not in state:
        held = f"it holds {', '.join(f'`{name}`' for name in list(state)[:3]) or 'nothing'}"
        ours = "; models of this package are folders, for from_pretrained" if "encoder.class_token" in state else ""
        missing = "has no `transformer.embeddings.cls_token`, so it is no VTAMIQ checkpoint of the authors"
        raise CheckpointError(f"{where}: {missing} ({held}{ours})")
    return state


def _read_file(path: Path) -> Any:
    head = first_bytes(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if head.lstrip().startswith(b"<"):
        raise CheckpointError(f"{path}: is a web page, not a checkpoint; download the file itself")
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can end in almost anything
        why = "it is damaged, or holds Python objects, which are not loaded because they may run code"
        raise CheckpointError(f"{path}: cannot be read as a checkpoint of tensors: {why}") from error


def convert_original(state: Mapping[str, Tensor]) -> tuple[VTAMIQConfig, dict[str, Any], dict[str, Tensor]]:
    """Translate an original state dict.

    Returns:
        The published configuration of its year, the fields that its shapes tell (not the attention heads) or that it
        keeps beside the network (`preference_weight`), and our state dict.

    Raises:
        CheckpointError: a name that belongs to no known part of either published state, or a part that is missing.
    """
    year = 2021 if any(name.startswith("transformer.encoder.layer.") for name in state) else 2024
    converted = {_rename(name, year): value for name, value in state.items() if not name.startswith("pref_module.")}
    try:
        _reshape(converted)
        read = _config_fields(converted)
    except KeyError as error:
        raise CheckpointError(f"the checkpoint has no weights for {error.args[0]}") from error
    for name, value in state.items():
        if name.startswith("pref_module.") and value.numel() == 1:
            read["preference_weight"] = float(value)
    return VTAMIQConfig.paper_2021() if year == 2021 else VTAMIQConfig(), read, converted


def _rename(name: str, year: int) -> str:
    parts = _ANY_BLOCK | _BLOCK_PARTS[year]
    for pattern, replacement in _RENAMES:
        if match := re.fullmatch(pattern, name):
            renamed = match.expand(replacement)
            part = re.search(r"<(.+)>", renamed)
            if part is None:
                return renamed
            if part[1] in parts:
                return renamed.replace(part[0], parts[part[1]])
    raise CheckpointError(f"`{name}` belongs to no known part of the original VTAMIQ (states of 2021 and 2024)")


def _reshape(state: dict[str, Tensor]) -> None:
    for name in [name for name in state if ".attn.query." in name]:
        parts = [state.pop(name.replace("query", role)) for role in ("query", "key", "value")]  # (D, D) each
        state[name.replace("query", "qkv")] = torch.cat(parts)  # (3·D, D)
    for name, value in state.items():
        if name.endswith("weight") and value.ndim > 2:  # kernel-1 convolution, or the patch convolution
            state[name] = value.flatten(1)
    state["encoder.position_table"] = state["encoder.position_table"].squeeze(0)
    if "encoder.scale_table" in state:  # row 0 is never looked up
        state["encoder.scale_table"] = state["encoder.scale_table"].squeeze(0)[1:]


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({match.group(1) for name in state if (match := re.match(pattern, name))})


def _config_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    width, patch_values = state["encoder.patch_projection.weight"].shape
    patch_size = math.isqrt(patch_values // 3)
    squeeze = state.get("diffnet.groups.0.blocks.0.attention.squeeze.weight")
    return {
        "width": width,
        "patch_size": patch_size,
        "image_size": math.isqrt(len(state["encoder.position_table"]) - 1) * patch_size,
        "num_blocks": _count(state, r"encoder\.blocks\.(\d+)\."),
        "mlp_ratio": _ratio(state["encoder.blocks.0.mlp.fc1.weight"].shape[0], width),
        "num_registers": state["encoder.registers"].shape[1] if "encoder.registers" in state else 0,
        "num_scales": len(state["encoder.scale_table"]) if "encoder.scale_table" in state else 1,
        "layer_scale": "encoder.blocks.0.ls1.gamma" in state,
        "difference_scale": "difference_scale" in state,
        "difference_gate": "difference_gate.linear.weight" in state,
        "num_groups": _count(state, r"diffnet\.groups\.(\d+)\."),
        "blocks_per_group": _count(state, r"diffnet\.groups\.0\.blocks\.(\d+)\.") or 1,
        "reduction": width // squeeze.shape[0] if squeeze is not None else 16,
    }


def _ratio(hidden: int, width: int) -> float:
    """hidden / width, or the next number above it where timm, which cuts off decimals, would be one too low."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _first_line(error: Exception) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().split("\n")[0][:300]
