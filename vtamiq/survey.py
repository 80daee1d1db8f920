"""What databases are on this disk, whether they are complete, and whether they give the answers that are known."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vtamiq.baselines import iqm_predictions
from vtamiq.databases import Database, DatabaseError, find_databases, load_database
from vtamiq.evaluation import evaluate
from vtamiq.published import known_answer

__all__ = ["check_known_answer", "survey"]

TOLERANCE = 0.001  # published values have four digits; PSNR leaves nothing to choose but the last of them

# Databases that come in parts are listed by part: the options that load each.
_PARTS = {"pipal": [{"part": part} for part in ("train", "val", "ntire2022_val", "ntire2022_test")]}
# Those that people have in several states are loaded as the first of these that can be.
_STATES = {"kadis700k": [{}, {"render": True}, {"labels": "none"}, {"labels": "none", "render": True}]}


def survey(
    data: str | os.PathLike[str] | None = None, names: Sequence[str] | None = None, *, check_images: bool = True
) -> pd.DataFrame:
    """Every database that is found in a folder, loaded as far as it can be.

    Args:
        data: the folder, None for `vtamiq.databases.data_folder()`.
        names: only these; all that are found by default.
        check_images: open every image once (KADIS-700k excepted) to find missing, cut off and mismatched ones.

    Returns:
        One row per database: `database`, `folder` (relative to `data`), `pairs`, `references`, `preferences`, `score`,
        `better` (higher or lower), `lowest`, `highest`, `mean`, `status` ("complete", "partial", "unusable", or "not found"
        where it was named), and `problems`, what is wrong, a list of sentences.

    Raises DatabaseError if there is no such folder.
    """
    found = find_databases(data)
    root = Path(data) if data is not None else None
    rows = []
    for name in found if names is None else names:
        if name not in found:
            rows.append({"database": name, "status": "not found", "problems": []})
            continue
        folder = found[name].relative_to(root) if root is not None else found[name]
        rows += [{"folder": folder.as_posix()} | row for row in _look(name, found[name], check_images)]
    columns = [
        "database",
        "folder",
        "pairs",
        "references",
        "preferences",
        "score",
        "better",
        "lowest",
        "highest",
        "mean",
    ]
    return pd.DataFrame(rows, columns=[*columns, "status", "problems"]).astype(
        {"pairs": "Int64", "references": "Int64", "preferences": "Int64"}
    )


def _look(name: str, folder: Path, check_images: bool) -> list[dict]:
    """A row for the database, or for each of its parts that is there."""
    checked = {} if name == "kadis700k" else {"check_images": check_images}
    rows, problems = [], []
    for options in _PARTS.get(name, _STATES.get(name, [{}])):
        try:
            database = load_database(name, folder, strict=False, **options, **checked)
        except DatabaseError as error:
            problems.append(str(error))
            continue
        rows.append(_describe(database))
        if name in _STATES:
            break
    return rows or [{"database": name, "status": "unusable", "problems": problems}]


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
    """PSNR on a whole database against published correlations: tests files, pairing, direction and correlations at once.

    Args:
        name, root: as for `load_database`; the copy must be complete. LIVE is taken with its old DMOS, as published.
        workers, cache, progress: as for `vtamiq.baselines.iqm_predictions`.

    Returns:
        `database`, `n`, `srocc`, `srocc_published`, `krocc`, `krocc_published`, and `agrees`, whether both are within
        0.001 (None where nothing is published).

    Raises:
        DatabaseError: the copy cannot be loaded in full.
    """
    options = {"realigned": False} if name == "live" else {}
    database = load_database(name, root, **options)
    predictions = iqm_predictions(database, ["psnr"], workers=workers, cache=cache, progress=progress)
    result = evaluate(predictions, bootstrap=0).iloc[0]
    known = known_answer(name) or {"srocc": math.nan, "krocc": math.nan}
    agrees = None
    if not math.isnan(known["srocc"]):
        agrees = all(abs(result[value] - known[value]) <= TOLERANCE for value in known)
    return {
        "database": name,
        "n": len(database),
        "srocc": float(result["srocc"]),
        "srocc_published": known["srocc"],
        "krocc": float(result["krocc"]),
        "krocc_published": known["krocc"],
        "agrees": agrees,
    }
