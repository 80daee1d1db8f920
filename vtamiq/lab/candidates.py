"""Any models and metrics on any databases, each tested on the same rows: those that no model was trained or chosen on."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from vtamiq.caps import CAPS, caps_for
from vtamiq.databases.schema import Database, DatabaseError
from vtamiq.databases.seen import unseen
from vtamiq.databases.splits import shared_pictures
from vtamiq.evaluation.baselines import fingerprint, iqm_predictions, lookup_predictions
from vtamiq.images.iqms import IQMS
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring.predictions import PAIR_COLUMNS, predict
from vtamiq.scoring.scores import COMPUTES
from vtamiq.training.run import Run
from vtamiq.utils.digests import digest, digest_weights
from vtamiq.utils.files import read_table, write_table

log = logging.getLogger(__name__)

UNKNOWN = "unknown data"
MARKS = {"*": "trained on it last", "†": "trained on it in an earlier stage", "‡": "part of its labels"}


@dataclass(frozen=True)
class Candidate:
    """A model to be tested, in evaluation mode."""

    name: str  # in tables
    model: VTAMIQ = field(repr=False)
    caps: CAPS  # of the test
    trained_on: str = UNKNOWN  # name of the database of its last training
    seen: Sequence[Mapping[str, Any]] | None = field(default=None, repr=False)  # `vtamiq.databases.seen`; None: unknown
    checkpoint: str = ""  # the last two parts of the path that it comes from

    @property
    def perfect(self) -> float | None:
        """The score of a perfect copy; None if it varies, as where the two images are cut at different places."""
        return 0.0 if self.model.config.zero_anchor and self.caps.aligned else None


def load_candidate(path: str | os.PathLike[str], name: str = "", *, num_patches: int = 0) -> Candidate:
    """Load a model from a finished run, a folder of `save_pretrained`, or the authors' checkpoint; else CheckpointError.

    `num_patches` per image in the test; 0 for as many as the run tested with, else the default of `CAPS`.
    """
    path = Path(path)
    checkpoint = "/".join(path.absolute().parts[-2:])
    if (path / "result.json").is_file():
        run = Run.load(path)
        caps = caps_for(run.model, run.stage.caps, num_patches=num_patches or run.stage.test_patches)
        name = name or f"VTAMIQ ({run.trained_on})"
        return Candidate(name, run.model, caps, run.trained_on, run.model.seen, checkpoint)
    model = VTAMIQ.from_original(path) if path.is_file() else VTAMIQ.from_pretrained(path)
    caps = caps_for(model, num_patches=num_patches or CAPS().num_patches)
    trained_on = model.seen[-1]["database"] if model.seen else UNKNOWN
    return Candidate(name or f"VTAMIQ {checkpoint}", model.eval(), caps, trained_on, model.seen, checkpoint)


def held_out(databases: Sequence[Database], candidates: Iterable[Candidate]) -> tuple[list[Database], pd.DataFrame]:
    """The part of each database that no candidate has seen in training, and a table; DatabaseError if none is left."""
    seen = [entry for candidate in candidates for entry in candidate.seen or ()]
    parts = [unseen(database, seen) for database in databases]
    if not any(parts):
        raise DatabaseError("nothing is left to test: all of it was trained or validated on")
    rows = [
        {
            "database": database.name,
            "references": len(database.references),
            "tested": len(part.references) if part else 0,
            "pairs tested": len(part) if part else 0,
            "distortions": database.pairs["dist_name"].nunique(),
            "score": database.score_name,
            "better": "higher" if database.higher_better else "lower",
            "synthetic": database.synthetic,
        }
        for database, part in zip(databases, parts, strict=True)
    ]
    return [part for part in parts if part], pd.DataFrame(rows)


def tell_apart(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same candidates; where they come from is added to names that several share."""
    names = [candidate.name for candidate in candidates]
    return [
        replace(each, name=f"{each.name} {each.checkpoint}") if names.count(each.name) > 1 else each
        for each in candidates
    ]


def shared_content(candidates: Iterable[Candidate], databases: Iterable[Database]) -> list[str]:
    """Warn, in sentences, of candidates whose training is unknown or used a database with images of the same source."""
    sentences = []
    for candidate in candidates:
        if candidate.seen is None:
            sentences.append(f"{candidate.name}: it is not known which pictures it was trained on")
        for database in databases:
            for name in dict.fromkeys(entry["database"] for entry in candidate.seen or ()):
                source = shared_pictures(name, database.name)
                if source is not None and name != database.name:
                    saw = f"{candidate.name} saw pictures of {name}"
                    sentences.append(f"{saw}, {database.name} has the same source: {source}")
    return sentences


