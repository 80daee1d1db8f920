"""LIVE, release 2: 29 references × 5 distortions, 779 distorted images of free strength.

    refimgs/bikes.bmp …                                     references ("cemetry.bmp" is spelled so)
    jp2k/img1.bmp … jpeg/ wn/ gblur/ fastfading/            distorted images and 203 unaltered copies of references
    <type>/info.txt                                         "<reference> <image> <parameter>" per line, in no order
    refnames_all.mat  dmos.mat  dmos_realigned.mat          arrays of 982 values; the last is a separate download

The arrays have no file names. Value i belongs to image i of the five folders one after the other, counted as numbers:
in a sorted listing img10 comes before img2, and every score is wrong without any error. `orgs` marks the unaltered
copies, which are always left out. The two kinds of scores correlate at 0.947 only: say which in every result.

H. R. Sheikh, Z. Wang, L. Cormack, A. C. Bovik, LIVE Image Quality Assessment Database Release 2; H. R. Sheikh et al., A
statistical evaluation of recent full reference image quality assessment algorithms, IEEE TIP 15(11), 2006.
"""

import io
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.io import loadmat

from vtamiq.databases.reading import Facts, FolderIndex, LabelRows
from vtamiq.databases.schema import Database, DatabaseError
from vtamiq.utils.tables import read_lines

# 3 of the realigned scores are negative and 21 exceed 100, so that scale has no nominal range.
_COPY = {"name": "live", "higher_better": False, "references": 29, "pairs": 779}
LIVE_REALIGNED = Facts(score_name="DMOS realigned", score_mean=48.5812, **_COPY)
LIVE = Facts(score_name="DMOS", score_mean=44.7655, score_lo=0, score_hi=100, **_COPY)

FOLDERS = {  # in the order of the arrays: number of images, name of the distortion
    "jp2k": (227, "JPEG2000"),
    "jpeg": (233, "JPEG"),
    "wn": (174, "white noise"),
    "gblur": (174, "Gaussian blur"),
    "fastfading": (174, "fast fading"),
}
IMAGES = sum(count for count, _ in FOLDERS.values())  # 982


def load_live(root: str | Path, *, strict: bool = True, check_images: bool = True, realigned: bool = True) -> Database:
    """Load LIVE; `realigned=False` takes the older scores of dmos.mat. Else as for `load_database`.

    Raises DatabaseError, strict or not, if arrays have another length or `info.txt` names other references.
    """
    index = FolderIndex(root)
    rows = LabelRows(index, _read_arrays(index, realigned), strict=strict)
    rows.extract("ref_path", r"(?P<ref_id>[^/\\]+)\.bmp", "<reference>.bmp")
    rows.table["ref_id"] = rows.table["ref_id"].str.lower()
    for folder in FOLDERS:
        rows.omissions += _check_pairing(index, folder, rows.table)
    for column in ("score", "score_std", "org") if realigned else ("score", "org"):
        rows.number(column)
    # A copy has the score 0, and nothing else has: a test that `orgs` belongs to the scores.
    copy, zero = rows.table["org"] == 1, rows.table["score"].abs() < 1e-6
    rows.refuse(
        ~rows.table["org"].isin([0, 1]) | (copy != zero),
        "orgs is {org} and the score {score}, but copies of references have 1 and 0, all others 0 and another score",
    )
    rows.table = rows.table[rows.table["org"] == 0].reset_index(drop=True)
    rows.locate("ref_path", "refimgs")
    rows.locate("dist_path")
    return rows.database(LIVE_REALIGNED if realigned else LIVE, check_images=check_images)


