"""CSIQ: 30 references × 6 distortions × 5 levels (contrast has 3 or 4), rated by 35 people on an array of screens.

    src_imgs/<image>.png                            references; one is called 1600.png
    dst_imgs/<folder>/<image>.<token>.<level>.png   distorted; awgn/1600.AWGN.1.png, jpeg2000/1600.jpeg2000.1.png
    csiq.DMOS.xlsx                                  sheet all_by_image: image, dst_idx, dst_type, dst_lev, dmos_std, dmos

The workbook names types otherwise than folders and files do, and these mix letter cases. The image 1600 is a number in
it. `dmos_std` is 0 in 25 rows. Some exports have rounded scores, and csiq_label.txt has no standard deviations.

E. C. Larson, D. M. Chandler, Most apparent distortion: full-reference image quality assessment and the role of strategy,
Journal of Electronic Imaging 19(1), 2010.
"""

from pathlib import Path

import pandas as pd

from vtamiq.databases.reading import Facts, FolderIndex, LabelRows
from vtamiq.databases.schema import Database, DatabaseError

_SCALE = {"score_name": "DMOS", "higher_better": False, "score_lo": 0, "score_hi": 1}
CSIQ = Facts(name="csiq", references=30, pairs=866, score_mean=0.35074, **_SCALE)
WORKBOOK, SHEET = "csiq.DMOS.xlsx", "all_by_image"
EXPORTS = ("DMOS.csv", "csiq_dmos.txt", "ref_dist_mos.txt", "csiq_label.txt")
COLUMNS = ("image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos")
_TYPES = {  # word in any label file, without blanks → code, folder, token in file names, name
    "awgn": (1, "awgn", "AWGN", "white noise"),
    "noise": (1, "awgn", "AWGN", "white noise"),
    "jpeg": (2, "jpeg", "JPEG", "JPEG"),
    "jpeg2000": (3, "jpeg2000", "jpeg2000", "JPEG2000"),
    "fnoise": (4, "fnoise", "fnoise", "pink noise"),
    "blur": (5, "blur", "BLUR", "Gaussian blur"),
    "contrast": (6, "contrast", "contrast", "contrast change"),
}


def load_csiq(root: str | Path, *, strict: bool = True, check_images: bool = True) -> Database:
    """Load CSIQ; arguments and errors as for `load_database`.

    Labels are read from the first of these files that exists: `csiq.DMOS.xlsx`; `DMOS.csv` (the columns of its sheet,
    comma separated, with their header); `csiq_dmos.txt` or `ref_dist_mos.txt` (the same, tab separated, without header);
    `csiq_label.txt` (`<image>.<token>.<level>.png <dmos>` per line). The folders of types may lie in the root as well.
    """
    index = FolderIndex(root)
    rows = _read_labels(index, index.find(WORKBOOK, *EXPORTS), strict)
    rows.extract("image", r"(?P<ref_id>.+?)(?:\.0+)?", "the name of an image")  # 1600 is 1600.0 in some exports
    rows.table["ref_id"] = rows.table["ref_id"].str.lower()
    rows.extract("dst_lev", r"(?P<level>[1-5])(?:\.0+)?", "level 1 to 5", ("level",))
    _add_types(rows)
    rows.number("dmos")
    if "dmos_std" in rows.table:
        rows.number("dmos_std")
    rows.table = rows.table.rename(columns={"dmos": "score", "dmos_std": "score_std"})
    ref_id, level = rows.table["ref_id"], rows.table["level"].astype("str")
    rows.table["ref_path"] = ref_id + ".png"
    rows.table["dist_path"] = ref_id + "." + rows.table["token"] + "." + level + ".png"
    rows.locate("ref_path", "src_imgs")
    rows.locate("dist_path", "dst_imgs/{folder}", "{folder}", "dst_imgs")
    return rows.database(CSIQ, check_images=check_images)


def _add_types(rows: LabelRows) -> None:
    """Columns `dist_type, folder, token, dist_name`; refuses unknown types and an index that contradicts its word."""
    word = rows.table["dst_type"].str.lower().str.replace(r"[\s_-]", "", regex=True)
    known = word.isin(list(_TYPES))
    rows.refuse(~known, "unknown dst_type {dst_type!r}")
    types = [_TYPES[word] for word in word[known]]
    rows.table[["dist_type", "folder", "token", "dist_name"]] = pd.DataFrame(types, index=rows.table.index)
    if "dst_idx" in rows.table:
        same = pd.to_numeric(rows.table["dst_idx"], errors="coerce") == rows.table["dist_type"]
        rows.refuse(~same, "dst_idx {dst_idx!r} is not that of dst_type {dst_type!r}, {dist_type}")


def _read_labels(index: FolderIndex, name: str, strict: bool) -> LabelRows:
    if name.lower() == WORKBOOK.lower():
        return _read_workbook(index, name, strict)
    if name.lower() == "dmos.csv":
        return LabelRows.read(index, name, COLUMNS, strict=strict)
    if name.lower() != "csiq_label.txt":
        return LabelRows.read(index, name, COLUMNS, header="none", separator="\t", strict=strict)
    rows = LabelRows.read(index, name, ("file", "dmos"), header="none", separator=None, strict=strict)
    pattern = r"(?:\w+/)?(?P<image>[^/\\]+)\.(?P<dst_type>\w+)\.(?P<dst_lev>\d)(?:\.png)?"
    rows.extract("file", pattern, "<image>.<token>.<level>.png")
    return rows


def _read_workbook(index: FolderIndex, name: str, strict: bool) -> LabelRows:
    """The rows of the sheet below the row of its header, wherever that is; DatabaseError if there is none."""
    cells = _cells(index.root / name, name)
    words = cells.apply(lambda column: column.str.lower())
    top = next((row for row in words.index if set(COLUMNS) <= set(words.loc[row])), None)
    if top is None:
        raise DatabaseError(f"{name}: no row of sheet {SHEET} has the words {', '.join(COLUMNS)}")
    header = words.loc[top].tolist()
    table = cells.loc[top + 1 :, [header.index(column) for column in COLUMNS]].set_axis(COLUMNS, axis=1)
    table = table[(table != "").any(axis=1)]
    if table.empty:
        raise DatabaseError(f"{name}: sheet {SHEET} is empty below its header; is the copy complete?")
    return LabelRows(index, table.assign(label_source=f"{name}:" + table.index.astype("str")), strict=strict)


def _cells(path: Path, name: str) -> pd.DataFrame:
    """All cells of the sheet as text, whole numbers without a decimal point; rows are numbered from 1."""
    try:
        with path.open("rb") as file, pd.ExcelFile(file, engine="openpyxl") as book:
            sheet = next((title for title in book.sheet_names if title.strip().lower() == SHEET), None)
            if sheet is None:
                raise DatabaseError(f"{name} has no sheet {SHEET}, only {', '.join(book.sheet_names)}")
            cells = pd.read_excel(book, sheet_name=sheet, header=None, dtype="str", na_filter=False)
    except DatabaseError:
        raise
    except Exception as error:  # zip, XML and openpyxl raise almost anything on a damaged file
        said = error or type(error).__name__
        raise DatabaseError(f"cannot read {path}: {said}; is it the original workbook?") from error
    return cells.fillna("").apply(lambda column: column.str.strip()).set_axis(range(1, len(cells) + 1))
