"""What a model is to be compared with: conventional metrics, and a look-up that never opens an image."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from tqdm.auto import tqdm

from vtamiq.databases.pairs import PairImages
from vtamiq.databases.schema import Database, LabelScale
from vtamiq.images.iqms import IQMS, iqm_scores, psnr
from vtamiq.scoring.predictions import PAIR_COLUMNS
from vtamiq.utils.digests import digest
from vtamiq.utils.files import read_table, write_table
from vtamiq.utils.processes import count_workers, executor, one_thread_per_process, run_jobs

COMPUTES = 1  # raise when the same pairs give other values: what was kept before is then measured again
_CHUNK = 64  # pairs measured and kept at once


class _Chunk(NamedTuple):
    start: int
    pairs: Database
    names: Sequence[str]
    path: Path | None  # where the result is kept


def iqm_predictions(
    database: Database,
    names: Sequence[str] = ("psnr", "ssim"),
    *,
    workers: int | None = 0,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure every pair by conventional metrics.

    Args:
        names: of `IQMS`, or "psnr", which counts at most 100 dB (equal images have an infinite one).
        workers: processes; None takes one per core, 0 and 1 work in this one. The result does not depend on it.
        cache: folder that keeps what is measured, so that an interrupted call resumes and a finished one is only read;
            other pairs or metrics, or changed images, are measured anew.

    Returns:
        Rows for `evaluate`, to be grouped by `metric` at least; `q` is the metric's native value, `lower_better` its
        direction.

    Raises:
        ValueError: an unknown metric or an empty list of them.
        ImageError: an image cannot be read, or a pair has two sizes.
    """
    names = tuple(dict.fromkeys(names))
    unknown = [name for name in names if name != "psnr" and name not in IQMS]
    if unknown or not names:
        raise ValueError(f"name metrics of psnr, {', '.join(IQMS)}; got {', '.join(unknown) or 'none'}")
    chunks = _chunks(database, names, cache)
    done = {chunk.start: read_table(chunk.path, names) for chunk in chunks if chunk.path and chunk.path.exists()}
    todo = [chunk for chunk in chunks if chunk.start not in done]
    bar = tqdm(
        total=len(database), initial=sum(map(len, done.values())), desc=f"IQMs {database.name}", unit="pair",
        disable=not progress, leave=False,
    )  # fmt: skip
    with bar, one_thread_per_process(), executor(min(count_workers(workers), len(todo))) as pool:
        for chunk, values in run_jobs(pool, _measure, todo):
            done[chunk.start] = values
            bar.update(len(values))
    values = pd.concat([done[start] for start in sorted(done)], ignore_index=True)
    pairs = _pairs_of(database).assign(synthetic=database.synthetic)
    lower_better = {name: name != "psnr" and not IQMS[name].higher_better for name in names}
    tables = [pairs.assign(q=values[name], metric=name, lower_better=lower_better[name]) for name in names]
    return pd.concat(tables, ignore_index=True)


def _chunks(database: Database, names: Sequence[str], cache: str | os.PathLike[str] | None) -> list[_Chunk]:
    folder = None if cache is None else Path(cache) / f"{database.name}-{fingerprint(database, names)}"
    chunks = []
    for start in range(0, len(database), _CHUNK):
        pairs = database.pairs.iloc[start : start + _CHUNK].reset_index(drop=True)
        path = None if folder is None else folder / f"{start:07d}-{_CHUNK}.parquet"
        chunks.append(_Chunk(start, replace(database, pairs=pairs, preferences=None), names, path))
    return chunks


def _measure(chunk: _Chunk) -> pd.DataFrame:
    images = PairImages(chunk.pairs)
    iqms = [name for name in chunk.names if name != "psnr"]
    rows = []
    for row in range(len(images)):
        pair = images[row]
        scores = iqm_scores(*pair, iqms) if iqms else {}
        rows.append(scores | ({"psnr": psnr(*pair)} if "psnr" in chunk.names else {}))
    values = pd.DataFrame(rows)[list(chunk.names)]
    if chunk.path is not None:
        write_table(values, chunk.path)
    return values


def _pairs_of(database: Database) -> pd.DataFrame:
    return database.pairs[[name for name in PAIR_COLUMNS if name in database.pairs]].reset_index(drop=True)


def fingerprint(database: Database, of: Sequence[str] = ()) -> str:
    """Digest what decides a measurement: pairs, sizes and times of their files, versions, and the words `of`.

    Columns of the pairs that are among the words count with their values.
    """
    wanted = dict.fromkeys(["ref_path", "dist_path", "dist_type", "level", "recipe_seed", *of])
    pairs = database.pairs[[name for name in wanted if name in database.pairs]]
    files = pairs["ref_path"].unique().tolist()
    if "recipe_seed" not in pairs:
        files += pairs["dist_path"].tolist()
    states = []
    for path in map(database.path, files):
        if path.exists():  # a missing one is named when it is read
            states.append((path.stat().st_size, path.stat().st_mtime_ns))
    versions = [version(name) for name in ("torch", "piq")]
    decides = [*of, *versions, COMPUTES, database.crop, database.synthetic, states]
    return digest(json.dumps(decides) + pairs.to_csv(index=False))


def lookup_predictions(training: Database, test: Database) -> pd.DataFrame:
    """Predict each (type, level) cell by its mean over the training rows, without looking at an image.

    Cells without training rows get the mean of all.
    """
    cells = ["dist_type", "level"]
    labels = LabelScale.fit(training)
    seen = training.pairs[cells].assign(q=labels.to_distortion(training.pairs["score"].to_numpy(dtype=float)))
    means = seen.groupby(cells, as_index=False)["q"].mean()
    table = _pairs_of(test).merge(means, on=cells, how="left")
    q = table["q"].fillna(seen["q"].mean())
    return table.assign(q=q, metric="lookup", lower_better=True, synthetic=test.synthetic)
