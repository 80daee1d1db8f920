"""Score tables of image pairs: resumable, in several processes, with bad rows reported and the others scored."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from vtamiq.caps import CAPS, caps_for
from vtamiq.images.reading import WHITE, Background, ImageError, check_background, read_samples
from vtamiq.model.inference import NOT_FINITE, check_model, fingerprint, half_precision
from vtamiq.model.modes import evaluation, uncompiled
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring.journal import Key, Result, Store
from vtamiq.scoring.pairs import check_pairs, read_pairs
from vtamiq.scoring.scores import (
    COMPUTES,
    check_integer,
    collate_draws,
    draws_of,
    forward,
    load,
    mean_and_error,
    pair_samples,
    pair_views,
    stack,
)  # fmt: skip
from vtamiq.utils.digests import digest, digest_file

SHARD = 64  # neighbouring rows that one process takes, since they often share their reference


@dataclass(frozen=True)
class Settings:
    """What a score depends on beside its images."""

    weights: str
    caps: CAPS
    repeats: int
    seed: int
    precision: str
    background: Background
    root: str  # rows are known by their paths, which other roots may have as well

    def columns(self) -> dict[str, Any]:
        """What the table of scores says of them."""
        template = self.caps.centre_map and digest_file(self.caps.centre_map)
        return {
            "repeats": self.repeats,
            "num_patches": self.caps.num_patches,
            "seed": self.seed,
            "weights": self.weights,
            "settings": digest([asdict(self), template, COMPUTES], length=12),
        }


@uncompiled
def score_table(
    pairs: pd.DataFrame | str | Path,
    out: str | Path | None = None,
    *,
    model: VTAMIQ | None = None,
    root: str | Path | None = None,
    caps: CAPS | None = None,
    repeats: int = 1,
    seed: int = 0,
    batch_size: int = 1,
    precision: str = "float32",
    background: Background = WHITE,
    workers: int = 0,
    progress: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> pd.DataFrame | None:
    """Score every pair of a table.

    >>> pairs = pd.DataFrame({"reference": ["a.png", "a.png"], "distorted": ["a.png", "missing.png"]})
    >>> table = score_table(pairs, model=model)
    >>> table["q"].tolist(), table["error"].tolist()
    ([0.0, nan], ['', 'cannot read missing.png: no such file'])

    Given `out`, the work can be interrupted at any time, and the same call resumes it. Rows of a finished `out` keep their
    scores; those that are new, had an error, or whose image files have another size or time by now are scored.

    Args:
        pairs: DataFrame with columns `reference` and `distorted`, or a file for `read_pairs`.
        out: `.csv`, `.parquet` or `.json` (a list of objects); None writes nothing.
        root: folder that paths are relative to; None: the folder of the file of pairs, or the current folder.
        model, caps, repeats, seed, precision, background: as for `vtamiq.score`, whose scores these are (in larger batches,
            up to rounding).
        batch_size: patch samples that go through the network at once.
        workers: processes that read images and cut patches; 0: this one does. Each holds one pair of images.
        rank, world_size: this process takes its share of the rows; give all processes the same table and `out`.

    Returns:
        The pairs in their order, with columns `q` (NaN for bad rows), `standard_error` (NaN for one draw), `error` (text,
        empty for good rows), `repeats`, `num_patches`, `seed`, `weights` (fingerprint of model and configuration),
        `settings` (digest of all that scores depend on) and, given `out`, `file_state` (sizes and times of the images).
        None if rows of other processes are still to come: the last one writes the table.

    Raises:
        ValueError: a bad argument or table, or `out` holds something else, was made with other settings, or cannot be
            written.
        CheckpointError, TypeError: as for `vtamiq.score`.
    """
    model = check_model(model)
    if out is None and world_size != 1:
        raise ValueError("several processes need out, where their scores meet")
    for name, value in {"repeats": repeats, "batch_size": batch_size, "world_size": world_size}.items():
        check_integer(name, value, 1)
    for name, value in {"seed": seed, "workers": workers, "rank": rank}.items():
        check_integer(name, value, 0)
    if rank >= world_size:
        raise ValueError(f"rank must be below world_size={world_size}, got {rank}")
    half_precision(torch.device("cpu"), precision)  # ValueError before anything is read
    from_file = isinstance(pairs, str | Path)
    table = read_pairs(pairs) if from_file else check_pairs(pairs, "the table of pairs")
    if root is None:
        root = Path(pairs).parent if from_file else Path()
    caps, absolute = caps_for(model, caps), os.path.abspath(os.fspath(root))
    background = check_background(background)
    settings = Settings(fingerprint(model), caps, int(repeats), int(seed), precision, background, absolute)
    store = Store(None if out is None else Path(out), settings.columns(), table, Path(root))
    mine = [key for k, key in enumerate(store.pending) if k // SHARD % world_size == rank]
    todo = [key for key in mine if key not in store.results or store.results[key].error]  # bad rows are tried again
    loader = load(_Pairs(todo, Path(root), settings), batch_size // repeats, min(workers, len(todo)), _collate)
    bar = tqdm(total=len(mine), initial=len(mine) - len(todo), desc="score", unit="pair", disable=not progress)
    with store, bar, evaluation(model):
        for items, inputs in loader:
            store.add(_score_items(model, items, inputs, settings, batch_size))
            bar.update(len(items))
    return store.finish()


class _Pairs(Dataset):
    """Items (key, stacked draws of each view, or what is wrong): images are read where the loader works; none raises."""

    def __init__(self, keys: list[Key], root: Path, settings: Settings):
        self.keys, self.root, self.settings = keys, root, settings
        self._reference: tuple[str, np.ndarray] | None = None  # the last one: neighbours share it

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Key, list[list[torch.Tensor]] | str]:
        key = self.keys[index]
        try:
            return key, self._draws(*key)
        except (ImageError, MemoryError) as error:
            text = str(error) or "there is too little memory for it"
            return key, text.encode("utf-8", "backslashreplace").decode()  # the root may have bytes that are not UTF-8

    def _draws(self, reference: str, distorted: str) -> list[list[torch.Tensor]]:
        if not (reference or distorted):
            raise ImageError("no images are given, or the line has too few or too many fields")
        if not (reference and distorted):
            missing = "distorted image" if reference else "reference"
            raise ImageError(f"no {missing} is given for {reference or distorted}")
        if self._reference is None or self._reference[0] != reference:
            self._reference = reference, read_samples(self.root / reference)
        settings = self.settings
        views = pair_views(*self._reference, distorted, read_samples(self.root / distorted), settings.background)
        options = (settings.caps, settings.repeats, settings.seed, distorted)
        return [stack(list(pair_samples(images, *options))) for images in views]


def _collate(items: list[tuple[Key, list[list[torch.Tensor]] | str]]) -> tuple[list[tuple], list[torch.Tensor]]:
    """Keys, each with its number of views or what is wrong, and the stacked draws of the good ones.

    Stacked where they are cut: every tensor that passes between processes is an open file, of which there are few.
    """
    views = [view for _, found in items if not isinstance(found, str) for view in found]
    return [(key, found if isinstance(found, str) else len(found)) for key, found in items], collate_draws(views)


def _score_items(
    model: VTAMIQ, items: list[tuple[Key, int | str]], inputs: list[torch.Tensor], settings: Settings, batch_size: int
) -> dict[Key, Result]:
    scores = forward(model, inputs, batch_size, settings.precision) if inputs else np.empty(0)
    views = [found for _, found in items if not isinstance(found, str)]
    draws = iter(draws_of(scores, views, settings.repeats))
    return {key: Result(None, None, found) if isinstance(found, str) else _result(next(draws)) for key, found in items}


def _result(draws: np.ndarray) -> Result:
    if not np.isfinite(draws).all():
        return Result(None, None, NOT_FINITE)
    mean, error = mean_and_error(draws)
    return Result(float(mean), float(error) if len(draws) > 1 else None)
