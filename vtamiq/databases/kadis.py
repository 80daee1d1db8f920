"""KADIS-700k: 140,000 references, each at five levels of one of 25 distortions; scores of metrics, none of people.

    ref_imgs/<slug>.png            references
    dist_imgs/<slug>_<TT>_<L>.bmp  distorted: type and level in two digits; not distributed, a MATLAB program makes them
    kadis700k_friqa.csv            dist_im,ref_im,ssim,…,sr_sim: a row per distorted image, its scores by eleven metrics
    kadis700k_ref_imgs.csv         ref_im,dist_type_1,…: a row per reference and the number of its distortion

The csv of scores does not name files: `<slug>_<word>_<level>.png` there is `<slug>_<TT>_<LL>.bmp` on disk; the word is a
tag of `vtamiq.images.distortions`. Both `colorsaturate` (7) and `saturate` (8) occur, and are kept apart; VTAMIQ's authors
mapped both to 7, and left type 15 out as too slow to make: 134,260 references and 671,300 pairs. MDSI and GMSD are better
when lower, the other nine when higher.

Instead of images on disk, pairs can have recipes (`render=True`): those are our versions of the 25 distortions, close to
the authors', on which the scores were computed, but not the same.

H. Lin, V. Hosu, D. Saupe, DeepFL-IQA, arXiv:2001.08113, 2020.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from vtamiq.databases.reading import Facts, FolderIndex, LabelRows
from vtamiq.databases.schema import Database, DatabaseError
from vtamiq.images.distortions import DISTORTIONS, LEVELS
from vtamiq.utils.digests import digest_number

# Column of the csv → what it is called; in the order of the csv.
METRICS = {
    "ssim": "SSIM", "msssim": "MS-SSIM", "iwssim": "IW-SSIM", "mdsi": "MDSI", "vsi": "VSI", "fsim": "FSIM", "gmsd": "GMSD",
    "sff": "SFF", "scqi": "SCQI", "add_gsim": "ADD-GSIM", "sr_sim": "SR-SIM",
}  # fmt: skip
_LOWER_BETTER = ("mdsi", "gmsd")
_TYPES = {distortion.tag.lower(): type for type, distortion in DISTORTIONS.items()}

KADIS700K = Facts(name="kadis700k", score_name="none published", higher_better=True, references=140_000, pairs=700_000)


def load_kadis700k(
    root: str | Path,
    *,
    strict: bool = True,
    check_images: bool = False,
    labels: str = "friqa",
    score: str = "vsi",
    render: bool = False,
    seed: int = 0,
) -> Database:
    """Load KADIS-700k; arguments and errors as for `load_database`, and:

    Args:
        check_images: open every image once; takes long. With `render`, only references.
        labels: "friqa" reads the csv with scores, all eleven in columns such as `native_ssim`, in their own units and
            directions; "none" reads the list of references: no scores, five levels for each.
        score: the metric that is the score, a key of `METRICS`.
        render: pairs have recipes, distorted images need not exist.
        seed: random seed of the recipes, together with the reference's name.
    """
    if labels not in ("friqa", "none"):
        raise DatabaseError(f"labels must be 'friqa' or 'none', got {labels!r}")
    if score not in METRICS:
        raise DatabaseError(f"KADIS-700k has no score {score!r}; it has {', '.join(METRICS)}")
    index = FolderIndex(root)
    if labels == "friqa":
        rows, extra = _read_scores(index, score, strict), [f"native_{name}" for name in METRICS]
        facts = replace(KADIS700K, score_name=METRICS[score], higher_better=score not in _LOWER_BETTER)
    else:
        rows, extra, facts = _read_references(index, strict), [], KADIS700K
    rows.table["dist_name"] = rows.table["dist_type"].map({type: d.name for type, d in DISTORTIONS.items()})
    _locate(rows, render, check_images)
    if render:
        codes, slugs = pd.factorize(rows.table["ref_id"])
        seeds = [digest_number(f"{seed} {slug}") for slug in slugs]
        rows.table["recipe_seed"] = np.array(seeds, dtype=np.uint64)[codes]
        extra = [*extra, "recipe_seed"]
    return rows.database(facts, check_images=check_images and not render, extra=extra, synthetic=True)


def _read_scores(index: FolderIndex, score: str, strict: bool) -> LabelRows:
    rows = LabelRows.read(index, "kadis700k_friqa.csv", ("dist_im", "ref_im", *METRICS), strict=strict)
    for name in METRICS:
        rows.number(name)
    rows.extract("ref_im", r"(?P<ref_id>.+)\.\w+", "<slug>.png")
    names = zip(rows.table["dist_im"], rows.table["ref_id"], strict=True)
    tails = [name[len(slug) :] if name.lower().startswith(slug.lower()) else "" for name, slug in names]
    rows.table["tail"] = pd.Series(tails, dtype="str")
    rows.refuse(rows.table["tail"] == "", "{dist_im!r} is not of {ref_im!r}")
    expected = "_<word>_<level>.png after the name of the reference"
    rows.extract("tail", r"_(?P<word>[a-z0-9]+)_(?P<level>\d{1,2})\.\w+", expected, ("level",))
    rows.refuse(~rows.table["level"].isin(LEVELS), "level {level} of {dist_im!r} is not 1 to 5")
    rows.table["dist_type"] = rows.table["word"].str.lower().map(_TYPES).astype("Int16")
    rows.refuse(rows.table["dist_type"].isna(), "unknown distortion {word!r} in {dist_im!r}")
    rows.table = rows.table.drop(columns=["dist_im", "tail", "word"])
    rows.table = rows.table.rename(columns={"ref_im": "ref_path"} | {name: f"native_{name}" for name in METRICS})
    rows.table["score"] = rows.table[f"native_{score}"]
    return rows


def _read_references(index: FolderIndex, strict: bool) -> LabelRows:
    rows = LabelRows.read(index, "kadis700k_ref_imgs.csv", ("ref_im", "dist_type_1"), strict=strict)
    rows.extract("ref_im", r"(?P<ref_id>.+)\.\w+", "<slug>.png")
    words = {str(type): type for type in DISTORTIONS} | {f"{type:02d}": type for type in DISTORTIONS} | _TYPES
    rows.table["dist_type"] = rows.table["dist_type_1"].str.lower().map(words).astype("Int16")
    rows.refuse(rows.table["dist_type"].isna(), "dist_type_1 must be 1 to 25 or a tag, found {dist_type_1!r}")
    levels = pd.DataFrame({"level": pd.array(LEVELS, dtype="Int16")})
    rows.table = (
        rows.table.rename(columns={"ref_im": "ref_path"}).drop(columns="dist_type_1").merge(levels, how="cross")
    )
    return rows


def _locate(rows: LabelRows, render: bool, check_images: bool) -> None:
    """Paths of references and distorted images. VTAMIQ's authors kept the csv files one folder above the images."""
    index = rows.index
    rows.locate("ref_path", index.find("ref_imgs", "kadis700k/ref_imgs"))
    if render and check_images:
        rows.table["dist_path"] = rows.table["ref_path"]  # references alone
        rows.check_images()
    type, level = (rows.table[name].astype("str") for name in ("dist_type", "level"))
    rows.table["dist_path"] = rows.table["ref_id"] + "_" + type.str.zfill(2) + "_0" + level + ".bmp"
    if render:
        rows.table["dist_path"] = "dist_imgs/" + rows.table["dist_path"]
        return
    folder = index.get("dist_imgs") or index.get("kadis700k/dist_imgs")
    if folder is None:
        said = f"{index.root} has no dist_imgs: distorted images are not distributed"
        raise DatabaseError(f"{said}. Make them with the authors' program, or load with render=True")
    rows.locate("dist_path", folder)
