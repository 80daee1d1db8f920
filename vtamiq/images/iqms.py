"""The eleven conventional image quality metrics (IQMs), and weak labels made from their consensus.

Every metric is piq's, called with its defaults on one pair at a time (SR-SIM and DSS depend on what else is in a
batch). DeepFL-IQA (Lin, Hosu and Saupe, arXiv:2001.08113) labels KADIS-700k with eleven metrics brought to one scale by
histogram equalisation. Three of those (SFF, SCQI and ADD-GSIM) are not in piq; HaarPSI, DSS and VIFp stand in for them.

`iqm_scores` returns every metric as published, two of them lower-is-better; from `align` on everything is a distortion:
0 is a perfect copy, larger is worse. `QuantileTables` bring them to one scale, `weak_labels` average them.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import pandas as pd
import piq
import torch
from scipy.stats import rankdata
from torch import Tensor

from vtamiq.images.reading import check_same_size, check_uint8_rgb
from vtamiq.utils.configs import did_you_mean


@dataclass(frozen=True)
class IQM:
    """One full-reference metric and what a caller has to know about it.

    `function(distorted, reference)` takes two (1, 3, H, W) float32 tensors in [0, 1] and returns a scalar tensor.
    """

    name: str
    label: str
    function: Callable[[Tensor, Tensor], Tensor]
    higher_better: bool = True
    perfect: float = 1.0  # the value of a perfect copy
    min_side: int = 1  # smallest image side that the metric can work on; smaller images are mirrored up to it
    pools_by_size: bool = False  # averages pixels first, over a window that depends on the image size: `scale_regime`
    fallback: str | None = None  # the metric whose value is taken where this one is undefined

    def distortion(self, score: float | np.ndarray | pd.Series) -> float | np.ndarray | pd.Series:
        """Turn native values into a distortion: 0 for a perfect copy, larger is worse."""
        return self.perfect - score if self.higher_better else score - self.perfect


def _vifp(distorted: Tensor, reference: Tensor) -> Tensor:
    # A gain in contrast gives values above 1; a perfect copy is to remain the best that there is.
    return piq.vif_p(distorted, reference).clamp(max=1.0)


# piq's argument order is (distorted, reference); it matters for IW-SSIM, MDSI and VIFp.
IQMS: dict[str, IQM] = {
    iqm.name: iqm
    for iqm in (
        IQM("ssim", "SSIM", piq.ssim, min_side=11, pools_by_size=True),
        IQM("ms_ssim", "MS-SSIM", piq.multi_scale_ssim, min_side=161),
        IQM("iw_ssim", "IW-SSIM", piq.information_weighted_ssim, min_side=161, fallback="ms_ssim"),
        IQM("fsimc", "FSIMc", piq.fsim, min_side=2, pools_by_size=True),
        IQM("sr_sim", "SR-SIM", piq.srsim, min_side=40, pools_by_size=True),
        IQM("vsi", "VSI", piq.vsi, pools_by_size=True, fallback="ssim"),
        IQM("mdsi", "MDSI", piq.mdsi, higher_better=False, perfect=0.0, pools_by_size=True),
        IQM("gmsd", "GMSD", piq.gmsd, higher_better=False, perfect=0.0),
        IQM("haarpsi", "HaarPSI", piq.haarpsi, min_side=16),
        IQM("dss", "DSS", piq.dss, min_side=32),
        IQM("vifp", "VIFp", _vifp, min_side=41, fallback="ssim"),
    )
}

# A fifth of the time of all eleven or less, for nearly the same consensus: SROCC 0.995 with that of all eleven over the
# 25 distortions of twelve photographs (on which the subset was also chosen).
CHEAP_IQMS = ("ssim", "gmsd", "sr_sim", "haarpsi")

# SROCC with human opinion on the whole of KADID-10k, from the benchmark table in piq's documentation: as computed with
# piq, but for SR-SIM, where the table has a value from the literature only. It has none for IW-SSIM and DSS.
_KADID_SROCC = {
    "ssim": 0.6329, "ms_ssim": 0.8020, "fsimc": 0.8537, "sr_sim": 0.839, "vsi": 0.8780, "mdsi": 0.8853, "gmsd": 0.8474,
    "haarpsi": 0.8849, "vifp": 0.6500,
}  # fmt: skip
KNOTS = 501  # of a quantile table: a rank moves by no more than about 1 / KNOTS, if few values tie


def iqm_scores(
    reference: np.ndarray,
    distorted: np.ndarray,
    names: Iterable[str] | None = None,
    *,
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """Native values of conventional metrics (keys of `IQMS`, by default all) for one uint8 (H, W, 3) pair; always finite.

    Identical images get the perfect value. Images too small for a metric are mirrored. Where a reference without structure
    leaves IW-SSIM undefined MS-SSIM takes its place, and SSIM that of VIFp and VSI. ValueError for images of two sizes, an
    unknown name, or a metric that gives no finite value.
    """
    _check_pair(reference, distorted)
    iqms = [IQMS[name] for name in _known_names(names)]
    if np.array_equal(reference, distorted):
        return {iqm.name: iqm.perfect for iqm in iqms}
    flat = bool((reference == reference[0, 0]).all())
    # A GPU would round the factors of convolutions to 10 bits
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return {iqm.name: _score(iqm, reference, distorted, flat, device) for iqm in iqms}


def psnr(reference: np.ndarray, distorted: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of a uint8 (H, W, 3) pair, at most 100; higher is better. Not in `IQMS`."""
    _check_pair(reference, distorted)
    error = np.square(reference.astype(np.float64) - distorted).mean()
    return min(100.0, 10 * math.log10(255**2 / error)) if error else 100.0


