"""Any models and metrics on any databases, each tested on the same rows: those that no model was trained or chosen on."""

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from vtamiq.caps import CAPS, caps_for
from vtamiq.databases.schema import Database
from vtamiq.databases.seen import unseen
from vtamiq.databases.splits import shared_pictures
from vtamiq.evaluation.baselines import fingerprint, iqm_predictions, lookup_predictions
from vtamiq.images.iqms import IQMS
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring.predictions import PAIR_COLUMNS, predict
from vtamiq.training.run import Run
from vtamiq.utils.files import write_table

__all__ = [
    "MARKS",
    "Candidate",
    "held_out",
    "load_candidate",
    "lookup_rows",
    "perfect_value",
    "predict_all",
    "shared_content",
    "tell_apart",
    "training_marks",
]

log = logging.getLogger(__name__)

UNKNOWN = "unknown data"


@dataclass(frozen=True)
class Candidate:
    """A model to be tested.

    Attributes:
        name: what tables call it.
        model: in evaluation mode.
        caps: how patches are drawn in the test.
        trained_on: name of the database of its last training, or "unknown data".
        seen: pictures that it was trained or validated on in all its stages, as `vtamiq.databases.seen` has them; None
        if unknown.
        checkpoint: where it comes from, as tables say it.
    """

    name: str
    model: VTAMIQ = field(repr=False)
    caps: CAPS
    trained_on: str = UNKNOWN
    seen: Sequence[Mapping[str, Any]] | None = field(default=None, repr=False)
    checkpoint: str = ""

    @property
    def perfect(self) -> float | None:
        """The score of a perfect copy, if it is the same for all: not so where the two images are looked at in places of
        their own."""
        return 0.0 if self.model.config.zero_anchor and self.caps.aligned else None


def load_candidate(
    path: str | os.PathLike[str], name: str | None = None, *, num_patches: int | None = None
) -> Candidate:
    """A model from the folder of a finished run, a folder of `save_pretrained`, or a checkpoint of the authors'
    repository.

    What `train` wrote knows what it has seen; whatever others are tested on must be known to be unseen.

    Args:
        name: default "VTAMIQ (<what it was trained on>)", or "VTAMIQ <folder or file>" where that is not known.
        num_patches: patches per image in the test; default as the run tested, else that of `CAPS`.

    Raises:
        CheckpointError: no such file or folder, or no model in it.
    """
    path = Path(path)
    if (path / "result.json").is_file():
        run = Run.load(path)
        caps = caps_for(run.model, run.stage.caps, num_patches=num_patches or run.stage.test_patches)
        return Candidate(
            name or f"VTAMIQ ({run.trained_on})", run.model, caps, run.trained_on, run.model.seen, _shown(path)
        )
    model = VTAMIQ.from_original(path) if path.is_file() else VTAMIQ.from_pretrained(path)
    changes = {"num_patches": num_patches} if num_patches else {}
    trained_on = model.seen[-1]["database"] if model.seen else UNKNOWN
    name = name or f"VTAMIQ {_shown(path)}"
    return Candidate(name, model.eval(), caps_for(model, **changes), trained_on, model.seen, _shown(path))


def _shown(path: Path) -> str:
    """The last two parts of a path: enough to know it by, and nothing of the machine."""
    return "/".join(path.absolute().parts[-2:])


def held_out(database: Database, candidates: Iterable[Candidate]) -> Database | None:
    """The pairs whose contents no candidate was trained or validated on; None if none is left.

    Pictures go by name and by the bytes of their files (`vtamiq.databases.seen`); `shared_content` tells what that may
    miss.
    """
    return unseen(database, [entry for candidate in candidates for entry in candidate.seen or ()])


