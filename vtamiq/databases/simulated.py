"""Pairwise preferences without people: SIMULATED from the scores of single images by a model of observers."""

import numpy as np
import pandas as pd
from scipy.special import expit

from vtamiq.databases.schema import Database, DatabaseError, preference_table
from vtamiq.utils.digests import digest_number

SHARPNESS = 6.0  # w, where VTAMIQ's own preference begins (`preference`)


def simulate_preferences(database: Database, *, per_reference: int = 200, seed: int = 0) -> pd.DataFrame:
    """Simulate preferences between distorted images of one reference from their scores.

    P(A preferred) = sigmoid(w · (c_B - c_A)), with w = `SHARPNESS` and c the place of an image between the best (0) and the
    worst (1) end of the scale: 77 % for a distance of 0.2, 95 % for 0.5. It is the probability itself, as of infinitely
    many observers.

    For each reference, `per_reference` different pairs of images are drawn in random order, or all if there are fewer, from
    a stream of its own, which depends on `seed` and `ref_id` only. The table has the schema `PREFERENCE_COLUMNS`, `kind`
    "simulated", in order of references.

    Raises DatabaseError if a row has no score, the scale is open, or no reference has two distorted images.
    """
    if per_reference < 1:
        raise ValueError(f"per_reference must be positive, got {per_reference}")
    pairs = database.pairs.assign(distortion=_distortions(database))
    drawn = [_draw(part, per_reference, seed) for _, part in pairs.groupby("ref_id", sort=False) if len(part) > 1]
    if not drawn:
        raise DatabaseError(f"{database.name}: no reference has two distorted images to choose between")
    a, b = (pairs.iloc[np.concatenate(rows)].reset_index(drop=True) for rows in zip(*drawn, strict=True))
    return preference_table(
        database=database.name,
        subset=a["subset"],
        ref_id=a["ref_id"],
        ref_path=a["ref_path"],
        a_path=a["dist_path"],
        b_path=b["dist_path"],
        p_a=expit(SHARPNESS * (b["distortion"] - a["distortion"])),
        kind="simulated",
        label_source=f"simulated from {database.score_name}, w = {SHARPNESS:g}",
    )


def _distortions(database: Database) -> np.ndarray:
    """0 at the best end of the scale, 1 at the worst."""
    score, low, high = (database.pairs[name].to_numpy() for name in ("score", "score_lo", "score_hi"))
    missing = np.flatnonzero(~np.isfinite(score))
    if len(missing):
        raise DatabaseError(f"{database.name}: row {missing[0]} has no score to simulate a preference from")
    if not (np.isfinite(low) & np.isfinite(high) & (low < high)).all():
        raise DatabaseError(f"{database.name}: a preference cannot be simulated on an open scale of scores")
    return (high - score if database.higher_better else score - low) / (high - low)


def _draw(part: pd.DataFrame, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of A and B of so many different pairs of one reference."""
    rng = np.random.default_rng([seed, digest_number(part["ref_id"].iloc[0])])
    first, second = np.triu_indices(len(part), k=1)
    chosen = rng.choice(len(first), size=min(count, len(first)), replace=False)
    swapped = rng.random(len(chosen)) < 0.5
    a, b = np.where(swapped, [second[chosen], first[chosen]], [first[chosen], second[chosen]])
    rows = part.index.to_numpy()
    return rows[a], rows[b]
