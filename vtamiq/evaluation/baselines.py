"""What a model is to be compared with: conventional metrics, and a look-up that never opens an image."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from vtamiq.databases.pairs import PairImages
from vtamiq.databases.schema import Database, LabelScale
from vtamiq.images.iqms import IQMS, iqm_scores, psnr
from vtamiq.scoring.predictions import PAIR_COLUMNS
from vtamiq.utils.files import write_table
from vtamiq.utils.processes import count_workers, executor, one_thread_per_process, run_jobs

__all__ = ["fingerprint", "iqm_predictions", "lookup_predictions"]

COMPUTES = 1  # raise when the same pairs give other values: what was kept before is then measured again
_CHUNK = 64  # pairs measured and kept at once


def iqm_predictions(
    database: Database,
    names: Sequence[str] = ("psnr", "ssim"),
    *,
    workers: int | None = 0,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Prediction rows of conventional metrics for every pair, `metric` naming them and `lower_better` their direction.

    Args:
        names: of `IQMS`, or "psnr", which counts at most 100 dB (equal images have an infinite one).
        workers: processes; None takes one per core, 0 and 1 work in this one. The result does not depend on it.
        cache: folder that keeps what is measured, so that an interrupted call goes on and a finished one is only read.
            It is for these pairs and metrics: others, or changed images, are measured anew.

    Returns:
        Rows for `evaluate`, to be grouped by `metric` at least; `q` is the metric's native value.

    Raises:
        ValueError: an unknown metric or an empty list of them.
        ImageError: an image cannot be read, or a pair has two sizes.
    """
    names = tuple(dict.fromkeys(names))
    unknown = [name for name in names if name != "psnr" and name not in IQMS]
    if unknown or not names:
        raise ValueError(f"name metrics of psnr, {', '.join(IQMS)}; got {', '.join(unknown) or 'none'}")
    folder = None if cache is None else Path(cache) / f"{database.name}-{fingerprint(database, names)}"
    chunks = [Chunk(_part(database, start), start, names, folder) for start in range(0, len(database), _CHUNK)]
    done = {chunk.start: values for chunk in chunks if (values := chunk.finished()) is not None}
    todo = [chunk for chunk in chunks if chunk.start not in done]
    with (
        tqdm(
            total=len(database), initial=sum(map(len, done.values())), desc=f"IQMs {database.name}", unit="pair",
            disable=not progress, leave=False,
        ) as bar,
        one_thread_per_process(),
        executor(min(count_workers(workers), len(todo))) as pool,
    ):  # fmt: skip
        for chunk, values in run_jobs(pool, _measure, todo):
            done[chunk.start] = values
            bar.update(len(values))
    values = pd.concat([done[start] for start in sorted(done)], ignore_index=True)
    pairs = database.pairs[[name for name in PAIR_COLUMNS if name in database.pairs]].reset_index(drop=True)
    tables = [
        pairs.assign(
            q=values[name],
            metric=name,
            lower_better=name != "psnr" and not IQMS[name].higher_better,
            synthetic=database.synthetic,
        )
        for name in names
    ]
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class Chunk:
    """Some consecutive pairs to be measured at once, and where the result is kept."""

    database: Database = field(repr=False)
    start: int
    names: tuple[str, ...]
    folder: Path | None

    @property
    def path(self) -> Path | None:
        return None if self.folder is None else self.folder / f"{self.start:07d}.parquet"

    def finished(self) -> pd.DataFrame | None:
        """What an earlier call measured; None if it did not get here."""
        if self.path is None or not self.path.exists():
            return None
        values = pd.read_parquet(self.path)
        return values if list(values) == list(self.names) and len(values) == len(self.database) else None


def _part(database: Database, start: int) -> Database:
    pairs = database.pairs.iloc[start : start + _CHUNK].reset_index(drop=True)
    return replace(database, pairs=pairs, preferences=None)


def _measure(chunk: Chunk) -> pd.DataFrame:
    images = PairImages(chunk.database)
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


def fingerprint(database: Database, of: Sequence[str] = ()) -> str:
    """Of all that decides what is measured: pairs, sizes and times of their files, versions, and the words `of`.

    Columns of the pairs that are among the words count with their values.
    """
    versions = [version(name) for name in ("torch", "piq")]
    content = sha256(json.dumps([*of, *versions, COMPUTES, database.crop, database.synthetic]).encode())
    wanted = dict.fromkeys(["ref_path", "dist_path", "dist_type", "level", "recipe_seed", *of])
    columns = [name for name in wanted if name in database.pairs]
    content.update(database.pairs[columns].to_csv(index=False).encode())
    files = database.pairs["ref_path"].unique().tolist()
    if "recipe_seed" not in database.pairs:
        files += database.pairs["dist_path"].tolist()
    for path in files:
        try:
            status = (database.root / path).stat()
        except OSError:  # it will be named when it is read
            continue
        content.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return content.hexdigest()[:16]


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
    return table.assign(
        q=table["q"].fillna(seen["q"].mean()), metric="lookup", lower_better=True, synthetic=test.synthetic
    )
