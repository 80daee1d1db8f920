"""What each part of the method is worth: the number of patches in the test, and parts of network and sampling left out.

Fewer patches need no training: `score_counts` scores the same pairs again and again, `count_table` says what came of it,
`count_seconds` what it took on this machine. A part that is left out does: `choose_variants` names such settings for
`compare`, `run_predictions` collects what their runs predicted, and `component_table` compares all with one.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student_t
from scipy.stats import ttest_1samp

from vtamiq.caps import CAPS
from vtamiq.databases.schema import Database
from vtamiq.databases.splits import worth_testing
from vtamiq.evaluation.significance import compare_metrics
from vtamiq.evaluation.tables import contents_of, evaluate
from vtamiq.model.complexity import cost_table
from vtamiq.model.modes import evaluation
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring.predictions import predict
from vtamiq.training.chain import Chain, start_model
from vtamiq.training.repeats import Repeats
from vtamiq.utils.configs import changed, did_you_mean, parse_setting
from vtamiq.utils.processes import one_thread_per_process

__all__ = [
    "BASE",
    "PRESET_VARIANTS",
    "SAMPLINGS",
    "VARIANTS",
    "choose_variants",
    "component_table",
    "count_seconds",
    "count_table",
    "run_predictions",
    "score_counts",
    "variant_costs",
]

BASE = "base"
_STAGE, _CAPS = "steps.-1.stage.", "steps.-1.stage.caps."
_SHORT = {"stage.": _STAGE, "caps.": _CAPS}
_PAIR = ["ref_path", "dist_path"]
_NO_INTERVAL = {"difference_low": np.nan, "difference_high": np.nan, "p": np.nan}

# Ways to draw patches in the test, as changes to those of the training.
SAMPLINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "as trained": {},
        "uniform": {"difference": 0.0, "centre": 0.0, "uniform": 1.0},
        "not stratified": {"stratified": False},
    }
)

# Name → what is another value there, for `changed`.
VARIANTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        BASE: {},
        "other seed": {"seed": 1000, _STAGE + "seed": 1000},  # the same split; how much is chance
        "no DiffNet": {"model.num_groups": 0},
        "no difference map": {_CAPS + "difference": 0.0},
        "no centre map": {_CAPS + "centre": 0.0},
        "uniform": {_CAPS + "difference": 0.0, _CAPS + "centre": 0.0},
        "not stratified": {_CAPS + "stratified": False},
        "not aligned": {_CAPS + "aligned": False},
        "two scales": {"model.num_scales": 2},
        "no registers": {"model.num_registers": 0},
        "no layer scale": {"model.layer_scale": False},
        "difference gate": {"model.difference_gate": True},
        "1 block": {"model.num_blocks": 1},
        "2 blocks": {"model.num_blocks": 2},
        "3 blocks": {"model.num_blocks": 3},
        "12 blocks": {"model.num_blocks": 12},
        "CLIP ViT/32": {"model.backbone": "vit_base_patch32_clip_224"},
    }
)

_PARTS = ("no DiffNet", "no difference map", "uniform", "not stratified", "no registers")
PRESET_VARIANTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "smoke": ("other seed", "no DiffNet", "1 block", "3 blocks"),
        "demo": ("other seed", *_PARTS, "1 block", "2 blocks", "CLIP ViT/32"),
        "full": (*_PARTS, "no centre map", "not aligned", "1 block", "3 blocks", "12 blocks", "CLIP ViT/32"),
    }
)


# ------------------------------------------------------------------------------------------------------ number of patches


def score_counts(
    model: VTAMIQ,
    database: Database,
    samplings: Mapping[str, CAPS],
    counts: Sequence[int],
    *,
    draws: int = 2,
    seed: int = 0,
    batch_size: int = 16,
    workers: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Score every pair with every number of patches, drawn in several ways and several times.

    Args:
        samplings: name → how patches are drawn; their `num_patches` is replaced by each of the `counts`.
        draws: scores of each pair, which are not averaged: draw d is that of the seed `seed` + d.
        workers: processes that load patches, beside this one, which works in one thread where there is no GPU: more of
        them
            wait for each other, since the batches are small, and would show in the last digits.

    Returns:
        Columns of `predict`, `sampling` and `draw`; a row for each pair, sampling, number and draw.

    Raises:
        ValueError: nothing to vary, a number twice, less than two draws, or as `predict`.
    """
    if not samplings or not counts or len(set(counts)) < len(counts):
        raise ValueError(f"name samplings, and numbers of patches once each, got {list(samplings)} and {list(counts)}")
    if draws < 2:
        raise ValueError(f"the spread between draws needs at least 2 of them, got {draws}")
    options = {"batch_size": batch_size, "workers": workers, "progress": progress}
    with one_thread_per_process():
        tables = [
            predict(
                model, database, replace(caps, num_patches=count), seed=seed + draw, sampling=name, draw=draw, **options
            )
            for name, caps in samplings.items()
            for count in counts
            for draw in range(draws)
        ]
    return pd.concat(tables, ignore_index=True)


