"""From a model and a database to the prediction table: one row per pair, from which every number and figure is made."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from vtamiq.caps import CAPS, caps_for
from vtamiq.databases.patches import PairPatches, patch_loader
from vtamiq.databases.schema import Database
from vtamiq.model.modes import evaluation
from vtamiq.model.network import VTAMIQ
from vtamiq.utils.files import replacing

__all__ = ["predict"]

# What a prediction row says of its pair, beside the prediction itself.
PAIR_COLUMNS = [
    "database", "subset", "ref_id", "content", "ref_path", "dist_path", "dist_type", "dist_name", "level",
    "score", "score_name", "higher_better",
]  # fmt: skip


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
    """Score every pair of a database.

    The same database, model and seed give the same scores. Patches are drawn by the number of a row, so a pair has other
    ones in another selection of rows, and than those of `score`: by chance alone its score differs.

    Args:
        model: used in evaluation mode on the device where it is; its mode is restored.
        caps: patch sampling; None takes `CAPS()` with what the model prescribes.
        repeats: passes with new patches each, averaged per pair.
        keep: folder of this very call, for the passes that are finished: after an interruption, the same call goes on
        with
            the next one. Whoever names it removes it.
        labels: further columns with one value for all rows, for example `split="test", checkpoint="demo"`.

    Returns:
        DataFrame with the pair's columns, `q` (mean over draws, lower is better), `q_std` (between draws, ddof 1; NaN for
        one draw), `repeats`, `num_patches`, `seed`, `synthetic` (labels are no human opinion), `lower_better`
        (True), and `labels`.

    Raises:
        ValueError: `repeats` below 1 or an empty database.
        ImageError: a pair's image cannot be read.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats!r}")
    if not len(database):
        raise ValueError(f"{database.name}: there is no pair to score")
    caps = caps_for(model, caps)
    loader = patch_loader(PairPatches(database, caps, seed=seed), batch_size=batch_size, workers=workers)
    device = next(model.parameters()).device
    q = np.full((repeats, len(database)), np.nan)
    with (
        torch.inference_mode(),
        evaluation(model),
        tqdm(total=q.size, desc=f"score {database.name}", unit="pair", disable=not progress, leave=False) as bar,
    ):
        for draw in range(repeats):
            kept = None if keep is None else Path(keep) / f"{draw}.npy"
            if kept is not None and kept.is_file():
                q[draw] = np.load(kept)
                bar.update(len(database))
                continue
            loader.sampler.set_epoch(draw)
            for batch in loader:
                inputs = (batch[name].to(device, non_blocking=True) for name in ("patches", "uv", "scale"))
                q[draw, batch["row"].numpy()] = model(*inputs)[:, 0].float().cpu().numpy()
                bar.update(len(batch["row"]))
            if kept is not None:
                with replacing(kept) as temporary, temporary.open("wb") as file:
                    np.save(file, q[draw])
    table = database.pairs[[name for name in PAIR_COLUMNS if name in database.pairs]].reset_index(drop=True)
    return table.assign(
        q=q.mean(axis=0),
        q_std=q.std(axis=0, ddof=1) if repeats > 1 else np.nan,
        repeats=repeats,
        num_patches=caps.num_patches,
        seed=seed,
        synthetic=database.synthetic,
        lower_better=True,
        **labels,
    )
