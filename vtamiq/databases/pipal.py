"""PIPAL (NTIRE 2021 and 2022): images of 288 × 288 pixels, many of them spoilt by restoration programs; Elo scores.

    Train_Ref/A0001.bmp …          200 references, numbered with gaps          or Reference_train
    Distortion_1/ … Distortion_4/  A0001_00_00.bmp …: 116 of each reference    or Train_Dist, Train_Dis, Distortion
    Train_Label/A0001.txt …        "A0001_00_00.bmp,1520.0648", without header                 or MOS_Scores_train
    Val_Ref/  Val_Dist/            validation of 2021: 25 references × 40      or Reference_valid, Distortion_valid
    NTIRE2022_FR_Valid_Ref/, …_Dis/   NTIRE2022_FR_Testing_Ref/, …_Dis/        25 × 66 each               or …_Dist

Names are <reference>_<group>_<number>: the number counts within the group and is no level, so it is the column `variant`.
Validation and test have group 10, and gaps in the numbers. Their labels were never released: scores are NaN, and so they
cannot be trained on. Whether Elo scores compare across references is an open question; look at each reference as well.

After registration for the challenges. J. Gu et al., PIPAL, ECCV 2020.
"""

import re
from pathlib import Path

import pandas as pd

from vtamiq.databases.reading import Facts, FolderIndex, LabelRows
from vtamiq.databases.schema import Database, DatabaseError

_NO_SCORE = {"score_name": "none published", "higher_better": True, "references": 25}

# Part → facts. Their names tell parts apart in results.
PIPAL = {
    "train": Facts(
        name="pipal", score_name="Elo", higher_better=True, references=200, pairs=23_200, score_mean=1448.9596
    ),
    "val": Facts(name="pipal_val", pairs=1000, **_NO_SCORE),
    "ntire2022_val": Facts(name="ntire2022_val", pairs=1650, **_NO_SCORE),
    "ntire2022_test": Facts(name="ntire2022_test", pairs=1650, **_NO_SCORE),
}

# Part → folder names in circulation, of references and of distorted images.
_FOLDERS = {
    "train": (("Train_Ref", "Reference_train"), ("Train_Dist", "Train_Dis", "Distortion")),
    "val": (("Val_Ref", "Reference_valid"), ("Val_Dist", "Val_Dis", "Distortion_valid")),
    "ntire2022_val": (("NTIRE2022_FR_Valid_Ref",), ("NTIRE2022_FR_Valid_Dis", "NTIRE2022_FR_Valid_Dist")),
    "ntire2022_test": (("NTIRE2022_FR_Testing_Ref",), ("NTIRE2022_FR_Testing_Dis", "NTIRE2022_FR_Testing_Dist")),
}
_LABELS = ("Train_Label", "MOS_Scores_train")
PIPAL_MARKS = (*_LABELS, "Train_Ref", "Val_Ref", "NTIRE2022_FR_Valid_Ref", "NTIRE2022_FR_Testing_Ref")
_QUARTERS = [f"Distortion_{k}" for k in (1, 2, 3, 4)]
_GROUPS = {
    0: "traditional distortion", 1: "traditional super-resolution", 2: "PSNR-oriented super-resolution",
    3: "super-resolution with kernel mismatch", 4: "GAN-based super-resolution", 5: "denoising",
    6: "super-resolution and denoising",
}  # fmt: skip


def load_pipal(root: str | Path, *, strict: bool = True, check_images: bool = True, part: str = "train") -> Database:
    """Load a part of PIPAL: "train" with scores, or "val", "ntire2022_val" or "ntire2022_test" without.

    Other arguments and errors as for `load_database`.
    """
    if part not in PIPAL:
        raise DatabaseError(f"PIPAL has the parts {', '.join(PIPAL)}, not {part!r}")
    index = FolderIndex(root)
    reference_names, distorted_names = _FOLDERS[part]
    references = index.find(*reference_names)
    if part == "train":
        inner = [f"{folder}/{quarter}" for folder in distorted_names for quarter in _QUARTERS]
        names = [*distorted_names, *_QUARTERS, *inner]
        distorted = [found for name in names if (found := index.get(name)) is not None] or [index.find(*names)]
        rows = _read_labels(index, strict)
    else:
        distorted = [index.find(*distorted_names)]
        rows = _list_images(index, distorted[0], strict)
    pattern = r"(?P<ref_id>A\d{4})_(?P<dist_type>\d\d)_(?P<variant>\d\d)\.\w+"
    rows.extract("dist_path", pattern, "<reference>_<group>_<number>.bmp", ("dist_type", "variant"))
    rows.table["ref_id"] = rows.table["ref_id"].str.upper()
    rows.table["ref_path"] = rows.table["ref_id"] + ".bmp"
    rows.locate("ref_path", references)
    rows.locate("dist_path", *distorted)
    rows.table["subset"] = part.rpartition("_")[2]
    rows.table["dist_name"] = rows.table["dist_type"].map(_GROUPS).fillna("")
    return rows.database(PIPAL[part], check_images=check_images, extra=["variant"])


def parts_of(index: FolderIndex) -> list[str]:
    """The parts of which a copy has something: references, distorted images or labels; "train" if it has nothing."""
    names = {part: [*references, *distorted] for part, (references, distorted) in _FOLDERS.items()}
    names["train"] += [*_LABELS, *_QUARTERS]
    return [part for part in PIPAL if any(index.get(name) for name in names[part])] or ["train"]


def _read_labels(index: FolderIndex, strict: bool) -> LabelRows:
    """The rows of all label files; a file called after a reference may only have images of it."""
    folder = index.find(*_LABELS)
    files = index.files(folder, [".txt"])
    if not files:
        raise DatabaseError(f"{index.root / folder} has no label files (.txt); is the copy complete?")
    rows = LabelRows.read_all(index, files, ("dist_path", "score"), header="none", strict=strict)
    rows.number("score")
    rows.table["file"] = rows.table["file"].str.extract(r"([^/]*)\.txt$", flags=re.IGNORECASE)[0]
    named = rows.table["file"].str.fullmatch(r"A\d{4}", case=False)
    other = rows.table["file"].str.lower() != rows.table["dist_path"].str[:5].str.lower()
    rows.refuse(named & other, "{dist_path!r} is not of {file}")
    return rows


def _list_images(index: FolderIndex, folder: str, strict: bool) -> LabelRows:
    """A row for each image of a folder: nothing else says which there are."""
    files = index.files(folder, [".bmp", ".png"])
    if not files:
        raise DatabaseError(f"{index.root / folder} has no images; is the copy complete?")
    names = [file.rpartition("/")[2] for file in files]
    return LabelRows(index, pd.DataFrame({"dist_path": names, "label_source": files}, dtype="str"), strict=strict)