def predict_all(
    candidates: Sequence[Candidate],
    databases: Sequence[Database],
    iqms: Sequence[str] = ("psnr", "ssim"),
    *,
    repeats: int = 4,
    seed: int = 0,
    batch_size: int = 16,
    workers: int = 0,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Predict every pair with every candidate and conventional metric.

    Args:
        databases: already reduced to what may be tested (`held_out`).
        iqms: as for `iqm_predictions`.
        repeats, seed, batch_size, workers: as for `predict`.
        cache: folder that keeps what is finished: candidate by candidate, and metrics in chunks of pairs.

    Returns columns of `predict` and `method`; `metric`, "VTAMIQ" or its key; `trained_on`, `checkpoint`; `perfect`, the
    value of a perfect copy (NaN if it varies). ValueError for two candidates of one name, or rows without a score.
    """
    names = [candidate.name for candidate in candidates]
    if len(set(names)) < len(names):
        raise ValueError(f"candidates need different names, got {', '.join(names)}")
    for database in databases:
        if missing := database.pairs["score"].isna().sum():
            raise ValueError(f"{database.name}: {missing} pairs have no score to compare with")
    options = {"repeats": repeats, "seed": seed, "batch_size": batch_size, "workers": workers, "progress": progress}
    tables = []
    for database in databases:
        tables += [_predict(candidate, database, cache, options) for candidate in candidates]
        if iqms:
            tables.append(_measure(database, iqms, workers=workers, cache=cache, progress=progress))
    return pd.concat(tables, ignore_index=True).assign(split="held out")


def _predict(
    candidate: Candidate, database: Database, cache: str | os.PathLike[str] | None, options: Mapping[str, Any]
) -> pd.DataFrame:
    """Rows of one candidate, from the cache where the same was predicted before."""
    path = None
    if cache is not None:
        decides = repr((candidate.model.config, candidate.caps, options["repeats"], options["seed"]))
        key = digest(f"{digest_weights(candidate.model)} {COMPUTES} {decides}")
        path = Path(cache) / f"{database.name}-vtamiq-{key}-{fingerprint(database, PAIR_COLUMNS)}.parquet"
    if path is not None and path.exists():
        log.info("%s on %s: read from an earlier call", candidate.name, database.name)
        table = read_table(path, ["q"])
    else:
        table = predict(candidate.model, database, candidate.caps, **options)
        if path is not None:
            write_table(table, path)
    return table.assign(
        method=candidate.name,
        metric="VTAMIQ",
        trained_on=candidate.trained_on,
        checkpoint=candidate.checkpoint,
        perfect=candidate.perfect,
    )


def _measure(database: Database, iqms: Sequence[str], **options: Any) -> pd.DataFrame:
    """Rows of the conventional metrics."""
    table = iqm_predictions(database, iqms, **options)
    labels = {name: iqm.label for name, iqm in IQMS.items()} | {"psnr": "PSNR"}
    perfect = {name: iqm.perfect for name, iqm in IQMS.items()} | {"psnr": 100.0}
    key = table["metric"]
    return table.assign(method=key.map(labels), trained_on="", checkpoint="", perfect=key.map(perfect))


def lookup_rows(training: Database | None, databases: Iterable[Database]) -> list[pd.DataFrame]:
    """Rows of the look-up baseline for `predict_all`'s table: on synthetic labels only; none without `training`."""
    if training is None or not training.synthetic:
        return []
    return [
        lookup_predictions(training, database).assign(method="look-up", trained_on=training.name)
        for database in databases
        if database.synthetic
    ]


def training_marks(
    predictions: pd.DataFrame, candidates: Iterable[Candidate], databases: Iterable[Database]
) -> pd.DataFrame:
    """How each method's training relates to each database (methods × databases), for `heatmap`: one of `MARKS`, or ""."""
    seen = {each.name: {entry["database"] for entry in each.seen or ()} for each in candidates}
    labelled_by = {each.name: set(each.pairs.filter(regex="^rank_")) for each in databases}
    rows = predictions[["method", "metric", "trained_on", "database"]].drop_duplicates(["method", "database"])
    marks = [
        "*" if trained_on == database
        else "†" if database in seen.get(method, ())
        else "‡" if f"rank_{metric}" in labelled_by[database]
        else ""
        for method, metric, trained_on, database in rows.itertuples(index=False)
    ]  # fmt: skip
    table = rows.assign(mark=marks).pivot(index="method", columns="database", values="mark").fillna("")
    return table.loc[rows["method"].unique(), rows["database"].unique()]


def perfect_value(rows: pd.DataFrame) -> float | None:
    """The value that the method of these rows gives a perfect copy; None if it is not known."""
    value = rows["perfect"].iloc[0]
    return None if pd.isna(value) else float(value)
