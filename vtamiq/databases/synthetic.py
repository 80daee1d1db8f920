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

from vtamiq.databases.base import Database, DatabaseError
from vtamiq.databases.kadid import read_kadid_layout
from vtamiq.databases.reading import Facts, FolderIndex

__all__ = ["MANIFEST", "MANIFEST_FORMAT", "load_synthetic", "read_manifest"]

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1


def load_synthetic(root: str | Path, *, strict: bool = True, check_images: bool = True) -> Database:
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
    rows = read_kadid_layout(index, strict=strict)
    table = rows.table
    if len(table) != manifest["pairs"] and not rows.omissions:
        message = f"dmos.csv has {len(table)} rows, {manifest['pairs']} were written"
        if strict:
            raise DatabaseError(f"{index.root}: {message}; restore the file or load with strict=False")
        rows.omissions.append(message)
    skipped = [f"{source} was skipped: {reason}" for source, reason in manifest["skipped"].items()]
    rows.omissions[:0] = skipped
    subsets = {entry["ref_id"]: entry["subset"] for entry in manifest["references"]}
    contents = {entry["ref_id"]: entry.get("content", entry["ref_id"]) for entry in manifest["references"]}
    rows.table = table.assign(
        subset=table["ref_id"].map(subsets).fillna("none"),
        content=table["ref_id"].map(contents).fillna(table["ref_id"]),
        dist_name=table["dist_type"].astype("str").map(manifest["types"]).fillna(""),
    )
    facts = Facts(
        name=index.root.resolve().name,
        score_name=f"synthetic MOS (consensus of {len(manifest['metrics'])} IQMs)",
        higher_better=True,
        score_lo=1.0,
        score_hi=5.0,
    )
    return rows.database(facts, check_images=check_images, synthetic=True)


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