def count_table(
    predictions: pd.DataFrame, model: VTAMIQ, *, bootstrap: int = 1000, resample: str = "pairs", seed: int = 0
) -> pd.DataFrame:
    """What the scores of `score_counts` are worth, by way of drawing and number of patches.

    Returns:
        A row per `sampling` and `num_patches`: `database`, `score_name`, `synthetic`, `n` pairs, `draws`; `srocc` of a
        single draw, `srocc_low` and `srocc_high`, all three means over draws of what `evaluate` gives; `srocc_std`
        between draws (ddof 1); `spread`, the standard deviation of one pair's scores between draws (root mean square over
        pairs) over that of the pairs' mean scores: 0 where draws agree; `gflops` per pair (`vtamiq.model.complexity`).

    Raises:
        ValueError: as `evaluate`.
    """
    settings = ["sampling", "num_patches"]
    each = evaluate(predictions, [*settings, "draw"], bootstrap=bootstrap, resample=resample, seed=seed)
    costs = {count: cost_table(model, int(count))["gflops"].iloc[-1] for count in predictions["num_patches"].unique()}
    rows = []
    for key, group in predictions.groupby(settings, sort=False):
        one = each[(each["sampling"] == key[0]) & (each["num_patches"] == key[1])]
        scores = group.pivot(index=_PAIR, columns="draw", values="q")
        between = np.sqrt(scores.var(axis=1, ddof=1).mean())
        first = group.iloc[0]
        rows.append(
            dict(zip(settings, key, strict=True))
            | {name: first[name] for name in ("database", "score_name")}
            | {"synthetic": bool(group["synthetic"].any()), "n": len(scores), "draws": len(one)}
            | {name: one[name].mean() for name in ("srocc", "srocc_low", "srocc_high")}
            | {"srocc_std": one["srocc"].std(ddof=1), "spread": between / scores.mean(axis=1).std(ddof=1)}
            | {"gflops": costs[key[1]]}
        )
    return pd.DataFrame(rows)


def count_seconds(
    model: VTAMIQ, images: np.ndarray, samplings: Mapping[str, CAPS], counts: Sequence[int], *, repeats: int = 5
) -> pd.DataFrame:
    """Seconds that one pair takes here: another machine, or another moment, gives others.

    Args:
        images: (2, H, W, 3) uint8, the reference first.
        repeats: of which the median counts, after one for warming up.

    Returns:
        A row per `sampling` and `num_patches`: `sampling_seconds` for drawing and cutting the patches, `network_seconds`
        on the device where the model is, their sum `seconds`, and the name of that `device`.
    """
    device = next(model.parameters()).device
    rows = []
    with torch.inference_mode(), evaluation(model):
        for name, caps in samplings.items():
            for count in counts:
                taken = [
                    _seconds(model, images, replace(caps, num_patches=count), device, k) for k in range(repeats + 1)
                ]
                drawing, network = (median(part) for part in zip(*taken[1:], strict=True))
                row = {"sampling": name, "num_patches": count, "sampling_seconds": drawing, "network_seconds": network}
                rows.append(row | {"seconds": drawing + network, "device": device.type})
    return pd.DataFrame(rows)


