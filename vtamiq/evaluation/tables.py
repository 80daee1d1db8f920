"""From prediction tables to result tables: per database and distortion, across databases, metric against metric.

Model (`vtamiq.scoring.predictions`) and metrics (`vtamiq.evaluation.baselines`) make tables of one kind, a row per pair.
"""

import json
import logging
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from vtamiq.databases.schema import Database
from vtamiq.databases.splits import shared_pictures
from vtamiq.evaluation.correlation import correlations
from vtamiq.evaluation.published import published_results
from vtamiq.evaluation.significance import compare_metrics, pairwise_accuracy, preference_agreement

log = logging.getLogger(__name__)

_VALUES = ("srocc", "krocc", "plcc", "rmse", "plcc_fitted", "rmse_fitted", "plcc_fitted4", "rmse_fitted4", "srocc_low",
           "srocc_high", "plcc_low", "plcc_high")  # fmt: skip
_MEASURED_ON = ("database", "score_name", "split", "stage", "trained_on", "checkpoint", "num_patches", "repeats",
                "seed")  # fmt: skip
_PAIR = ["database", "ref_path", "dist_path"]


def evaluate(
    predictions: pd.DataFrame,
    by: str | Sequence[str] = ("database",),
    *,
    bootstrap: int = 1000,
    resample: str = "pairs",
    seed: int = 0,
) -> pd.DataFrame:
    """Correlations of predictions with scores in every group of rows.

    Args:
        predictions: prediction table (`predict`); its column `lower_better` (default True) is the direction of `q`.
        by: columns that make the groups; add "dist_name" or "ref_id" for a breakdown.
        bootstrap: resamples for 95 % intervals; 0 leaves them out.
        resample: "pairs" are drawn one by one; "references" with all their pairs, which are not independent: that says
            what other scenes might give. NaN below five references; of ten or fewer, the intervals are too narrow.

    Returns:
        One row per group: the `by` columns, what else its rows share (database, split, patches, …), n, srocc, krocc, plcc,
        rmse (before the fit, both min–max scaled), plcc_fitted, rmse_fitted (after the logistic of 5 parameters, in score
        units), plcc_fitted4, rmse_fitted4 (of 4 parameters), srocc_low, srocc_high, plcc_low, plcc_high, synthetic.
        Correlations are signed: positive means that the prediction agrees. `degenerate` (constant values), `fit_success`
        and `fit_message` say why a value is NaN; `fit`, `fit4` are the fitted parameters as JSON. Groups of fewer than 3
        rows are listed with n and NaN.

    Raises:
        ValueError: a missing column, an empty table, or a non-finite prediction or score.
    """
    by = _names(by)
    if resample not in ("pairs", "references"):
        raise ValueError(f"resample must be 'pairs' or 'references', got {resample!r}")
    _check(predictions, [*by, "higher_better", "synthetic", *(["ref_id"] if resample == "references" else [])])
    rows = []
    for key, group in _groups(predictions, by):
        shared = [name for name in _MEASURED_ON if name in group and name not in by]
        row = key | {name: group[name].iloc[0] for name in shared if group[name].nunique(dropna=False) == 1}
        row["n"] = len(group)
        row |= dict.fromkeys(_VALUES, np.nan)
        row |= {"degenerate": None, "fit": None, "fit4": None, "fit_success": False}
        row["fit_message"] = f"{len(group)} rows are too few"
        if len(group) >= 3:
            row |= _correlate(group, bootstrap, resample, seed)
        rows.append(row | {"synthetic": bool(group["synthetic"].any())})
    return pd.DataFrame(rows)


def _correlate(group: pd.DataFrame, bootstrap: int, resample: str, seed: int) -> dict[str, Any]:
    values = group["q"].to_numpy(dtype=float), group["score"].to_numpy(dtype=float)
    directions = _one_direction(group)
    groups = contents_of(group) if resample == "references" else None
    result = correlations(*values, **directions, bootstrap=bootstrap, groups=groups, seed=seed)
    four = correlations(*values, **directions, parameters=4)
    fit, fit4 = result["fit"], four["fit"]
    return result | {
        "plcc_fitted4": four["plcc_fitted"],
        "rmse_fitted4": four["rmse_fitted"],
        "fit": json.dumps(fit.params) if fit.success else None,
        "fit4": json.dumps(fit4.params) if fit4.success else None,
        "fit_success": fit.success and fit4.success,
        "fit_message": fit.message if fit4.success else fit4.message,
    }


def _names(by: str | Sequence[str]) -> list[str]:
    return [by] if isinstance(by, str) else list(by)


def _groups(predictions: pd.DataFrame, by: list[str]):
    """({column: value}, rows) of every group, in the order in which they come."""
    for key, group in predictions.groupby(by, sort=False, dropna=False, observed=True):
        yield dict(zip(by, key, strict=True)), group