def tell_apart(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same candidates; those of one name have where they come from added to it."""
    names = [candidate.name for candidate in candidates]
    return [
        replace(candidate, name=f"{candidate.name} {candidate.checkpoint}")
        if names.count(candidate.name) > 1
        else candidate
        for candidate in candidates
    ]


def shared_content(candidates: Iterable[Candidate], databases: Iterable[Database]) -> list[str]:
    """A sentence for every candidate and database whose pictures come from one source, so that it is no test on unseen
    contents; and for every candidate of which nobody knows what it has seen."""
    sentences = []
    for candidate in candidates:
        if candidate.seen is None:
            sentences.append(f"{candidate.name}: it is not known which pictures it was trained on")
        for database in databases:
            for name in dict.fromkeys(entry["database"] for entry in candidate.seen or ()):
                source = shared_pictures(name, database.name)
                if source is not None and name != database.name:
                    sentences.append(
                        f"{candidate.name} saw pictures of {name}, {database.name} has the same source: {source}"
                    )
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
    """Prediction rows of every candidate and conventional metric on every pair.

    Args:
        databases: already reduced to what may be tested (`held_out`).
        iqms: as for `iqm_predictions`.
        repeats, seed, batch_size: as for `predict`.
        workers: processes that load images, or that measure conventional metrics.
        cache: folder that keeps what is finished: candidate by candidate, and metrics in chunks of pairs.

    Returns:
        Columns of `predict` and: `method`, the name of a row of result tables; `metric`, "VTAMIQ" or the metric's key;
        `trained_on` and `checkpoint` (empty for conventional metrics); `lower_better`; `perfect`, the value of a perfect
        copy (NaN if it varies); `split` ("held out").

    Raises:
        ValueError: nothing to test, two candidates of one name (see `tell_apart`), or rows without a score.
    """
    names = [candidate.name for candidate in candidates]
    if len(set(names)) < len(names):
        raise ValueError(f"candidates need different names, got {', '.join(names)}")
    if not databases or not (names or iqms):
        raise ValueError("there is nothing to test: name a database, and a candidate or a metric")
    tables = []
    for database in databases:
        if database.pairs["score"].isna().any():
            raise ValueError(
                f"{database.name}: {database.pairs['score'].isna().sum()} pairs have no score to compare with"
            )
        for candidate in candidates:
            options = {
                "repeats": repeats,
                "seed": seed,
                "batch_size": batch_size,
                "workers": workers,
                "progress": progress,
            }
            table = _predict(candidate, database, None if cache is None else Path(cache), options)
            tables.append(
                table.assign(
                    method=candidate.name,
                    metric="VTAMIQ",
                    trained_on=candidate.trained_on,
                    checkpoint=candidate.checkpoint,
                    perfect=candidate.perfect,
                )
            )
        if iqms:
            table = iqm_predictions(database, iqms, workers=workers, cache=cache, progress=progress)
            labels = {name: iqm.label for name, iqm in IQMS.items()} | {"psnr": "PSNR"}
            perfect = {name: iqm.perfect for name, iqm in IQMS.items()} | {"psnr": 100.0}
            of = table["metric"]
            tables.append(table.assign(method=of.map(labels), trained_on="", checkpoint="", perfect=of.map(perfect)))
    return pd.concat(tables, ignore_index=True).assign(split="held out")


def lookup_rows(training: Database | None, databases: Iterable[Database]) -> list[pd.DataFrame]:
    """Rows of the look-up baseline for `predict_all`'s table, where it makes sense: on synthetic labels, with the
    distortions numbered alike. None for `training` gives none."""
    if training is None or not training.synthetic:
        return []
    return [
        lookup_predictions(training, database).assign(method="look-up", trained_on=training.name)
        for database in databases
        if database.synthetic
    ]


MARKS = {"*": "trained on it last", "†": "trained on it in an earlier stage", "‡": "part of its labels"}


def training_marks(
    predictions: pd.DataFrame, candidates: Iterable[Candidate], databases: Iterable[Database]
) -> pd.DataFrame:
    """What each method has to do with each database, as texts for `heatmap`: one of `MARKS`, or "".

    Args:
        predictions: of `predict_all`, and of `lookup_rows`.
        candidates, databases: those that they are of.

    Returns:
        Methods × databases, in order of appearance.
    """
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


def _predict(candidate: Candidate, database: Database, cache: Path | None, options: Mapping) -> pd.DataFrame:
    if cache is None:
        return predict(candidate.model, database, candidate.caps, **options)
    decides = candidate.model.config, candidate.caps, options["repeats"], options["seed"]
    digest = hashlib.sha256(repr(decides).encode())
    for name, weights in candidate.model.state_dict().items():
        digest.update(name.encode() + weights.detach().cpu().contiguous().numpy().tobytes())
    key = f"{digest.hexdigest()[:16]}-{fingerprint(database, PAIR_COLUMNS)}"
    path = cache / f"{database.name}-vtamiq-{key}.parquet"
    if path.exists():
        log.info("%s on %s: read from an earlier call", candidate.name, database.name)
        return pd.read_parquet(path)
    table = predict(candidate.model, database, candidate.caps, **options)
    write_table(table, path)
    return table
