"""KADID-10k: 81 references × 25 distortions × 5 levels, rated by crowd workers.

    images/I01.png … I81.png                 references
    images/I01_01_01.png … I81_25_05.png     distorted: reference, type, level
    dmos.csv                                 dist_img,ref_img,dmos,var

What the file calls "dmos" is a mean opinion score: 5 is imperceptible, 1 very annoying, and the official page says itself
that higher is better. What it calls "var" is a standard deviation: the two rows that could be checked equal that of 30
whole votes, and cannot be their variance. H. Lin, V. Hosu, D. Saupe, KADID-10k, QoMEX 2019.
"""

from collections.abc import Sequence
from pathlib import Path

from vtamiq.databases.reading import Facts, FolderIndex, LabelRows
from vtamiq.databases.schema import Database, DatabaseError
from vtamiq.images.distortions import DISTORTIONS

_SCALE = {"score_name": "MOS", "higher_better": True, "score_lo": 1, "score_hi": 5}
KADID10K = Facts(name="kadid10k", references=81, pairs=10125, score_mean=3.03263, **_SCALE)


def load_kadid10k(root: str | Path, *, strict: bool = True, check_images: bool = True) -> Database:
    """Load KADID-10k; arguments and errors as for `load_database`."""
    index = FolderIndex(root)
    if index.get("manifest.json") is not None:
        raise DatabaseError(f"{index.root} was made by vtamiq, its labels are synthetic: load it as 'synthetic'")
    rows = read_kadid_layout(index, strict=strict)
    known = rows.table["dist_type"].isin(list(DISTORTIONS)) & rows.table["level"].between(1, 5)
    rows.refuse(~known, "types are 1 to 25 and levels 1 to 5, not those of {dist_path!r}")
    names = {type: distortion.name for type, distortion in DISTORTIONS.items()} | {15: "denoise"}  # ours is a stand-in
    rows.table["dist_name"] = rows.table["dist_type"].map(names)
    return rows.database(KADID10K, check_images=check_images)


def read_kadid_layout(index: FolderIndex, *, strict: bool = True) -> LabelRows:
    """The rows of `dmos.csv`: `ref_id, ref_path, dist_path, dist_type, level, score, score_std`, with images located."""
    rows = read_kadid_labels(index, strict=strict)
    rows.locate("ref_path", "images")
    rows.locate("dist_path", "images")
    return rows


def read_kadid_labels(
    index: FolderIndex, *, strict: bool = True, extra: Sequence[str] = (), blank: bool = False
) -> LabelRows:
    """The rows of `read_kadid_layout`, where the paths are only names; `extra` columns stay text, scores may be `blank`."""
    rows = LabelRows.read(index, "dmos.csv", ("dist_img", "ref_img", "dmos", "var", *extra), strict=strict)
    pattern = r"(?P<stem>.+)_(?P<dist_type>\d{1,3})_(?P<level>\d{1,3})\.\w+"
    rows.extract("dist_img", pattern, "<reference>_<type>_<level>.png", ("dist_type", "level"))
    rows.extract("ref_img", r"(?P<ref_id>.+)\.\w+", "<reference>.png")
    other = rows.table["stem"].str.lower() != rows.table["ref_id"].str.lower()
    rows.refuse(other, "{dist_img!r} is not of {ref_img!r}")
    rows.number("dmos", blank=blank)
    rows.number("var", blank=blank)
    names = {"dmos": "score", "var": "score_std", "ref_img": "ref_path", "dist_img": "dist_path"}
    rows.table = rows.table.rename(columns=names)
    return rows
