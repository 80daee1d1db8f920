"""What a network costs: parameters and floating-point operations of its parts, counted on the actual model."""

import copy

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from vtamiq.model.network import VTAMIQ

PARTS = {
    "encoder.patch_projection": "patch projection",
    "encoder.tables": "position, scale and class token tables",
    "encoder.blocks": "transformer blocks",
    "encoder.norm": "final norm",
    "difference": "difference scale and gate",
    "diffnet": "DiffNet",
    "head": "quality head",
}


def cost_table(model: VTAMIQ, num_patches: int = 256) -> pd.DataFrame:
    """Parameters and GFLOPs (multiply and add counted separately) of scoring one pair.

    Returns:
        One row per part and a last one for the whole: part, parameters, gflops. Only matrix products are counted; norms,
        activations and look-ups are below one per cent.
    """
    model = copy.deepcopy(model).eval().to("meta")  # shapes suffice for counting: nothing is computed
    P, N = model.encoder.patch_size, num_patches
    patches, uv = torch.empty(1, 2, N, 3, P, P, device="meta"), torch.empty(1, N, 2, device="meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(patches, uv, torch.zeros(1, N, dtype=torch.long, device="meta"))
    flops = {name.partition(".")[2]: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    flops["encoder.blocks"] = flops["encoder"] - flops["encoder.patch_projection"]  # nothing else multiplies matrices

    sizes = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        sizes[_part_of(name)] += parameter.numel()
    flops["difference"] = flops.get("difference_gate", 0)
    rows = [(label, sizes[name], flops.get(name, 0) / 1e9) for name, label in PARTS.items()]
    total = ("total", sum(sizes.values()), counter.get_total_flops() / 1e9)
    return pd.DataFrame([*rows, total], columns=["part", "parameters", "gflops"])


def _part_of(parameter: str) -> str:
    if parameter.startswith("difference_"):
        return "difference"
    return next((part for part in PARTS if parameter.startswith(part + ".")), "encoder.tables")
