"""Databases made by `synthesize`: the layout of KADID-10k, a manifest, and metrics in place of observers.

images/I01.png            references
images/I01_10_03.png      distorted: reference, type, level
dmos.csv                  dist_img,ref_img,dmos,var; like KADID's, 5 is best, 1 is worst, var is a standard deviation
iqm_scores.csv            values of the metrics, in their own units
quantiles.json            tables that turn those into ranks
manifest.json             how all this was made

Databases of recipes have no distorted images, but a column `recipe_seed` in `dmos.csv`: `vtamiq.databases.pairs` renders an
image from its reference, type, level and seed. Recipes from a folder of photographs have no references either: the manifest
says where the photographs are, relative to itself. Recipes may have no labels.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vtamiq.databases.kadid import read_kadid_labels, read_kadid_layout
from vtamiq.databases.reading import Facts, FolderIndex, LabelRows
from vtamiq.databases.schema import Database, DatabaseError
from vtamiq.utils.configs import did_you_mean
from vtamiq.utils.digests import digest, digest_file
from vtamiq.utils.files import read_json

if TYPE_CHECKING:
    from vtamiq.images.iqms import QuantileTables  # which needs torch: at run time only where it is needed

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 2
_ENTRIES = {
    "format", "complete", "pairs", "types", "metrics", "references", "skipped", "size", "recipes_only", "photographs"
}  # fmt: skip


def load_synthetic(
    root: str | os.PathLike[str],
    *,
    strict: bool = True,
    check_images: bool = True,
    label: str = "consensus",
    photographs: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Database:
    """Load a folder that `synthesize` has finished; the database is called after the folder.

    The pairs have further columns: for each metric `native_<iqm>`, its value in its own units and direction, and
    `rank_<iqm>`, its rank in 0..1 (0 a perfect copy); and `ref_sha256`, the digest of the reference's photograph.

    Args:
        strict, check_images: see `load_database`. Photographs of recipes are compared with those that were labelled.
        label: what the scores are: 5 - 4 times the mean rank of all metrics ("consensus"), the mean weighted by
            `agreement_weights` ("weighted"), or the rank of the named metric.
        photographs: folder of the photographs of recipes; None takes the one in the manifest.
        cache: folder that keeps rendered images of recipes, of any number of databases; None renders them every time.

    Errors as for `load_database`; DatabaseError also if the photographs are not those that the recipes are for.
    """
    index = FolderIndex(root)
    manifest = read_manifest(index.root)
    if manifest is None:
        raise DatabaseError(f"{root} has no {MANIFEST}: vtamiq did not make this folder")
    if not manifest["complete"]:
        raise DatabaseError(f"{root} is unfinished; call synthesize again with the same arguments to go on")
    recipes = manifest["recipes_only"]
    if not recipes and (photographs is not None or cache is not None):
        raise DatabaseError(f"{root} has its images: photographs and cache are for recipes only")
    rows = _recipe_rows(index, manifest, strict) if recipes else read_kadid_layout(index, strict=strict)
    if len(rows.table) != manifest["pairs"] and not rows.omissions:
        message = f"dmos.csv has {len(rows.table)} rows, {manifest['pairs']} were written"
        rows.tell(message, f"restore the file in {root} or load with strict=False")
    rows.omissions[:0] = [f"{source} was skipped: {reason}" for source, reason in manifest["skipped"].items()]
    _add_references(rows, manifest)
    meaning = _add_scores(rows, manifest, label)
    name = index.root.resolve().name
    facts = Facts(name=name, score_name=f"synthetic score ({meaning})", higher_better=True, score_lo=1.0, score_hi=5.0)
    extra = [column for column in rows.table if column.startswith(("ref_sha256", "recipe_seed", "native_", "rank_"))]
    database = rows.database(facts, check_images=check_images and not recipes, extra=extra, synthetic=True)
    if not recipes:
        return database
    crop = tuple(manifest["size"]) if manifest["size"] else None
    cache = None if cache is None else Path(cache) / f"{name}-{digest(manifest)}"
    used = set(database.references) if check_images else set()
    return replace(database, root=_photographs(index.root, manifest, photographs, used), crop=crop, cache=cache)


def read_manifest(root: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None if it has none; DatabaseError if it is damaged or of another format."""
    path = root / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = read_json(path, "remove the folder and make it again")
    except (OSError, ValueError) as error:
        raise DatabaseError(f"cannot read {error}") from error
    missing = _ENTRIES - set(manifest)
    format = manifest["format"] if "format" not in missing else MANIFEST_FORMAT
    if format != MANIFEST_FORMAT:
        raise DatabaseError(f"{path} has format {format!r}, this version of vtamiq reads {MANIFEST_FORMAT}")
    if missing:
        raise DatabaseError(f"{path} lacks {', '.join(sorted(missing))}; remove the folder and make it again")
    return manifest


def file_digest(path: Path) -> str | None:
    """Digest of a file; None if it cannot be read."""
    try:
        return digest_file(path)
    except OSError:
        return None


