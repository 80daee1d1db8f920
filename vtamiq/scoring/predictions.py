"""From a model and a database to the prediction table: one row per pair, from which every number and figure is made."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset, Subset
from tqdm.auto import tqdm

from vtamiq.caps import CAPS, caps_for
from vtamiq.databases.pairs import PairImages
from vtamiq.databases.schema import Database
from vtamiq.model.modes import evaluation
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring.scores import check_integer, collate_draws, forward, load, pair_samples, stack
from vtamiq.utils.files import replacing

# What a prediction row says of its pair, beside the prediction itself.
PAIR_COLUMNS = [
    "database", "subset", "ref_id", "content", "ref_path", "dist_path", "dist_type", "dist_name", "level",
    "score", "score_name", "higher_better",
]  # fmt: skip
BLOCK = 1000  # pairs after which scores are kept


def predict(
    model: VTAMIQ,
    database: Database,
    caps: CAPS | None = None,
    *,
    repeats: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    workers: int = 0,
    progress: bool = True,
    keep: str | Path | None = None,
    **labels: Any,
) -> pd.DataFrame:
    """Score every pair of a database as `score` does; up to rounding, a pair has the same score in every selection.

    Args:
        model, caps, repeats, seed, batch_size: as for `score`.
        workers: processes that read images and cut patches; 0: this one does.
        keep: folder of this very call for finished scores, which an interrupted call resumes; the caller removes it.
        labels: further columns with one value for all rows, for example `split="test", checkpoint="demo"`.

    Returns:
        DataFrame with the pair's columns, `q` (mean over draws, lower is better), `q_std` (between draws, ddof 1; NaN for
        one draw), `repeats`, `num_patches`, `seed`, `synthetic` (labels are no human opinion), `lower_better`
        (True), and `labels`.

    Raises:
        ValueError: `repeats` below 1 or an empty database.
        ImageError: a pair's image cannot be read.
    """
    check_integer("repeats", repeats, 1)
    if not len(database):
        raise ValueError(f"{database.name}: there is no pair to score")
    caps = caps_for(model, caps)
    pairs = _PairDraws(database, caps, repeats, seed)
    kept = None if keep is None else Path(keep) / "scores.npy"
    bar = tqdm(total=len(database), desc=f"score {database.name}", unit="pair", disable=not progress, leave=False)
    with bar, evaluation(model):
        q = _score_rows(model, pairs, batch_size, workers, bar, kept)
    table = database.pairs[[name for name in PAIR_COLUMNS if name in database.pairs]].reset_index(drop=True)
    return table.assign(
        q=q.mean(axis=1),
        q_std=q.std(axis=1, ddof=1) if repeats > 1 else np.nan,
        repeats=repeats,
        num_patches=caps.num_patches,
        seed=seed,
        synthetic=database.synthetic,
        lower_better=True,
        **labels,
    )


def _score_rows(
    model: VTAMIQ, pairs: "_PairDraws", batch_size: int, workers: int, bar: tqdm, kept: Path | None
) -> np.ndarray:
    """Scores (n, repeats) of all rows; the first ones are those that an interrupted call has kept."""
    q = np.empty((len(pairs), pairs.repeats))
    finished = np.load(kept) if kept is not None and kept.is_file() else q[:0]
    done = saved = len(finished)
    q[:done] = finished
    bar.update(done)
    rest = Subset(pairs, range(done, len(pairs)))
    for inputs in load(rest, batch_size // pairs.repeats, workers, collate_draws):
        scores = forward(model, inputs, batch_size).reshape(-1, pairs.repeats)
        q[done : done + len(scores)] = scores
        done += len(scores)
        bar.update(len(scores))
        if kept is not None and (done - saved >= BLOCK or done == len(pairs)):
            saved = done
            with replacing(kept) as temporary, temporary.open("wb") as file:
                np.save(file, q[:done])
    return q


class _PairDraws(Dataset):
    """The stacked draws of each pair of a database."""

    def __init__(self, database: Database, caps: CAPS, repeats: int, seed: int):
        self.images, self.caps, self.repeats, self.seed = PairImages(database), caps, repeats, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> list[torch.Tensor]:
        samples = pair_samples(self.images[row], self.caps, self.repeats, self.seed, self.images.distorted_paths[row])
        return stack(list(samples))
