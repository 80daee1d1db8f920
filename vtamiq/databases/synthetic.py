"""Databases made by `vtamiq.databases.synthesis`: the layout of KADID-10k, a manifest, and metrics in place of observers.

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

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vtamiq.databases.kadid import read_kadid_labels, read_kadid_layout
from vtamiq.databases.reading import Facts, FolderIndex, LabelRows
from vtamiq.databases.schema import Database, DatabaseError
from vtamiq.utils.configs import did_you_mean
from vtamiq.utils.digests import digest

if TYPE_CHECKING:
    from vtamiq.images.iqms import (
        QuantileTables,  # at run time only where it is needed: other databases do not need torch
    )

__all__ = ["MANIFEST", "MANIFEST_FORMAT", "Label", "file_digest", "load_synthetic", "read_manifest"]

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 2
Label = str | Iterable[str] | Mapping[str, float]
_ENTRIES = {
    "format", "complete", "pairs", "types", "metrics", "references", "skipped", "size", "recipes_only", "photographs"
}  # fmt: skip


def load_synthetic(
    root: str | os.PathLike[str],
    *,
    strict: bool = True,
    check_images: bool = True,
    label: Label = "consensus",
    photographs: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Database:
    """Load a folder that `synthesize` has finished; the database is called after the folder.

    The pairs have further columns: for each metric `native_<iqm>`, its value in its own units and direction, and
    `rank_<iqm>`, its rank in 0..1 (0 a perfect copy); and `ref_sha256`, the digest of the reference's photograph.

    Args:
        strict, check_images: see `load_database`. Photographs of recipes are compared with those that were labelled.
        label: what the scores are. "consensus": the mean rank of all metrics; the name of a metric: that one alone;
            "weighted": all metrics with `agreement_weights`; several names: the consensus of these; names with
            positive weights: their weighted consensus. The scores are 5 - 4 times it.
        photographs: folder of the photographs of recipes; None takes the one in the manifest.
        cache: folder that keeps rendered images of recipes; None renders them every time. It serves any number of
            databases.

    Raises:
        DatabaseError: the folder is unfinished or none of its kind, a label is damaged, there is no such metric, the
            photographs are not those that the recipes are for, or (unless `strict` is off) images or rows are missing.
    """
    index = FolderIndex(root)
    manifest = _finished_manifest(index.root)
    recipes = manifest["recipes_only"]
    if not recipes and (photographs is not None or cache is not None):
        raise DatabaseError(f"{index.root} has its images: photographs and cache are for recipes only")
    rows = _recipe_rows(index, manifest, strict) if recipes else read_kadid_layout(index, strict=strict)
    _check_count(rows, manifest)
    rows.omissions[:0] = [f"{source} was skipped: {reason}" for source, reason in manifest["skipped"].items()]
    table = rows.table
    subsets = {entry["ref_id"]: entry["subset"] for entry in manifest["references"]}
    contents = {entry["ref_id"]: entry.get("content", entry["ref_id"]) for entry in manifest["references"]}
    digests = {entry["ref_id"]: entry.get("sha256", "") for entry in manifest["references"]}
    rows.table = table.assign(
        subset=table["ref_id"].map(subsets).fillna("none"),
        content=table["ref_id"].map(contents).fillna(table["ref_id"]),
        dist_name=table["dist_type"].astype("str").map(manifest["types"]).fillna(""),
        ref_sha256=table["ref_id"].map(digests).fillna("").astype("str"),
    )
    extra, meaning = _iqm_columns(index, manifest, rows, label)
    facts = Facts(
        name=index.root.resolve().name,
        score_name=f"synthetic score ({meaning})",
        higher_better=True,
        score_lo=1.0,
        score_hi=5.0,
    )
    database = rows.database(facts, check_images=check_images and not recipes, extra=["ref_sha256"], synthetic=True)
    pairs = database.pairs.join(extra, on="dist_path") if len(extra.columns) else database.pairs
    if not recipes:
        return replace(database, pairs=pairs)
    place = _photographs(index.root, manifest, photographs)
    if check_images:
        _check_photographs(place, manifest, set(pairs["ref_id"]))
    return replace(
        database,
        root=place,
        pairs=pairs,
        crop=tuple(manifest["size"]) if manifest["size"] else None,
        cache=None if cache is None else Path(cache) / f"{database.name}-{digest(manifest)}",
    )


def read_manifest(root: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None if it has none; DatabaseError if it is damaged or of another format."""
    path = root / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        missing = {"format"} - set(manifest)
        if not missing and manifest["format"] == MANIFEST_FORMAT:
            missing = _ENTRIES - set(manifest)
    except (OSError, ValueError, TypeError) as error:
        raise DatabaseError(f"cannot read {path}: {error}; remove the folder and make it again") from error
    if missing:
        raise DatabaseError(f"{path} lacks {', '.join(sorted(missing))}; remove the folder and make it again")
    if manifest["format"] != MANIFEST_FORMAT:
        raise DatabaseError(f"{path} has format {manifest['format']!r}, this version of vtamiq reads {MANIFEST_FORMAT}")
    return manifest