def _seconds(model: VTAMIQ, images: np.ndarray, caps: CAPS, device: torch.device, seed: int) -> tuple[float, float]:
    start = time.perf_counter()
    sample = caps(images, seed)
    drawn = time.perf_counter()
    inputs = (part[None].to(device) for part in (sample.patches, sample.uv, sample.scale))
    model(*inputs).cpu()  # waits for the device
    return drawn - start, time.perf_counter() - drawn


# --------------------------------------------------------------------------------------------------------------- variants


def choose_variants(text: str = "", preset: str = "demo") -> dict[str, dict[str, Any]]:
    """Variants to train, the base first, for `compare`.

    Args:
        text: names of `VARIANTS`, or settings of a chain such as "model.num_blocks=4" and "caps.num_patches=32" (`caps.`
            and `stage.` are those of the last step), with commas between; " and " joins several of them in one variant.
            Empty for the list of the preset.

    Raises:
        ValueError: an unknown name or preset (with the nearest known one), or a variant twice.
    """
    if preset not in PRESET_VARIANTS:
        raise ValueError(f"no preset {preset!r}{did_you_mean(preset, PRESET_VARIANTS)}")
    given = [" ".join(name.split()) for name in text.split(",") if name.strip()] or list(PRESET_VARIANTS[preset])
    names = [BASE, *(name for name in given if name != BASE)]
    if len(set(names)) < len(names) or given.count(BASE) > 1:
        raise ValueError(f"a variant is named twice in {text!r}")
    return {name: _settings(name) for name in names}


