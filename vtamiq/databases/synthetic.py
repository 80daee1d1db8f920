"""Databases made by `vtamiq.synthesis`: the layout of KADID-10k, with a manifest, and metrics in place of observers.

images/I01.png            references
images/I01_10_03.png      distorted: reference, type, level
dmos.csv                  dist_img,ref_img,dmos,var; like KADID's, 5 is best, 1 is worst, var is a standard deviation
iqm_scores.csv            what the metrics gave, in their own units
quantiles.json            the tables that turned those into ranks
manifest.json             how all this was made
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from vtamiq.databases.base import (
    Database,
    DatabaseError,
    FolderIndex,
    locate_images,
    numbers,
    pair_table,
    read_table,
)

__all__ = ["MANIFEST", "MANIFEST_FORMAT", "load_synthetic", "read_kadid_layout", "read_manifest"]

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1


def load_synthetic(root: str | Path, *, strict: bool = True) -> Database:
    """Load a folder that `vtamiq.synthesis.synthesize` has finished; the database is called after the folder.

    Raises DatabaseError if the folder is unfinished or none of its kind, a label is damaged, or (unless `strict` is off)
    images or rows are missing.
    """
    index = FolderIndex(root)
    manifest = read_manifest(index.root)
    if manifest is None:
        raise DatabaseError(f"{index.root} has no {MANIFEST}: vtamiq did not make this folder")
    if not manifest["complete"]:
        raise DatabaseError(f"{index.root} is unfinished; call synthesize again with the same arguments to go on")
    table, omissions = read_kadid_layout(index, strict=strict)
    if len(table) != manifest["pairs"] and not omissions:
        message = f"dmos.csv has {len(table)} rows, {manifest['pairs']} were written"
        if strict:
            raise DatabaseError(f"{index.root}: {message}; restore the file or load with strict=False")
        omissions = (message,)
    subsets = {entry["ref_id"]: entry["subset"] for entry in manifest["references"]}
    contents = {entry["ref_id"]: entry.get("content", entry["ref_id"]) for entry in manifest["references"]}
    skipped = [f"{source} was skipped: {reason}" for source, reason in manifest["skipped"].items()]
    name = index.root.resolve().name
    score_name = f"synthetic MOS (consensus of {len(manifest['metrics'])} IQMs)"
    pairs = pair_table(
        database=name,
        subset=table["ref_id"].map(subsets).fillna("none"),
        ref_id=table["ref_id"],
        ref_path=table["ref_img"],
        dist_path=table["dist_img"],
        dist_type=table["dist_type"],
        dist_name=table["dist_type"].astype("str").map(manifest["types"]).fillna(""),
        level=table["level"],
        score=table["score"],
        score_name=score_name,
        higher_better=True,
        score_std=table["score_std"],
        score_lo=1.0,
        score_hi=5.0,
        label_source=table["label_source"],
        content=table["ref_id"].map(contents).fillna(table["ref_id"]),
    )
    return Database(
        name=name,
        root=index.root,
        pairs=pairs,
        score_name=score_name,
        higher_better=True,
        synthetic=True,
        omissions=(*skipped, *omissions),
    )


def read_kadid_layout(index: FolderIndex, *, strict: bool = True) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read `dmos.csv` and find its images.

    Returns a table with `ref_id, ref_img, dist_img, dist_type, level, score, score_std, label_source`, and omissions.
    """
    table = read_table(index, "dmos.csv", ("dist_img", "ref_img", "dmos", "var"))
    parts = table["dist_img"].str.extract(r"^(?P<ref_id>.+)_(?P<dist_type>\d{1,3})_(?P<level>\d{1,3})\.\w+$")
    stem = table["ref_img"].str.replace(r"\.\w+$", "", regex=True)
    bad = parts["ref_id"].isna() | (parts["ref_id"].str.lower() != stem.str.lower())
    if bad.any():
        row = table[bad].iloc[0]
        raise DatabaseError(
            f"{row['label_source']}: expected <reference>_<type>_<level>.png and <reference>.png, "
            f"found {row['dist_img']!r} and {row['ref_img']!r}"
        )
    table = table.assign(
        ref_id=stem,
        dist_type=pd.to_numeric(parts["dist_type"]).astype("Int16"),
        level=pd.to_numeric(parts["level"]).astype("Int16"),
        score=numbers(table, "dmos"),
        score_std=numbers(table, "var"),
    ).drop(columns=["dmos", "var"])
    return locate_images(index, table, {"ref_img": "images", "dist_img": "images"}, strict=strict)


def read_manifest(root: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None if it has none; DatabaseError if it is damaged or of another format."""
    path = root / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        missing = {"format", "complete", "pairs", "types", "metrics", "references", "skipped"} - set(manifest)
    except (OSError, ValueError, TypeError) as error:
        raise DatabaseError(f"cannot read {path}: {error}; remove the folder and make it again") from error
    if missing:
        raise DatabaseError(f"{path} lacks {', '.join(sorted(missing))}; remove the folder and make it again")
    if manifest["format"] != MANIFEST_FORMAT:
        raise DatabaseError(f"{path} has format {manifest['format']!r}, this version of vtamiq reads {MANIFEST_FORMAT}")
    return manifest
