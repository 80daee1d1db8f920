"""From prediction tables to correlation tables: per database, per distortion, across databases, beside baselines."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from vtamiq.correlations import correlations
from vtamiq.databases import Database, LabelScale
from vtamiq.metrics import IQMS, iqm_scores, psnr
from vtamiq.pairs import PairImages
from vtamiq.predictions import PAIR_COLUMNS

__all__ = ["beside_baselines", "cross_database", "evaluate", "iqm_predictions", "lookup_predictions"]


_VALUES = ("srocc", "krocc", "plcc", "rmse", "plcc_fitted", "rmse_fitted")
_MEASURED_ON = ("database", "split", "stage", "num_patches", "repeats", "seed")


def evaluate(
    predictions: pd.DataFrame, by: str | Sequence[str] = ("database",), *, bootstrap: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Correlations of predictions with scores in every group of rows.

    Args:
        predictions: prediction table (`vtamiq.predictions.predict`); a column `lower_better` (default True) gives the
            direction of `q`, so that classical metrics can be evaluated by the same code.
        by: columns that make the groups; add "dist_name" or "ref_id" for a breakdown.
        bootstrap: resamples for the 95 % interval of SROCC; 0 leaves it out.

    Returns:
        One row per group: the `by` columns, what else its rows share (database, split, patches, …), n, srocc, krocc, plcc,
        rmse (before the fit, both min–max scaled), plcc_fitted, rmse_fitted (after the 5-parameter logistic, in score
        units), srocc_low, srocc_high, synthetic. Correlations are signed: positive means that the prediction agrees.
        `degenerate` (constant values) and `fit_success` say why a value may be NaN. Groups of fewer than 3 rows are listed
        with n and NaN.

    Raises:
        ValueError: a missing column, an empty table, or a non-finite prediction or score.
    """
    by = [by] if isinstance(by, str) else list(by)
    if not by:
        raise ValueError("name at least one column to group by")
    missing = [name for name in [*by, "q", "score", "higher_better", "synthetic"] if name not in predictions]
    if missing:
        raise ValueError(f"the prediction table has no column {', '.join(missing)}; it has {', '.join(predictions)}")
    if predictions.empty:
        raise ValueError("the prediction table is empty")
    bad = predictions.index[~np.isfinite(predictions[["q", "score"]].to_numpy(dtype=float)).all(axis=1)]
    if len(bad):
        raise ValueError(
            f"{len(bad)} rows have no finite prediction and score; first: {predictions.loc[bad[0]].to_dict()}"
        )
    rows = []
    for key, group in predictions.groupby(by, sort=False, dropna=False, observed=True):
        row = (
            dict(zip(by, key, strict=True))
            | _measured_on(group, by)
            | {"n": len(group)}
            | dict.fromkeys(_VALUES, np.nan)
        )
        if len(group) >= 3:
            row |= _correlate(group, bootstrap, seed)
        rows.append(row | {"synthetic": bool(group["synthetic"].any())})
    return pd.DataFrame(rows)


def _measured_on(group: pd.DataFrame, by: Sequence[str]) -> dict[str, object]:
    """What the rows of a group have in common beside the columns they are grouped by."""
    names = [name for name in _MEASURED_ON if name in group and name not in by]
    return {name: group[name].iloc[0] for name in names if group[name].nunique(dropna=False) == 1}


def _correlate(group: pd.DataFrame, bootstrap: int, seed: int) -> dict[str, float]:
    lower_better = group["lower_better"] if "lower_better" in group else pd.Series([True])
    for name, values in (("lower_better", lower_better), ("higher_better", group["higher_better"])):
        if values.nunique() != 1:
            raise ValueError(f"rows of one group disagree in `{name}`; group by what distinguishes them")
    result = correlations(
        group["q"].to_numpy(dtype=float),
        group["score"].to_numpy(dtype=float),
        lower_better=bool(lower_better.iloc[0]),
        higher_better=bool(group["higher_better"].iloc[0]),
        bootstrap=bootstrap,
        seed=seed,
    )
    fit = result.pop("fit")
    return result | {"fit_success": fit.success}


def cross_database(predictions: pd.DataFrame, value: str = "srocc") -> pd.DataFrame:
    """Matrix of a correlation: trained on (rows) × tested on (columns).

    Args:
        predictions: rows of several models and databases, with columns `trained_on` and `database`.
        value: a column of `evaluate`.
    """
    table = evaluate(predictions, by=("trained_on", "database"), bootstrap=0)
    return table.pivot(index="trained_on", columns="database", values=value)


def iqm_predictions(
    database: Database, names: Sequence[str] = ("psnr", "ssim"), *, progress: bool = True
) -> pd.DataFrame:
    """Prediction rows of conventional metrics for every pair, `metric` naming them and `lower_better` their direction.

    Args:
        names: of `vtamiq.metrics.IQMS`, or "psnr", which counts at most 100 dB (equal images have an infinite one).

    Returns:
        Rows for `evaluate`, to be grouped by `metric` at least; `q` is the metric's native value.
    """
    iqms = [name for name in names if name != "psnr"]
    scored: list[Mapping[str, float]] = []
    images = PairImages(database)
    for row in tqdm(range(len(database)), desc=f"IQMs {database.name}", disable=not progress, leave=False):
        pair = images[row]
        values = iqm_scores(*pair, iqms) if iqms else {}
        scored.append(values | ({"psnr": psnr(*pair)} if "psnr" in names else {}))
    pairs = database.pairs[[name for name in PAIR_COLUMNS if name in database.pairs]].reset_index(drop=True)
    values = pd.DataFrame(scored)
    return pd.concat(
        [
            pairs.assign(
                q=values[name],
                metric=name,
                lower_better=name != "psnr" and not IQMS[name].higher_better,
                synthetic=database.synthetic,
            )
            for name in names
        ],
        ignore_index=True,
    )


def lookup_predictions(training: Database, test: Database) -> pd.DataFrame:
    """Baseline that never looks at an image: each (type, level) cell is predicted by its mean over the training rows.

    What a model gains over it is what it sees in the pictures. Cells without training rows get the mean of all rows.
    """
    cells = ["dist_type", "level"]
    labels = LabelScale.fit(training)
    seen = training.pairs[cells].assign(q=labels.to_distortion(training.pairs["score"].to_numpy(dtype=float)))
    means = seen.groupby(cells, as_index=False)["q"].mean()
    pairs = test.pairs[[name for name in PAIR_COLUMNS if name in test.pairs]].reset_index(drop=True)
    table = pairs.merge(means, on=cells, how="left")
    return table.assign(q=table["q"].fillna(seen["q"].mean()), metric="lookup", synthetic=test.synthetic)


def beside_baselines(
    predictions: pd.DataFrame, database: Database, training: Database, iqms: Sequence[str] = ("psnr",)
) -> pd.DataFrame:
    """A model's prediction rows as `metric` "VTAMIQ", with those of conventional metrics and of the look-up below.

    Args:
        predictions: of `vtamiq.predictions.predict` on the database.
        training: what the look-up is made from.
        iqms: as for `iqm_predictions`.
    """
    rows = [
        predictions.assign(metric="VTAMIQ", lower_better=True),
        iqm_predictions(database, iqms),
        lookup_predictions(training, database).assign(lower_better=True),
    ]
    return pd.concat(rows, ignore_index=True)
