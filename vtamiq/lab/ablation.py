"""What each part of the method is worth: the number of patches in the test, and parts of network and sampling left out.

Fewer patches need no training: `score_counts`, then `count_table` and `count_seconds`. A part left out does:
`choose_variants` for `compare`, then `run_predictions` and `component_table`.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
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
from vtamiq.training.repeats import Runs
from vtamiq.utils.configs import changed, did_you_mean, parse_setting
from vtamiq.utils.files import read_table
from vtamiq.utils.processes import one_thread_per_process

BASE = "base"
_STAGE, _CAPS = "steps.-1.stage.", "steps.-1.stage.caps."
_COUNT, _PAIR = ["sampling", "num_patches"], ["ref_path", "dist_path"]

# Ways to draw patches in the test, as changes to those of the training.
SAMPLINGS: dict[str, dict[str, Any]] = {
    "as trained": {},
    "uniform": {"difference": 0.0, "centre": 0.0, "uniform": 1.0},
    "not stratified": {"stratified": False},
}

# Name → settings that differ from the base, for `changed`.
VARIANTS: dict[str, dict[str, Any]] = {
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

_PARTS = ("no DiffNet", "no difference map", "uniform", "not stratified", "no registers")
PRESET_VARIANTS: dict[str, tuple[str, ...]] = {
    "smoke": ("other seed", "no DiffNet", "1 block", "3 blocks"),
    "demo": ("other seed", *_PARTS, "1 block", "2 blocks", "CLIP ViT/32"),
    "full": (*_PARTS, "no centre map", "not aligned", "1 block", "3 blocks", "12 blocks", "CLIP ViT/32"),
}


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
    """Score every pair with every number of patches, drawn in several ways and several times; in one thread on a CPU.

    Args:
        samplings: name → patch sampling; its `num_patches` is replaced by each of the `counts` (once each).
        draws: at least 2, not averaged: draw d is that of the seed `seed` + d.
        workers: processes that load patches, beside this one.

    Returns columns of `predict`, `sampling` and `draw`. ValueError as above, or as `predict`.
    """
    if not counts or len(set(counts)) < len(counts):
        raise ValueError(f"name numbers of patches once each, got {list(counts)}")
    if draws < 2:
        raise ValueError(f"the spread between draws needs at least 2 of them, got {draws}")
    options = {"batch_size": batch_size, "workers": workers, "progress": progress}
    tables = []
    with one_thread_per_process():
        for name, caps in samplings.items():
            for count in counts:
                for draw in range(draws):
                    drawn = {"seed": seed + draw, "sampling": name, "draw": draw}
                    tables.append(predict(model, database, replace(caps, num_patches=count), **drawn, **options))
    return pd.concat(tables, ignore_index=True)


def count_table(
    predictions: pd.DataFrame, model: VTAMIQ, *, bootstrap: int = 1000, resample: str = "pairs", seed: int = 0
) -> pd.DataFrame:
    """Evaluate the scores of `score_counts` by `sampling` and `num_patches`.

    `srocc` and its bounds are means over single draws, `srocc_std` is between draws; `spread`: standard deviation of one
    pair's scores between draws (root mean square over pairs) over that of the pairs' means; `gflops` per pair.
    """
    each = evaluate(predictions, [*_COUNT, "draw"], bootstrap=bootstrap, resample=resample, seed=seed)
    table = each.groupby(_COUNT, sort=False).agg(
        database=("database", "first"),
        score_name=("score_name", "first"),
        synthetic=("synthetic", "any"),
        n=("n", "first"),
        draws=("draw", "count"),
        srocc=("srocc", "mean"),
        srocc_low=("srocc_low", "mean"),
        srocc_high=("srocc_high", "mean"),
        srocc_std=("srocc", "std"),
    )
    pairs = predictions.groupby([*_COUNT, *_PAIR], sort=False)["q"].agg(["mean", "var"]).groupby(_COUNT, sort=False)
    table["spread"] = np.sqrt(pairs["var"].mean()) / pairs["mean"].std()
    table = table.reset_index()
    costs = {count: cost_table(model, int(count))["gflops"].iloc[-1] for count in table["num_patches"].unique()}
    return table.assign(gflops=table["num_patches"].map(costs))


def count_seconds(
    model: VTAMIQ, images: np.ndarray, samplings: Mapping[str, CAPS], counts: Sequence[int], *, repeats: int = 5
) -> pd.DataFrame:
    """Seconds for one pair (2, H, W, 3) uint8 here, by `sampling` and `num_patches`: medians of `repeats` after a warm-up.

    Columns `sampling_seconds`, `network_seconds`, their sum `seconds`, and `device`.
    """
    device = next(model.parameters()).device
    with torch.inference_mode(), evaluation(model):
        rows = [
            (name, count, *np.median([_seconds(model, images, one, device, n) for n in range(repeats + 1)][1:], axis=0))
            for name, caps in samplings.items()
            for count in counts
            for one in [replace(caps, num_patches=count)]
        ]
    table = pd.DataFrame(rows, columns=[*_COUNT, "sampling_seconds", "network_seconds"])
    return table.assign(seconds=table["sampling_seconds"] + table["network_seconds"], device=device.type)


def _seconds(model: VTAMIQ, images: np.ndarray, caps: CAPS, device: torch.device, seed: int) -> tuple[float, float]:
    start = time.perf_counter()
    sample = caps(images, seed)
    drawn = time.perf_counter()
    inputs = (part[None].to(device) for part in (sample.patches, sample.uv, sample.scale))
    model(*inputs).cpu()  # waits for the device
    return drawn - start, time.perf_counter() - drawn


def choose_variants(text: str = "", preset: str = "demo") -> dict[str, dict[str, Any]]:
    """Variants to train, the base first, for `compare`; ValueError for an unknown name or a variant twice.

    `text` has names of `VARIANTS` or settings of a chain ("model.num_blocks=4", "caps.num_patches=32"; `caps.` and `stage.`
    are those of the last step), with commas between; " and " joins several in one variant. Empty: the preset's list.
    """
    given = [" ".join(name.split()) for name in text.split(",") if name.strip()] or list(PRESET_VARIANTS[preset])
    if len(set(given)) < len(given):
        raise ValueError(f"a variant is named twice in {text!r}")
    return {name: _settings(name) for name in dict.fromkeys([BASE, *given])}


def _settings(name: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for part in name.split(" and "):
        if part in VARIANTS:
            new = VARIANTS[part]
        elif "=" in part:
            where, value = parse_setting(part)
            new = {re.sub(r"^(stage|caps)\.", lambda of: {"stage": _STAGE, "caps": _CAPS}[of[1]], where): value}
        else:
            raise ValueError(f"no variant {part!r}{did_you_mean(part, VARIANTS)}; there are {', '.join(VARIANTS)}")
        if twice := settings.keys() & new.keys():
            raise ValueError(f"variant {name!r} sets {min(twice)} twice")
        settings.update(new)
    return settings


def variant_costs(chain: Chain, variants: Mapping[str, Mapping[str, Any]], root: str | Path = ".") -> pd.DataFrame:
    """A row per `variant`: `num_blocks`, `parameters` of the network, `gflops` per pair with the patches of the test."""
    rows = []
    for name, settings in variants.items():
        one = changed(chain, settings)
        model = start_model(one, root)
        total = cost_table(model, one.steps[-1].stage.test_patches).iloc[-1]
        rows.append((name, model.config.num_blocks, int(total["parameters"]), total["gflops"]))
    return pd.DataFrame(rows, columns=["variant", "num_blocks", "parameters", "gflops"])


def run_predictions(runs: Runs, database: Database) -> pd.DataFrame:
    """What all runs of `compare` predict for the test pairs of `database` (the last stage's, whole) that are worth testing.

    Columns of `predict`, `variant`, and `run` (0 where each variant was trained once).
    """
    kept = worth_testing(database).pairs[_PAIR]
    tables = []
    for row in runs.table.to_dict("records"):
        folder = runs.folder / row["folder"]
        path = folder / Chain.load(folder / "chain.yaml").folders[-1] / "predictions.parquet"
        rows = read_table(path, ["q", "split"]).query("split == 'test'").merge(kept, on=_PAIR, validate="one_to_one")
        tables.append(rows.assign(variant=row["variant"], run=row.get("run", row.get("fold", 0))))
    return pd.concat(tables, ignore_index=True)


def component_table(
    predictions: pd.DataFrame, *, bootstrap: int = 1000, resample: str = "pairs", seed: int = 0
) -> pd.DataFrame:
    """Compare variants with the base, on the same pairs; ValueError if a run was tested on others.

    Trained once: intervals and p come from paired resamples (`bootstrap`, `resample` as for `evaluate`). Trained several
    times: t-intervals and a paired t-test over runs, which must share split and seed with those of the base.

    Returns a row per `variant`: `database`, `score_name`, `synthetic`, `runs`, `n` pairs (mean); `srocc` with `_low` and
    `_high`; `difference` to the base's with the same and `p`; `p_holm`, corrected for the variants (Holm 1979).
    """
    several = predictions["run"].nunique() > 1
    each = _each_run(predictions, 0 if several else bootstrap, resample, seed)
    table = _over_runs(each) if several else each.assign(runs=1).drop(columns="run")
    return table.assign(p_holm=_holm(table["p"]))


def _each_run(predictions: pd.DataFrame, bootstrap: int, resample: str, seed: int) -> pd.DataFrame:
    """Every run of every variant beside the same run of the base."""
    own = evaluate(predictions, ["variant", "run"], bootstrap=bootstrap, resample=resample, seed=seed)
    parts = {key: part.set_index(_PAIR) for key, part in predictions.groupby(["variant", "run"], sort=False)}
    rows = []
    for variant, run in zip(own["variant"], own["run"], strict=True):
        part, base = parts[variant, run], parts.get((BASE, run))
        if base is None or set(part.index) != set(base.index) or part.index.has_duplicates:
            raise ValueError(f"run {run} of {variant!r} was not tested once on each of the pairs of {BASE!r}")
        compared = {"difference": 0.0, "low": np.nan, "high": np.nan, "p": np.nan}  # of the base with itself
        if variant != BASE:
            compared = compare_metrics(
                part["q"], base.loc[part.index, "q"], part["score"],
                contents_of(part.reset_index()) if resample == "references" else None,
                higher_better=bool(part["higher_better"].iloc[0]), resamples=bootstrap, seed=seed,
            )  # fmt: skip
        rows.append([compared[name] for name in ("difference", "low", "high", "p")])
    above = pd.DataFrame(rows, columns=["difference", "difference_low", "difference_high", "p"])
    columns = ["variant", "run", "database", "score_name", "synthetic", "n", "srocc", "srocc_low", "srocc_high"]
    return pd.concat([own[columns], above], axis=1)


def _over_runs(each: pd.DataFrame) -> pd.DataFrame:
    """Means over the runs of each variant, with t-intervals; none for differences that are all 0."""
    rows = []
    for variant, part in each.groupby("variant", sort=False):
        row = {"variant": variant, **part.iloc[0][["database", "score_name", "synthetic"]]}
        row |= {"n": part["n"].mean(), "runs": len(part)}
        for name in ("srocc", "difference"):
            row |= {name: part[name].mean(), f"{name}_low": np.nan, f"{name}_high": np.nan, "p": np.nan}
            if part[name].any():
                tested = ttest_1samp(part[name], 0)
                low, high = tested.confidence_interval()
                row |= {f"{name}_low": low, f"{name}_high": high, "p": tested.pvalue}
        rows.append(row)
    return pd.DataFrame(rows)


def _holm(p: pd.Series) -> pd.Series:
    """p-values corrected for their number by Holm's step-down; NaN stays NaN and does not count."""
    known = p.dropna().sort_values()
    corrected = (known * np.arange(len(known), 0, -1)).cummax().clip(upper=1)
    return corrected.reindex(p.index)