def scale_regime(shape: tuple[int, ...]) -> int:
    """Window over which SSIM, FSIMc, SR-SIM, VSI and MDSI average an image of this (H, W, ...) before they start.

    The metrics jump where it changes, first at 384 pixels: scores of different regimes do not belong in one table.
    """
    return max(1, round(min(shape[:2]) / 256))


def _score(iqm: IQM, reference: np.ndarray, distorted: np.ndarray, flat: bool, device: str | torch.device) -> float:
    value = math.nan
    if not (flat and iqm.fallback):
        # IW-SSIM raises (or gives NaN) when the neighbourhoods of the reference span too few dimensions
        with contextlib.suppress(torch.linalg.LinAlgError):
            value = float(iqm.function(_tensor(distorted, iqm, device), _tensor(reference, iqm, device)))
    if math.isfinite(value):
        return value
    if iqm.fallback is None:
        raise ValueError(f"{iqm.label} is {value} for this pair of shape {reference.shape}; leave {iqm.name!r} out")
    return min(iqm.perfect, _score(IQMS[iqm.fallback], reference, distorted, flat, device))


def _tensor(image: np.ndarray, iqm: IQM, device: str | torch.device) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [0, 1], mirrored up to the metric's smallest side."""
    missing = [max(0, iqm.min_side - side) for side in image.shape[:2]]
    if any(missing):
        image = np.pad(image, [(m // 2, m - m // 2) for m in missing] + [(0, 0)], mode="symmetric")
    return torch.from_numpy(image.transpose(2, 0, 1).copy())[None].to(device).float() / 255


def _check_pair(reference: np.ndarray, distorted: np.ndarray) -> None:
    check_uint8_rgb(reference, "the reference image")
    check_uint8_rgb(distorted, "the distorted image")
    check_same_size("the reference image", reference, "the distorted image", distorted)


def _known_names(names: Iterable[str] | None) -> tuple[str, ...]:
    names = tuple(IQMS) if names is None else (names,) if isinstance(names, str) else tuple(names)
    if not names:
        raise ValueError(f"no metric named; choose from {', '.join(IQMS)}")
    for name in names:
        if name not in IQMS:
            near = did_you_mean(str(name).lower().replace("-", "_"), IQMS) or f"; choose from {', '.join(IQMS)}"
            raise ValueError(f"unknown metric {name!r}{near}")
    if len(set(names)) < len(names):
        raise ValueError(f"a metric is named twice: {', '.join(names)}")
    return names


def align(scores: pd.DataFrame, names: Iterable[str] | None = None) -> pd.DataFrame:
    """Native values (a row per pair, a column per metric) -> distortions: 0 for a perfect copy, larger is worse.

    ValueError for a missing column or a value that is not finite. `names` default to all metrics of the table.
    """
    if names is None:
        names = [name for name in scores.columns if name in IQMS]
    names = _known_names(names)
    missing = [name for name in names if name not in scores.columns]
    if missing:
        raise ValueError(f"no scores of {', '.join(missing)}; the table has the columns {', '.join(map(str, scores))}")
    native = scores[list(names)].astype(np.float64)
    bad = ~np.isfinite(native.to_numpy())
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(f"the {names[column]} score in row {native.index[row]!r} is {native.iat[row, column]}")
    return pd.DataFrame({name: IQMS[name].distortion(native[name]) for name in names}, index=scores.index)


@dataclass(frozen=True)
class QuantileTables:
    """Histogram equalisation with fixed tables: for each metric, which share of a fitted collection is no worse.

    The rank of x among n fitted distortions is (number below x + (number equal to x + 1) / 2) / n, 0 for a perfect copy;
    linear between knots, constant beyond. `values` increase strictly from 0, `ranks` do not decrease, from 0 to at most 1.
    """

    values: dict[str, tuple[float, ...]]
    ranks: dict[str, tuple[float, ...]]

    def __post_init__(self):
        _known_names(self.values)
        for name in self.values:
            values, ranks = np.asarray(self.values[name], float), np.asarray(self.ranks.get(name, ()), float)
            if values.ndim != 1 or values.shape != ranks.shape or len(values) < 2:
                raise ValueError(f"{name}: {values.shape} values and {ranks.shape} ranks; two equal rows are needed")
            if not (values[0] == 0 and (np.diff(values) > 0).all() and values[-1] < math.inf):
                raise ValueError(f"{name}: the values of a table must increase strictly from 0")
            if not (ranks[0] == 0 and (np.diff(ranks) >= 0).all() and ranks[-1] <= 1):
                raise ValueError(f"{name}: the ranks of a table must not decrease and must lie in [0, 1], from 0 on")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.values)

    @classmethod
    def fit(cls, scores: pd.DataFrame, names: Iterable[str] | None = None) -> "QuantileTables":
        """Tables from the native values of a large collection (`iqm_scores`); ValueError if all are perfect."""
        tables = {name: _quantile_table(name, column) for name, column in align(scores, names).items()}
        return cls({n: values for n, (values, _) in tables.items()}, {n: ranks for n, (_, ranks) in tables.items()})

    def apply(self, scores: pd.DataFrame) -> pd.DataFrame:
        """Ranks in [0, 1] (0 = perfect copy, larger is worse) of native values, one column per metric of the tables."""
        distortions = align(scores, self.names)
        ranks = {n: np.interp(distortions[n].to_numpy(), self.values[n], self.ranks[n]) for n in self.names}
        return pd.DataFrame(ranks, index=scores.index)

    def select(self, names: Sequence[str]) -> "QuantileTables":
        """The tables of some of the metrics only; KeyError for one that has none."""
        return QuantileTables({n: self.values[n] for n in names}, {n: self.ranks[n] for n in names})

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "QuantileTables":
        """The inverse of `to_json`, exact; ValueError for text that is not such a table."""
        try:
            values, ranks = itemgetter("values", "ranks")(json.loads(text))
            return cls({n: tuple(row) for n, row in values.items()}, {n: tuple(row) for n, row in ranks.items()})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("not a quantile table: expected the entries 'values' and 'ranks', by metric") from error


def _quantile_table(name: str, distortions: pd.Series) -> tuple[tuple[float, ...], tuple[float, ...]]:
    values, first = np.unique(distortions.to_numpy(), return_index=True)
    ranks = rankdata(distortions, method="average")[first] / len(distortions)
    worse = values > 0  # rounding puts some metrics a little beyond their perfect value
    values, ranks = values[worse], ranks[worse]
    if not len(values):
        raise ValueError(f"every {name} score is that of a perfect copy; a table needs distorted images")
    if len(values) >= KNOTS:  # evenly spaced in rank, both ends kept; one knot goes to the perfect copy
        at = np.unique(np.searchsorted(ranks, np.linspace(ranks[0], ranks[-1], KNOTS - 1) - 1e-12))
        values, ranks = values[at], ranks[at]
    return (0.0, *values.tolist()), (0.0, *ranks.tolist())


def weak_labels(
    scores: pd.DataFrame,
    tables: QuantileTables,
    *,
    names: Iterable[str] | None = None,
    weights: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Consensus of the metrics, to be learnt in place of human opinion; SYNTHETIC labels, to be called so everywhere.

    Args:
        scores: native values (`iqm_scores`), one row per pair.
        names: the metrics that take part, by default those of `weights`, else all of the tables.
        weights: positive, by default equal (see `agreement_weights`).

    Returns `consensus`, the weighted mean rank in [0, 1], higher = worse; `spread`, the (unweighted) standard deviation of
    the ranks; `rank_<name>` for each metric.
    """
    names = _known_names(names if names is not None else weights if weights is not None else tables.names)
    ranks = tables.select(names).apply(scores)
    shares = np.array([1.0 if weights is None else weights[name] for name in names])
    consensus = np.clip(ranks.to_numpy() @ (shares / shares.sum()), 0.0, 1.0)  # the shares may sum to 1 + epsilon
    labels = pd.DataFrame({"consensus": consensus, "spread": ranks.std(axis=1, ddof=0)}, index=scores.index)
    return labels.join(ranks.add_prefix("rank_"))


def agreement_weights() -> dict[str, float]:
    """Weights of nine metrics for `weak_labels` by how well each agrees with human opinion; they sum to 1.

    w = r / (1 - r²), with r the SROCC on KADID-10k: the best linear combination if every metric were true quality plus
    noise of its own. IW-SSIM and DSS have no published figure and stay out.
    """
    raw = {name: srocc / (1 - srocc**2) for name, srocc in _KADID_SROCC.items()}
    return {name: weight / sum(raw.values()) for name, weight in raw.items()}


def label_counts(before: pd.DataFrame, after: pd.DataFrame, *, bins: int = 25) -> pd.DataFrame:
    """Histograms of distortions (`align`, over their largest value) before, and ranks or labels in [0, 1] after.

    Returns a row per column of `after` and bin: `label`, `low`, `high`, numbers of pairs `before` (or NaN) and `after`.
    """
    edges = np.linspace(0, 1, bins + 1)
    tables = []
    for name in after:
        counts = {"label": name, "low": edges[:-1], "high": edges[1:], "before": math.nan}
        if name in before:
            share = before[name] / max(before[name].max(), np.finfo(float).tiny)
            counts["before"] = np.histogram(np.clip(share, 0, 1), edges)[0]
        tables.append(pd.DataFrame({**counts, "after": np.histogram(after[name], edges)[0]}))
    return pd.concat(tables, ignore_index=True)
