"""A better start for small networks that are trained without an ImageNet ViT. Our addition, not in the paper.

Block weights have Xavier size instead of the fixed 0.02, and the patch projection begins as spatial frequencies: natural
images are smooth, so under random features noise and loss of detail drown in what is large and low.
"""

import torch
from scipy.fft import idctn
from torch import nn

from vtamiq.model.network import VTAMIQ

LUMA_SHARE = 0.75  # of the features; the two opponent colours share the rest
_OPPONENT = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]], dtype=torch.float64)


@torch.no_grad()
def start_from_scratch(model: VTAMIQ, seed: int = 0) -> VTAMIQ:
    """Set initial values in place: a cosine patch projection, Xavier-uniform blocks. It destroys pre-trained weights.

    Returns the model. Raises ValueError if the model is wider than a patch has values.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.encoder.blocks.named_modules():
        if isinstance(module, nn.Linear) and (".attn." in name or ".mlp." in name):  # adapters start as the identity
            for weight in module.weight.chunk(3 if name.endswith("qkv") else 1):  # query, key and value are fused
                nn.init.xavier_uniform_(weight, generator=generator)
    projection = model.encoder.patch_projection
    projection.weight.copy_(cosine_filters(projection.out_features, model.encoder.patch_size))
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
    return model


def cosine_filters(count: int, patch_size: int) -> torch.Tensor:
    """Orthogonal filters (count, 3·P·P), float32: 2-D cosines in luma and two opponent colours.

    A filter's gain is (1 + r)/8, r its radial frequency in half periods per patch, twice that for colour: about the
    inverse of the amplitude spectrum of natural images (Field, J. Opt. Soc. Am. A 4(12), 1987). Half of each colour's
    filters are its lowest frequencies, the others evenly spaced over the rest.
    """
    if count > 3 * patch_size**2:
        raise ValueError(f"a patch of 3 × {patch_size} × {patch_size} values has no {count} orthogonal filters")
    luma = max(round(count * LUMA_SHARE), count - 2 * patch_size**2)
    luma = min(luma, patch_size**2)
    red = (count - luma + 1) // 2
    cosines, radius = _cosines(patch_size)
    filters = []
    for colour, share, boost in zip(_OPPONENT, (luma, red, count - luma - red), (1, 2, 2), strict=True):
        chosen = _low_and_spread(share, patch_size**2)
        gain = boost * (1 + radius[chosen]) / 8
        planes = (colour / colour.norm())[None, :, None, None] * cosines[chosen][:, None]  # (share, 3, P, P)
        filters.append((planes * gain[:, None, None, None]).flatten(1))
    return torch.cat(filters).float()


def _cosines(patch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal 2-D cosines (P·P, P, P), lowest radial frequency first, and their radial frequencies."""
    units = torch.eye(patch_size**2, dtype=torch.float64).reshape(-1, patch_size, patch_size)
    basis = torch.from_numpy(idctn(units.numpy(), axes=(1, 2), norm="ortho"))
    vertical, horizontal = torch.meshgrid(torch.arange(patch_size), torch.arange(patch_size), indexing="ij")
    radius = (vertical**2 + horizontal**2).flatten().double().sqrt()
    order = torch.argsort(radius, stable=True)
    return basis[order], radius[order]


def _low_and_spread(share: int, total: int) -> torch.Tensor:
    """`share` different indices below `total`: the first half in a row, the others evenly spaced."""
    low = share // 2
    rest = torch.linspace(low, total - 1, share - low).round().long()
    return torch.cat([torch.arange(low), rest])