def file_digest(path: Path) -> str | None:
    """SHA-256 of a file, shortened; None for a file that cannot be read."""
    try:
        return digest(path.read_bytes())
    except OSError:
        return None


def _finished_manifest(root: Path) -> dict[str, Any]:
    manifest = read_manifest(root)
    if manifest is None:
        raise DatabaseError(f"{root} has no {MANIFEST}: vtamiq did not make this folder")
    if not manifest["complete"]:
        raise DatabaseError(f"{root} is unfinished; call synthesize again with the same arguments to go on")
    return manifest


def _check_count(rows: LabelRows, manifest: Mapping[str, Any]) -> None:
    if len(rows.table) != manifest["pairs"] and not rows.omissions:
        message = f"dmos.csv has {len(rows.table)} rows, {manifest['pairs']} were written"
        if rows.strict:
            raise DatabaseError(f"{rows.index.root}: {message}; restore the file or load with strict=False")
        rows.omissions.append(message)


# ---- recipes ----------------------------------------------------------------------------------------------------


def _recipe_rows(index: FolderIndex, manifest: Mapping[str, Any], strict: bool) -> LabelRows:
    """The rows of `dmos.csv`; references are located where they were copied, else called as in the photographs'
    folder."""
    rows = read_kadid_labels(index, strict=strict, extra=("recipe_seed",), blank=not manifest["metrics"])
    seeds = rows.table["recipe_seed"]
    whole = seeds.str.fullmatch(r"\d{1,20}")
    bad = ~whole | (seeds.where(whole, "0").map(int) >= 2**64)
    rows.refuse(bad, "recipe_seed must be a whole number below 2**64, found {recipe_seed!r}")
    if manifest["photographs"] is None:
        rows.locate("ref_path", "images")
        return rows
    sources = {entry["ref_id"]: entry["source"] for entry in manifest["references"]}
    unknown = ~rows.table["ref_id"].isin(sources)
    rows.refuse(unknown, f"{MANIFEST} knows no reference {{ref_id!r}}")
    rows.table["ref_path"] = rows.table["ref_id"].map(sources).astype("str")
    return rows


def _photographs(root: Path, manifest: Mapping[str, Any], given: str | os.PathLike[str] | None) -> Path:
    """The folder that the references are in."""
    if manifest["photographs"] is None:
        if given is not None:
            raise DatabaseError(f"{root} has its references: photographs are not looked for elsewhere")
        return root
    place = root.resolve() / manifest["photographs"] if given is None else Path(given)
    if not place.is_dir():
        where = manifest["photographs"] if given is None else place
        raise DatabaseError(f"the photographs of {root} are not in {where}; say with photographs= where they are")
    return place