def _check(predictions: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [name for name in [*columns, "q", "score"] if name not in predictions]
    if missing:
        raise ValueError(f"the prediction table has no column {', '.join(missing)}; it has {', '.join(predictions)}")
    if predictions.empty:
        raise ValueError("the prediction table is empty")
    bad = predictions[~np.isfinite(predictions[["q", "score"]].to_numpy(dtype=float)).all(axis=1)]
    if len(bad):
        raise ValueError(f"{len(bad)} rows have no finite prediction and score; first: {bad.iloc[0].to_dict()}")


def _one_direction(group: pd.DataFrame) -> dict[str, bool]:
    """`lower_better` and `higher_better` of all rows."""
    directions = {"lower_better": True}
    for name in ("lower_better", "higher_better"):
        if name not in group and name in directions:
            continue
        if group[name].isna().any():
            raise ValueError(f"{group[name].isna().sum()} rows do not say their direction `{name}`")
        if group[name].nunique() != 1:
            raise ValueError(f"rows of one group disagree in `{name}`; group by what distinguishes them")
        directions[name] = bool(group[name].iloc[0])
    return directions


def contents_of(group: pd.DataFrame) -> np.ndarray:
    """Label (n,) of each pair's scene, whose pairs must be resampled together: scenes of two databases are two."""
    scene = group["ref_id"].astype(str)
    if "content" in group:
        scene = group["content"].astype(object).fillna(scene).astype(str)
    if "database" in group:
        scene = group["database"].astype(str) + "/" + scene
    return scene.to_numpy(dtype=str)


def evaluate_within(
    predictions: pd.DataFrame, within: str | Sequence[str] = "ref_id", by: str | Sequence[str] = ("database",)
) -> pd.DataFrame:
    """Correlations within groups such as references or distortions, averaged over them.

    Scores of some databases (PIPAL) may only be comparable within a reference.

    Args:
        within: columns of the small groups, for example "ref_id", "dist_name" or ["dist_type", "level"].
        by: columns that make the rows of the result.

    Returns:
        One row per `by` group: mean, median, standard deviation (ddof 1) and minimum of srocc and mean of krocc and plcc
        over the small groups; `groups`, how many were averaged; `left_out`, how many have fewer than 3 pairs or constant
        values; `accuracy`, the share of pairs within the small groups that the prediction orders as the scores do.

    Raises:
        ValueError: as `evaluate`.
    """
    by, within = _names(by), _names(within)
    _check(predictions, [*by, *within, "higher_better", "synthetic"])
    rows = []
    for key, group in _groups(predictions, by):
        parts = []
        for _, part in _groups(group, within):
            values = part["q"].to_numpy(dtype=float), part["score"].to_numpy(dtype=float)
            if len(part) >= 3 and all(map(np.ptp, values)):
                parts.append(correlations(*values, **_one_direction(part)))
        table = pd.DataFrame(parts, columns=["srocc", "krocc", "plcc"])
        codes = group.groupby(within, sort=False, dropna=False, observed=True).ngroup().to_numpy()
        row = key | {"within": " × ".join(within)}
        row |= {f"srocc_{name}": table["srocc"].agg(name) for name in ("mean", "median", "std", "min")}
        row |= {"krocc_mean": table["krocc"].mean(), "plcc_mean": table["plcc"].mean()}
        row |= {"groups": len(table), "left_out": int(codes.max()) + 1 - len(table)}
        row["accuracy"] = pairwise_accuracy(group["q"], group["score"], codes, **_one_direction(group))["accuracy"]
        rows.append(row | {"synthetic": bool(group["synthetic"].any())})
    return pd.DataFrame(rows)


def cross_database(predictions: pd.DataFrame, value: str = "srocc", rows: str = "trained_on") -> pd.DataFrame:
    """Matrix of a correlation: trained on (rows) × tested on (columns), in the order in which they come.

    Databases whose references have one source are no independent test; each such pair is warned about in the log.

    Args:
        predictions: rows of several models and databases, with columns `trained_on` and `database`.
        value: a column of `evaluate`.
        rows: the column that makes the rows, for example "method" to have conventional metrics in the matrix.
    """
    table = evaluate(predictions, by=(rows, "database"), bootstrap=0)
    if "trained_on" in predictions:
        for trained_on, database in predictions[["trained_on", "database"]].drop_duplicates().itertuples(index=False):
            source = shared_pictures(str(trained_on), str(database))
            if source is not None and trained_on != database:
                log.warning("%s and %s have pictures from the same source: %s", trained_on, database, source)
    matrix = table.pivot(index=rows, columns="database", values=value)
    return matrix.loc[table[rows].unique(), table["database"].unique()]


def significance(
    predictions: pd.DataFrame, by: str | Sequence[str] = ("database",), *, bootstrap: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Every two metrics compared on the same images (`compare_metrics`), references being resampled.

    Args:
        predictions: rows of two or more metrics, told apart by the column `metric`.
        by: columns that make the groups within which metrics are compared.

    Returns:
        One row per group and two metrics: `first`, `second`, their SROCC, the difference with its 95 % interval and p, the
        F-test of the residuals, and the number of images and references. No correction for many comparisons is made.

    Raises:
        ValueError: as `evaluate`; a metric lacks images that another one has, or has one twice; only one metric.
    """
    by = _names(by)
    _check(predictions, [*by, *_PAIR, "ref_id", "metric", "higher_better"])
    if predictions["metric"].isna().any():
        raise ValueError(f"{predictions['metric'].isna().sum()} rows do not say which metric they are of")
    rows = []
    for key, group in _groups(predictions, by):
        metrics = {name: part.set_index(_PAIR) for name, part in group.groupby("metric", sort=False)}
        first = next(iter(metrics.values()))
        for name, part in metrics.items():
            if part.index.has_duplicates or set(part.index) != set(first.index):
                raise ValueError(f"{name} has not been measured once on each of the same {len(first)} images")
        for one, other in combinations(metrics, 2):
            a, b = metrics[one], metrics[other].loc[metrics[one].index]
            directions = _one_direction(a)
            compared = compare_metrics(
                a["q"], b["q"], a["score"], contents_of(a.reset_index()), higher_better=directions["higher_better"],
                lower_better=(directions["lower_better"], _one_direction(b)["lower_better"]),
                resamples=bootstrap, seed=seed,
            )  # fmt: skip
            rows.append(key | {"first": one, "second": other} | compared)
    if not rows:
        raise ValueError("the table has one metric only; a comparison needs two")
    return pd.DataFrame(rows)


def evaluate_preferences(
    predictions: pd.DataFrame, database: Database, *, perfect: float | None = None
) -> pd.DataFrame:
    """Predictions against pairwise preferences, as PieAPP measures.

    Args:
        predictions: rows of one metric on `database`.
        database: has `preferences`.
        perfect: the metric's value for a perfect copy, which stands for references that are compared themselves; without
            it, those preferences are left out and counted, unless there is a row (reference, reference).

    Returns:
        One row per subset: accuracy, error_rate and krocc over all preferences and over clear ones
        (`preference_agreement`), and `left_out`, preferences about images without a prediction.

    Raises:
        ValueError: the database has no preferences, no prediction fits any of them, an image has two, or rows are of
            another database or not finite.
    """
    if database.preferences is None:
        raise ValueError(f"{database.name} has no preferences")
    _refuse(predictions["database"] != database.name, "are of another database")
    _refuse(~np.isfinite(predictions["q"]), "have no finite prediction")
    twice = predictions.duplicated(["ref_path", "dist_path"])
    _refuse(twice, "predict an image twice: give the rows of one metric")
    sign = 1 if _one_direction(predictions)["lower_better"] else -1
    q = sign * predictions.set_index(["ref_path", "dist_path"])["q"]
    asked = database.preferences
    for side in ("a", "b"):
        index = pd.MultiIndex.from_frame(asked[["ref_path", f"{side}_path"]])
        of_side = q.reindex(index).to_numpy(dtype=float)
        if perfect is not None:
            of_side = np.where(asked[f"{side}_path"] == asked["ref_path"], sign * perfect, of_side)
        asked = asked.assign(**{f"q_{side}": of_side})
    rows = []
    for subset, part in asked.groupby("subset", sort=False):
        known = part.dropna(subset=["q_a", "q_b"])
        result = preference_agreement(known["q_a"], known["q_b"], known["p_a"]) if len(known) else {"pairs": 0}
        rows.append({"database": database.name, "subset": subset} | result | {"left_out": len(part) - len(known)})
    table = pd.DataFrame(rows)
    if not table["pairs"].any():
        raise ValueError(f"no prediction is about an image that {database.name} has preferences of")
    simulated = bool((database.preferences["kind"] == "simulated").any())
    return table.assign(synthetic=database.synthetic or simulated)


def _refuse(rows: pd.Series, what: str) -> None:
    if rows.any():
        raise ValueError(f"{rows.sum()} rows {what}")


def beside_published(results: pd.DataFrame) -> pd.DataFrame:
    """Measured results with published ones of the same databases below, told apart by `origin`.

    Published rows are absolute values; PLCCs after a fit may be a little higher than ours, whose logistic is monotonic.

    Args:
        results: of `evaluate`, by at least `database` and `metric`.

    Returns:
        `database, metric, method, score_name, origin, srocc, krocc, plcc, n, protocol, source`, sorted by database and
        metric, measured rows first.
    """
    values = ["srocc", "krocc", "plcc"]
    missing = [name for name in ("database", "metric", *values) if name not in results]
    if missing:
        raise ValueError(f"the results have no column {', '.join(missing)}; group evaluate() by database and metric")
    kept = [name for name in ("method", "score_name") if name in results]
    columns = ["database", "metric", *kept, "origin", *values, "n", "protocol", "source"]
    measured = results.assign(origin="measured", protocol="signed, PLCC without fit", source="this run")[columns]
    published = published_results().query("database in @results.database").assign(origin="published")
    table = pd.concat([measured, published], ignore_index=True) if len(published) else measured
    return table.sort_values(["database", "metric", "origin"], kind="stable", ignore_index=True)[columns]