def _settings(name: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for part in name.split(" and "):
        if part in VARIANTS:
            new = dict(VARIANTS[part])
        elif "=" in part:
            where, value = parse_setting(part)
            short = next((short for short in _SHORT if where.startswith(short)), "")
            new = {_SHORT.get(short, "") + where.removeprefix(short): value}
        else:
            raise ValueError(f"no variant {part!r}{did_you_mean(part, VARIANTS)}; there are {', '.join(VARIANTS)}")
        if twice := settings.keys() & new.keys():
            raise ValueError(f"variant {name!r} sets {min(twice)} twice")
        settings |= new
    return settings


def variant_costs(chain: Chain, variants: Mapping[str, Mapping[str, Any]], root: str | Path = ".") -> pd.DataFrame:
    """A row per `variant`: `num_blocks`, `parameters` of the network, and `gflops` of scoring a pair with the patches of
    the test.

    Raises:
        ValueError: as `changed` and `start_model`.
    """
    rows = []
    for name, settings in variants.items():
        one = changed(chain, settings)
        model = start_model(one, root)
        total = cost_table(model, one.steps[-1].stage.test_patches).iloc[-1]
        cost = {"parameters": int(total["parameters"]), "gflops": total["gflops"]}
        rows.append({"variant": name, "num_blocks": model.config.num_blocks} | cost)
    return pd.DataFrame(rows)


def run_predictions(runs: Repeats, database: Database) -> pd.DataFrame:
    """Predictions of all runs of `compare` for their test pairs, but those that a distortion left unchanged.

    Args:
        database: the whole that the last stage was trained and tested on.

    Returns:
        Columns of `predict`, `variant`, and `run` (0 where each variant was trained once).
    """
    kept = worth_testing(database).pairs[_PAIR]
    tables = []
    for row in runs.table.to_dict("records"):
        folder = runs.folder / row["folder"]  # in which there may be trainings of other settings, set aside
        path = folder / Chain.load(folder / "chain.yaml").folders[-1] / "predictions.parquet"
        rows = pd.read_parquet(path).query("split == 'test'").merge(kept, on=_PAIR, validate="one_to_one")
        tables.append(rows.assign(variant=row["variant"], run=row.get("run", row.get("fold", 0))))
    return pd.concat(tables, ignore_index=True)


def component_table(
    predictions: pd.DataFrame, base: str = BASE, *, bootstrap: int = 1000, resample: str = "pairs", seed: int = 0
) -> pd.DataFrame:
    """Variants beside the base, on the same pairs.

    Args:
        predictions: of `run_predictions`.
        bootstrap, resample: for variants trained once, as for `evaluate`.

    Returns:
        A row per `variant`: `database`, `score_name`, `synthetic`, `runs`, `n` (pairs, mean over runs); `srocc` with
        `srocc_low`, `srocc_high`; `difference`, by which its SROCC is above that of the base, with `difference_low`,
        `difference_high` and `p`; `p_holm`, that p corrected for the number of variants (Holm 1979).

        Trained once: intervals and p from paired resamples of the pairs, or references, that were tested. They know
        nothing
        of the chance in training. Trained several times: means over runs, t-intervals and a paired t-test over runs, for
        which runs must share split and seed with those of the base.

    Raises:
        ValueError: no such base, runs that the base lacks, or other pairs than those of the base.
    """
    if base not in set(predictions["variant"]):
        raise ValueError(f"the predictions hold no variant {base!r} to compare with")
    each = _each_run(predictions, base, bootstrap, resample, seed)
    several = each.groupby("variant")["run"].nunique().max() > 1
    table = _over_runs(each, base) if several else each.assign(runs=1).drop(columns="run")
    return table.assign(p_holm=_holm(table["p"].to_numpy(dtype=float)))


def _each_run(predictions: pd.DataFrame, base: str, bootstrap: int, resample: str, seed: int) -> pd.DataFrame:
    once = predictions["run"].nunique() == 1
    bootstrap = bootstrap if once else 0
    own = evaluate(predictions, ["variant", "run"], bootstrap=bootstrap, resample=resample, seed=seed)
    parts = {key: part.set_index(_PAIR) for key, part in predictions.groupby(["variant", "run"], sort=False)}
    rows = []
    for variant, run in zip(own["variant"], own["run"], strict=True):
        part, other = parts[variant, run], parts.get((base, run))
        if other is None:
            raise ValueError(f"run {run} of {variant!r} has no run of {base!r} to be compared with")
        if set(part.index) != set(other.index) or part.index.has_duplicates:
            raise ValueError(f"run {run} of {variant!r} was not tested once on each of the pairs of {base!r}")
        if variant == base:  # the difference to itself is no estimate
            rows.append({"difference": 0.0} | _NO_INTERVAL)
            continue
        compared = compare_metrics(
            part["q"], other.loc[part.index, "q"], part["score"],
            contents_of(part.reset_index()) if resample == "references" else None,
            higher_better=bool(part["higher_better"].iloc[0]), resamples=bootstrap, seed=seed,
        )  # fmt: skip
        low, high = compared["low"], compared["high"]
        rows.append(
            {"difference": compared["difference"], "difference_low": low, "difference_high": high, "p": compared["p"]}
        )
    columns = ["variant", "run", "database", "score_name", "synthetic", "n", "srocc", "srocc_low", "srocc_high"]
    return pd.concat([own[columns], pd.DataFrame(rows)], axis=1)


def _over_runs(each: pd.DataFrame, base: str) -> pd.DataFrame:
    rows = []
    for variant, part in each.groupby("variant", sort=False):
        row = {"variant": variant} | part.iloc[0][["database", "score_name", "synthetic"]].to_dict()
        row |= {"n": part["n"].mean(), "runs": len(part)}
        for name in ("srocc", "difference"):
            values = part[name].to_numpy(dtype=float)
            half = student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
            row |= {name: values.mean(), f"{name}_low": values.mean() - half, f"{name}_high": values.mean() + half}
        rows.append(row | (_NO_INTERVAL if variant == base else {"p": ttest_1samp(part["difference"], 0).pvalue}))
    return pd.DataFrame(rows)


def _holm(p: np.ndarray) -> np.ndarray:
    """p-values corrected for their number by Holm's step-down; NaN stays NaN and does not count."""
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(np.arange(len(order), 0, -1) * p[order]))
    return corrected