def _check_photographs(place: Path, manifest: Mapping[str, Any], used: set[str]) -> None:
    """Labels of other pictures under the same names would go unnoticed."""
    if manifest["photographs"] is None:
        return  # copies of our own
    for entry in manifest["references"]:
        if entry["ref_id"] in used and file_digest(place / entry["source"]) != entry["sha256"]:
            raise DatabaseError(
                f"{entry['source']} in {place} is missing or not the photograph that the recipes were made for"
            )


# ---- labels -----------------------------------------------------------------------------------------------------


def _iqm_columns(
    index: FolderIndex, manifest: Mapping[str, Any], rows: LabelRows, label: Label
) -> tuple[pd.DataFrame, str]:
    """Columns to add to the pairs, by `dist_path`, and what the scores mean; sets the scores that `label` asks for."""
    table = rows.table
    extra = pd.DataFrame(index=pd.Index(table["dist_path"], name="dist_path"))
    if "recipe_seed" in table:
        extra["recipe_seed"] = np.array([int(seed) for seed in table["recipe_seed"]], dtype=np.uint64)
    if not manifest["metrics"]:
        if label != "consensus":
            raise DatabaseError(f"{index.root} has no labels, so none by {label!r}")
        return extra, "not measured"
    scores, tables = _read_scores(index, manifest, table)
    names, weights, meaning = _teachers(label, manifest["metrics"])
    ranks = tables.apply(scores)
    if label != "consensus":  # which is in dmos.csv
        from vtamiq.images.iqms import weak_labels

        labels = weak_labels(scores, tables, names=names, weights=weights)
        rows.table = table.assign(
            score=(5 - 4 * labels["consensus"]).round(6).to_numpy(),
            score_std=(4 * labels["spread"]).round(6).to_numpy(),
        )
    columns = {f"native_{name}": scores[name] for name in tables.names}
    columns |= {f"rank_{name}": ranks[name] for name in tables.names}
    return extra.assign(**{name: values.to_numpy() for name, values in columns.items()}), meaning


def _read_scores(
    index: FolderIndex, manifest: Mapping[str, Any], table: pd.DataFrame
) -> tuple[pd.DataFrame, "QuantileTables"]:
    """Native values of all metrics, row by row as in the table, and the tables that rank them."""
    from vtamiq.images.iqms import QuantileTables

    path = index.root / index.find("iqm_scores.csv")
    try:
        tables = QuantileTables.from_json((index.root / index.find("quantiles.json")).read_text(encoding="utf-8"))
        tables = tables.select(manifest["metrics"])
        scores = pd.read_csv(path).set_index("dist_img")[list(manifest["metrics"])].astype(float)
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


def _teachers(label: Label, metrics: list[str]) -> tuple[list[str], dict[str, float] | None, str]:
    """The metrics that make the score, their weights (None: equal), and the same in words."""
    from vtamiq.images.iqms import IQMS, agreement_weights

    if label == "consensus":
        return metrics, None, f"consensus of {len(metrics)} IQMs"
    if label == "weighted":
        weights = {name: weight for name, weight in agreement_weights().items() if name in metrics}
        if not weights:
            raise DatabaseError(f"no agreement with people was published for any of {', '.join(metrics)}")
        return (
            list(weights),
            weights,
            f"consensus of {len(weights)} IQMs, weighted by their published agreement with people",
        )
    names = [label] if isinstance(label, str) else list(label)
    known = [*metrics, "consensus", "weighted"]
    for name in names:
        if name not in metrics:
            raise DatabaseError(f"no label {name!r}{did_you_mean(str(name), known)}; there are {', '.join(known)}")
    if not names or len(set(names)) < len(names):
        raise DatabaseError(f"a label is made of one or more different metrics, got {label!r}")
    titles = ", ".join(IQMS[name].label for name in names)
    if len(names) == 1:
        return names, None, f"{titles} alone"
    if not isinstance(label, Mapping):
        return names, None, f"consensus of {titles}"
    bad = {name: weight for name, weight in label.items() if not (np.isfinite(weight) and weight > 0)}
    if bad:
        raise DatabaseError(f"weights of metrics must be positive, got {bad}")
    return names, dict(label), f"weighted consensus of {titles}"