def _read_arrays(index: FolderIndex, realigned: bool) -> pd.DataFrame:
    """One row per image, copies of references included, in the order of the arrays."""
    if realigned and index.get("dmos_realigned.mat") is None:
        raise DatabaseError(
            f"{index.root} has no dmos_realigned.mat: it is a separate file on the page of the database; "
            "realigned=False takes the older scores, those of dmos.mat"
        )
    columns = {"dmos_new": "score", "dmos_std": "score_std"} if realigned else {"dmos": "score"}
    labels = index.find("dmos_realigned.mat" if realigned else "dmos.mat")
    names = index.find("refnames_all.mat")
    arrays = _load_mat(index, labels, (*columns, "orgs")) | _load_mat(index, names, ("refnames_all",))
    if any(len(values) != IMAGES for values in arrays.values()):
        lengths = ", ".join(f"{name} {len(values)}" for name, values in arrays.items())
        raise DatabaseError(
            f"{labels} and {names} must have {IMAGES} values each, found {lengths}; values are told by their position, so "
            "filtered copies cannot be used: take the original files"
        )
    folder = pd.Series(np.repeat(list(FOLDERS), [count for count, _ in FOLDERS.values()]), dtype="str")
    number = (folder.groupby(folder).cumcount() + 1).astype("str")
    table = pd.DataFrame(arrays).rename(columns=columns | {"orgs": "org", "refnames_all": "ref_path"})
    return table.assign(
        dist_path=folder + "/img" + number + ".bmp",
        dist_type=folder.map({name: type for type, name in enumerate(FOLDERS, start=1)}),
        dist_name=folder.map({name: title for name, (_, title) in FOLDERS.items()}),
        label_source=[f"{labels}:{position}" for position in range(1, IMAGES + 1)],
    )


def _load_mat(index: FolderIndex, name: str, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The wanted arrays of a MATLAB file, flattened; float64, or text if the name begins with "refnames"."""
    path = index.root / name
    try:
        content = path.read_bytes()
        if content.startswith((b"MATLAB 7.3", b"\x89HDF")):
            raise DatabaseError("it is of MATLAB 7.3 (HDF5); take the original, or save it in MATLAB with -v7")
        found = loadmat(io.BytesIO(content), simplify_cells=True)
        if missing := [array for array in wanted if array not in found]:
            raise DatabaseError(f"it has no array {', '.join(missing)}")
        arrays = {array: np.ravel(found[array]) for array in wanted}
        for array, values in arrays.items():
            if array.startswith("refnames"):  # what is no text becomes "", which no name is
                texts = [value.strip() if isinstance(value, str) else "" for value in values]
                arrays[array] = np.array(texts, dtype=object)
            elif values.dtype.kind in "biuf":
                arrays[array] = values.astype(np.float64)
            else:
                raise DatabaseError("it has something else where numbers are expected")
        return arrays
    except Exception as error:  # scipy raises almost anything on a damaged file
        raise DatabaseError(f"cannot read {path}: {error or type(error).__name__}; is it the original file?") from error


def _check_pairing(index: FolderIndex, folder: str, table: pd.DataFrame) -> list[str]:
    """Compare the references of a folder's images with its `info.txt`, if it has one: a test of the order of the arrays.
    Returns a sentence if lines could not be compared; DatabaseError if one contradicts."""
    name = index.get(f"{folder}/info.txt")
    if name is None:
        return []
    images = {f"img{number}.bmp" for number in range(1, FOLDERS[folder][0] + 1)}  # with those of rows left out
    references = dict(zip(table["dist_path"].str.lower(), table["ref_id"] + ".bmp", strict=True))
    try:
        lines = read_lines(index.root / name, name)
    except ValueError as error:
        raise DatabaseError(str(error)) from error
    lines = pd.Series(lines, index=range(1, len(lines) + 1), dtype="str")
    words = lines.str.lower().str.extract(r"^\s*(?:\S*/)?(?P<reference>\S+)\s+(?:\S*/)?(?P<image>\S+)")
    belongs = (f"{folder}/" + words["image"]).map(references)
    wrong = belongs.notna() & (belongs != words["reference"])
    if wrong.any():
        line = wrong.idxmax()
        raise DatabaseError(
            f"{name}:{line}: {words['image'][line]} is of {words['reference'][line]}, but by refnames_all.mat of "
            f"{belongs[line]}; one of the two files is not the original (without {name}, its images are not compared)"
        )
    blank = lines.str.strip() == ""
    unread = (~words["image"].isin(images) & ~blank).sum()
    return [f"{name}: {unread} of {(~blank).sum()} lines name no image of this folder"] if unread else []
