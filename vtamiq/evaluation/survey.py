"""What databases are on this disk, whether they are complete, and whether they give the answers that are known."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vtamiq.databases.loading import LOADERS, data_folder, find_databases, load_database
from vtamiq.databases.pipal import parts_of
from vtamiq.databases.reading import FolderIndex
from vtamiq.databases.schema import Database, DatabaseError
from vtamiq.evaluation.baselines import iqm_predictions
from vtamiq.evaluation.published import known_answer
from vtamiq.evaluation.tables import evaluate
from vtamiq.utils.configs import did_you_mean

TOLERANCE = 0.001  # published values have four digits; PSNR leaves nothing to choose but the last of them


def survey(
    data: str | os.PathLike[str] | None = None, names: Sequence[str] | None = None, *, check_images: bool = True
) -> pd.DataFrame:
    """Load every database that is found in a folder, as far as it can be.

    Args:
        data: the folder, None for `data_folder()`.
        names: only these; all that are found by default.
        check_images: open every image once (KADIS-700k excepted) to find missing, cut off and mismatched ones.

    Returns:
        One row per database: `database`, `folder` (relative to `data`), `pairs`, `references`, `preferences`, `score`,
        `better` (higher or lower), `lowest`, `highest`, `mean`, `status` ("complete"; "partial", if rows were left out or
        something is not as published; "unusable"; "not found", if it was named), and `problems`, a list of sentences.

    Raises:
        DatabaseError: there is no such folder, or a name is that of no database.
    """
    data = data_folder() if data is None else Path(data)
    found = find_databases(data)
    wanted = list(found) if names is None else [name.lower() for name in names]
    rows = []
    for name in wanted:
        if name not in LOADERS:
            raise DatabaseError(f"unknown database {name!r}{did_you_mean(name, LOADERS)}")
        if name in found:
            place = {"folder": found[name].relative_to(data).as_posix()}
            rows += [place | row for row in _look(name, found[name], check_images)]
        else:
            rows.append({"database": name, "status": "not found", "problems": []})
    counts = dict.fromkeys(("pairs", "references", "preferences"), "Int64")
    columns = ["database", "folder", *counts, "score", "better", "lowest", "highest", "mean", "status", "problems"]
    return pd.DataFrame(rows, columns=columns).astype(counts)


def _look(name: str, folder: Path, check_images: bool) -> list[dict]:
    """A row for the database, or for each of its parts that is there."""
    checked = {} if name == "kadis700k" else {"check_images": check_images}
    rows = []
    for options, remark in _ways(name, FolderIndex(folder)):
        label = f"{name} ({options['part']})" if "part" in options else name
        try:
            row = _describe(load_database(name, folder, strict=False, **options, **checked))
        except Exception as error:  # whatever one copy does, the others are to be seen
            row = {"database": label, "status": "unusable", "problems": [f"{error or type(error).__name__}"]}
        row["problems"] += remark
        rows.append(row)
    return rows


def _ways(name: str, index: FolderIndex) -> list[tuple[dict, list[str]]]:
    """Options with which to load what is there, and remarks: databases come in parts, and in several states."""
    if name == "pipal":
        return [({"part": part}, []) for part in parts_of(index)]
    if name == "live" and index.get("dmos_realigned.mat") is None and index.get("dmos.mat") is not None:
        return [({"realigned": False}, ["without dmos_realigned.mat, a separate download: these are the old scores"])]
    if name == "kadis700k":
        options, remarks = {}, []
        if index.get("kadis700k_friqa.csv") is None:
            options["labels"] = "none"
            remarks.append("without kadis700k_friqa.csv: no scores")
        if index.get("dist_imgs") is None and index.get("kadis700k/dist_imgs") is None:
            options["render"] = True
            remarks.append("without dist_imgs: distorted images can only be rendered, with render=True")
        return [(options, remarks)]
    return [({}, [])]


def _describe(database: Database) -> dict:
    scores = database.pairs["score"]
    return {
        "database": database.name,
        "pairs": len(database),
        "references": len(database.references),
        "preferences": 0 if database.preferences is None else len(database.preferences),
        "score": database.score_name,
        "better": "higher" if database.higher_better else "lower",
        "lowest": scores.min(),
        "highest": scores.max(),
        "mean": scores.mean(),
        "status": "partial" if database.omissions else "complete",
        "problems": list(database.omissions),
    }


def check_known_answer(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    workers: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> dict[str, object]:
    """Compare PSNR's correlations on a whole database with published ones, which tests files, pairing and direction.

    Args:
        name, root: as for `load_database`; the copy must be complete. LIVE is taken with its old DMOS, as published.
        workers, cache, progress: as for `iqm_predictions`.

    Returns:
        `database`, `n`, `srocc`, `srocc_published`, `krocc`, `krocc_published`, and `agrees`, whether both are within
        0.001 (None where nothing is published).

    Raises:
        DatabaseError: the copy cannot be loaded in full.
    """
    options = {"realigned": False} if name == "live" else {}
    database = load_database(name, root, **options)
    predictions = iqm_predictions(database, ["psnr"], workers=workers, cache=cache, progress=progress)
    measured = evaluate(predictions, bootstrap=0).iloc[0]
    known = known_answer(name)
    result: dict[str, object] = {"database": name, "n": len(database)}
    for value in ("srocc", "krocc"):
        result[value] = float(measured[value])
        result[f"{value}_published"] = known[value] if known else math.nan
    result["agrees"] = all(abs(measured[value] - known[value]) <= TOLERANCE for value in known) if known else None
    return result
