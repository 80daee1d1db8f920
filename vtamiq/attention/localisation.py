"""Does a map find the distorted region? Maps of `vtamiq.attention.maps` against the pixels that are known to differ.

Two measures that ignore the scale of a map: the area under the ROC curve (0.5 by guessing) and the pointing game (is the
highest pixel distorted? Zhang et al. 2018, arXiv:1608.00507, here without their tolerance of 15 pixels).
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from vtamiq.attention.maps import METHODS, attention_maps
from vtamiq.caps import CAPS, caps_for, difference_map
from vtamiq.images.reading import ImageSource, read_images
from vtamiq.model.network import VTAMIQ

BASELINES = ("CAPS map", "pixel difference", "patch difference")
_PER_IMAGE = ("attention", "rollout", "gradient")


def distorted_region(reference: ImageSource, distorted: ImageSource) -> np.ndarray:
    """Pixels that differ from the reference in any channel, (H, W) bool."""
    first, second = read_images([reference, distorted])
    return (first != second).any(axis=-1)


def localise(values: np.ndarray, region: np.ndarray) -> dict[str, float]:
    """How well a map (H, W), NaN where nothing is known, points to a region (H, W) bool; ValueError if they do not fit.

    Returns `auc`, the area under the ROC curve; `pointing`, 1 if the highest pixel lies in the region (or the share of
    those that tie); `area`, share of pixels in the region, what guessing reaches; `seen`, share of pixels with a value.
    """
    values, region = np.asarray(values, dtype=float), np.asarray(region)
    if region.dtype != bool or values.ndim != 2 or values.shape != region.shape:
        raise ValueError(
            f"a map (H, W) and a bool region alike are needed, got {values.shape} and {region.dtype} {region.shape}"
        )
    if np.isinf(values).any():
        raise ValueError("the map has infinite values")
    known = np.isfinite(values)
    inside, values = region[known], values[known]
    if inside.all() or not inside.any():
        raise ValueError(
            f"{inside.sum()} of {inside.size} pixels with a value are in the region: nothing to tell apart"
        )
    highest = values == values.max()
    return {
        "auc": float(roc_auc_score(inside, values)),
        "pointing": float(inside[highest].mean()),
        "area": float(inside.mean()),
        "seen": float(known.mean()),
    }


def localised_maps(
    model: VTAMIQ,
    reference: ImageSource,
    distorted: ImageSource,
    *,
    draws: Mapping[str, int] | None = None,
    caps: CAPS | None = None,
    seed: int = 0,
) -> dict[str, tuple[np.ndarray, float]]:
    """The maps of all methods and baselines for one pair: name → map (H, W) and its stability.

    Methods with a map for each image have two entries, such as "rollout (reference)". Baselines: the CAPS map and the
    pixels' difference (without draws, stability NaN), the difference within patches. `draws`: method → number, else 8.
    """
    draws = draws or {}
    if unknown := set(draws) - set(METHODS):
        raise ValueError(f"draws names {', '.join(sorted(unknown))}, which is none of {', '.join(METHODS)}")
    pair, caps = read_images([reference, distorted]), caps_for(model, caps)
    maps = {}
    for method in METHODS:
        options = {"draws": draws.get(method, 8), "caps": caps, "seed": seed, "return_stability": True}
        values, stability = attention_maps(model, *pair, method=method, **options)
        names = [f"{method} (reference)", f"{method} (distorted)"] if method in _PER_IMAGE else [None, method]
        maps |= {n: (v, float(s)) for n, v, s in zip(names, values, stability, strict=True) if n is not None}
    maps["patch difference"] = maps.pop("difference")
    maps["pixel difference"] = difference_map(*pair, "absolute").astype(float), np.nan
    maps["CAPS map"] = caps.probability(pair), np.nan
    return maps


def compare_localisation(
    maps: Mapping[str, Mapping[str, tuple[np.ndarray, float]]], regions: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Measures of `localise`: a row per `pair` and `method`, with `stability`, on pixels that all maps of the pair have.

    Args:
        maps: pair → method → map and its stability (`localised_maps`); `seen` is each map's own.
        regions: pair → distorted region.
    """
    rows = []
    for pair, of_pair in maps.items():
        common = np.all([np.isfinite(values) for values, _ in of_pair.values()], axis=0)
        for method, (values, stability) in of_pair.items():
            measured = localise(np.where(common, values, np.nan), regions[pair])
            seen = float(np.isfinite(values).mean())
            rows.append({"pair": pair, "method": method} | measured | {"seen": seen, "stability": stability})
    return pd.DataFrame(rows)