def _add_references(rows: LabelRows, manifest: Mapping[str, Any]) -> None:
    """Columns of what the manifest says of references and types."""
    known = {entry["ref_id"]: entry for entry in manifest["references"]}
    entries = [known.get(ref_id, {}) for ref_id in rows.table["ref_id"]]
    rows.table = rows.table.assign(
        subset=[entry.get("subset", "none") for entry in entries],
        content=[entry.get("content", ref_id) for entry, ref_id in zip(entries, rows.table["ref_id"], strict=True)],
        dist_name=rows.table["dist_type"].astype("str").map(manifest["types"]).fillna(""),
        ref_sha256=pd.Series([entry.get("sha256") or "" for entry in entries], dtype="str"),
    )
    if "recipe_seed" in rows.table:
        seeds = [int(seed) for seed in rows.table.pop("recipe_seed")]
        rows.table["recipe_seed"] = np.array(seeds, dtype=np.uint64)


def _recipe_rows(index: FolderIndex, manifest: Mapping[str, Any], strict: bool) -> LabelRows:
    """The rows of `dmos.csv`; references are copies, or called as in the folder of photographs."""
    rows = read_kadid_labels(index, strict=strict, extra=("recipe_seed",), blank=not manifest["metrics"])
    seeds = rows.table["recipe_seed"]
    whole = seeds.str.fullmatch(r"\d{1,20}")
    bad = ~whole | (seeds.where(whole, "0").map(int) >= 2**64)
    rows.refuse(bad, "recipe_seed must be a whole number below 2**64, found {recipe_seed!r}")
    if manifest["photographs"] is None:
        rows.locate("ref_path", "images")
        return rows
    sources = {entry["ref_id"]: entry["source"] for entry in manifest["references"]}
    rows.refuse(~rows.table["ref_id"].isin(sources), f"{MANIFEST} knows no reference {{ref_id!r}}")
    rows.table["ref_path"] = rows.table["ref_id"].map(sources).astype("str")
    return rows


def _photographs(root: Path, manifest: Mapping[str, Any], given: str | os.PathLike[str] | None, used: set[str]) -> Path:
    """The folder that the references are in, of which the `used` ones must be those that the labels are of."""
    if manifest["photographs"] is None:  # copies of our own
        if given is not None:
            raise DatabaseError(f"{root} has its references: photographs are not looked for elsewhere")
        return root
    place = root.resolve() / manifest["photographs"] if given is None else Path(given)
    if not place.is_dir():
        where = manifest["photographs"] if given is None else place
        raise DatabaseError(f"the photographs of {root} are not in {where}; say with photographs= where they are")
    for entry in manifest["references"]:
        source = entry["source"]
        if entry["ref_id"] in used and file_digest(place / source) != entry["sha256"]:
            raise DatabaseError(f"{source} in {place} is missing or not the photograph that the recipes were made for")
    return place


def _add_scores(rows: LabelRows, manifest: Mapping[str, Any], label: str) -> str:
    """Columns of all metrics, and the scores that `label` asks for; returns what these mean."""
    metrics = manifest["metrics"]
    if not metrics:
        if label != "consensus":
            raise DatabaseError(f"{rows.index.root} has no labels, so none by {label!r}")
        return "not measured"
    scores, tables = _read_scores(rows.index, metrics, rows.table)
    columns = scores.add_prefix("native_").join(tables.apply(scores).add_prefix("rank_"))
    rows.table = rows.table.join(columns.reset_index(drop=True))
    if label == "consensus":  # which is in dmos.csv
        return f"consensus of {len(metrics)} IQMs"
    from vtamiq.images.iqms import IQMS, agreement_weights, weak_labels

    if label == "weighted":
        weights = {name: weight for name, weight in agreement_weights().items() if name in metrics}
        if not weights:
            raise DatabaseError(f"no agreement with people was published for any of {', '.join(metrics)}")
        meaning = f"consensus of {len(weights)} IQMs, weighted by their published agreement with people"
    elif label in metrics:
        weights, meaning = {label: 1.0}, f"{IQMS[label].label} alone"
    else:
        known = [*metrics, "consensus", "weighted"]
        raise DatabaseError(f"no label {label!r}{did_you_mean(str(label), known)}; there are {', '.join(known)}")
    labels = weak_labels(scores, tables, weights=weights).reset_index(drop=True)
    rows.table["score"] = (5 - 4 * labels["consensus"]).round(6)
    rows.table["score_std"] = (4 * labels["spread"]).round(6)
    return meaning


def _read_scores(index: FolderIndex, metrics: list[str], table: pd.DataFrame) -> tuple[pd.DataFrame, "QuantileTables"]:
    """Native values of all metrics, row by row as in the table, and the tables that rank them."""
    from vtamiq.images.iqms import QuantileTables

    path = index.root / index.find("iqm_scores.csv")
    try:
        text = (index.root / index.find("quantiles.json")).read_text(encoding="utf-8")
        tables = QuantileTables.from_json(text).select(metrics)
        scores = pd.read_csv(path).set_index("dist_img")[list(metrics)].astype(float)
    except (OSError, KeyError, ValueError, TypeError) as error:
        message = f"{index.root}: iqm_scores.csv or quantiles.json is damaged ({error}); make the folder again"
        raise DatabaseError(message) from error
    names = table["dist_path"].str.rsplit("/", n=1).str[-1].str.lower()
    scores.index = scores.index.str.lower()
    missing = names[~names.isin(scores.index)]
    if len(missing) or scores.index.has_duplicates or not np.isfinite(scores.to_numpy()).all():
        what = f"no row for {missing.iloc[0]}" if len(missing) else "a row twice or without a number"
        raise DatabaseError(f"{path} has {what}; restore the file")
    return scores.loc[names], tables
