"""Damaged copies of every database: an error that names the place or, not strict, a listed omission; never a wrong pair.

A further database is one entry of `CASES`: its loader, a builder of a small copy, its label file and how that is damaged.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from tests.layouts import build_csiq, build_kadid10k, build_live, build_tid2008, build_tid2013, copy_layout
from vtamiq.databases.csiq import load_csiq
from vtamiq.databases.kadid import load_kadid10k
from vtamiq.databases.live import load_live
from vtamiq.databases.schema import Database, DatabaseError
from vtamiq.databases.tid import load_tid2008, load_tid2013

ROW = 7  # of the labels, from 0: the one that is damaged


def replace(path: Path, content: bytes) -> None:
    """Never write into a file of a copied layout: it may be a link."""
    path.unlink()
    path.write_bytes(content)


# ---- label files, and how each can be damaged -------------------------------------------------------------------


@dataclass(frozen=True)
class TextLabels:
    """A text file with one row per line. `image` and `score` are the positions of these fields in a row."""

    file: str
    separator: str | None
    image: int
    score: int
    header: bool = False

    row_damages = ("score", "fields", "outside")  # of one row; `strict=False` leaves that row out
    file_damages = ("empty", "encoding")  # of the whole file; never accepted

    @property
    def source(self) -> str:
        return f"{self.file}:{ROW + 1 + self.header}"

    def damage(self, root: Path, how: str) -> None:
        path = root / self.file
        content = path.read_bytes()
        if how == "empty":
            return replace(path, b"")
        if how == "encoding":
            return replace(path, content.decode().encode("utf-16"))
        lines = content.decode().splitlines()
        fields = lines[ROW + self.header].split(self.separator)
        if how == "fields":
            fields.append("1")
        else:
            at, value = {"score": (self.score, "x"), "outside": (self.image, "../../x")}[how]
            fields[at] = value
        lines[ROW + self.header] = (self.separator or " ").join(fields)
        return replace(path, "\n".join(lines).encode())


@dataclass(frozen=True)
class WorkbookLabels:
    """The workbook of CSIQ; a row with too few fields is one with an empty cell."""

    file: str = "csiq.DMOS.xlsx"
    row_damages = ("score", "fields", "outside")
    file_damages = ("empty", "encoding")

    @property
    def source(self) -> str:
        return f"{self.file}:{ROW + 5}"

    def damage(self, root: Path, how: str) -> None:
        path = root / self.file
        if how == "encoding":
            return replace(path, "image,dmos".encode("utf-16"))
        book = openpyxl.load_workbook(path)
        sheet = book["all_by_image"]
        if how == "empty":
            sheet.delete_rows(5, sheet.max_row)
        else:
            column, value = {"score": ("I", "#REF!"), "fields": ("G", None), "outside": ("D", "../../x")}[how]
            sheet[f"{column}{ROW + 5}"] = value
        path.unlink()
        return book.save(path)


@dataclass(frozen=True)
class MatLabels:
    """The arrays of LIVE. Too few values make all of them useless; row 7 is no copy of a reference."""

    file: str = "dmos_realigned.mat"
    row_damages = ("score", "outside")
    file_damages = ("empty", "encoding", "fields")

    @property
    def source(self) -> str:
        return f"{self.file}:{ROW + 1}"

    def damage(self, root: Path, how: str) -> None:
        path = root / self.file
        if how in ("empty", "encoding"):
            return replace(path, b"" if how == "empty" else path.read_bytes()[:1000])
        if how == "outside":
            path = root / "refnames_all.mat"
        arrays = {name: values for name, values in loadmat(path).items() if not name.startswith("__")}
        if how == "fields":
            arrays["dmos_new"] = arrays["dmos_new"][:, :-1]
        elif how == "score":
            arrays["dmos_new"][0, ROW] = np.nan
        else:
            arrays["refnames_all"][0, ROW] = "../../x.bmp"
        path.unlink()
        return savemat(path, arrays)


# ---- the databases ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """`build(root)` makes an undamaged copy, not necessarily of all references."""

    name: str
    load: Callable[..., Database]
    build: Callable[[Path], Any]
    labels: Any


TID_LABELS = TextLabels("mos_with_names.txt", None, image=1, score=0)
CASES = (
    Case("live", load_live, build_live, MatLabels()),
    Case("csiq", load_csiq, partial(build_csiq, references=["1600", "elk"]), WorkbookLabels()),
    Case(
        "csiq-export", load_csiq, partial(build_csiq, references=["1600", "elk"], workbook=False),
        TextLabels("csiq_dmos.txt", "\t", image=0, score=5),
    ),
    Case("tid2008", load_tid2008, partial(build_tid2008, references=["01", "25"]), TID_LABELS),
    Case("tid2013", load_tid2013, partial(build_tid2013, references=["07", "25"]), TID_LABELS),
    Case(
        "kadid10k", load_kadid10k, partial(build_kadid10k, references=["I01.png", "I40.png"]),
        TextLabels("dmos.csv", ",", image=0, score=2, header=True),
    ),
)  # fmt: skip
ALL = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
TEXT = [case for case in CASES if isinstance(case.labels, TextLabels)]


def damages(kind: str) -> pytest.MarkDecorator:
    pairs = [(case, how) for case in CASES for how in getattr(case.labels, kind)]
    return pytest.mark.parametrize(("case", "how"), pairs, ids=[f"{case.name}-{how}" for case, how in pairs])


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """name → (root, database as it is loaded)."""
    made = {}
    for case in CASES:
        root = tmp_path_factory.mktemp(case.name) / "whole"
        case.build(root)
        made[case.name] = (root, case.load(root, strict=False))
    return made


@pytest.fixture
def damaged(wholes, tmp_path):
    """Function of a case: (root of a copy to damage, the database when undamaged)."""

    def copy(case):
        root, whole = wholes[case.name]
        return copy_layout(root, tmp_path / "copy"), whole

    return copy


def refused(case: Case, root: Path, *expected: str) -> None:
    """The strict loader names all of these."""
    with pytest.raises(DatabaseError) as error:
        case.load(root)
    assert all(text.lower() in str(error.value).lower() for text in expected), f"{error.value} does not name {expected}"


def left_out(case: Case, root: Path, whole: Database, lost: pd.Series) -> list[str]:
    """The sentences about the lost rows, one each; all other rows are as they were in the undamaged copy."""
    part = case.load(root, strict=False)
    pd.testing.assert_frame_equal(part.pairs, whole.pairs[~lost].reset_index(drop=True))
    said = [sentence for sentence in part.omissions if "a complete copy has more" not in sentence]
    assert [sentence.split(": ")[0] for sentence in said] == whole.pairs.loc[lost, "label_source"].tolist()
    assert len(part.omissions) > len(said), "the count is not mentioned"
    return said


def one_row(case: Case, whole: Database) -> pd.Series:
    """Mask of the pair that the damaged label is of."""
    chosen = whole.pairs["label_source"] == case.labels.source
    assert chosen.sum() == 1
    return chosen


# ---- images -----------------------------------------------------------------------------------------------------


@ALL
def test_missing_image(case, damaged):
    root, whole = damaged(case)
    lost = one_row(case, whole)
    path = whole.pairs.loc[lost, "dist_path"].item()
    (root / path).unlink()
    refused(case, root, case.labels.source, Path(path).name.split(".")[0], "no image")
    left_out(case, root, whole, lost)


@ALL
def test_image_cut_in_half(case, damaged):
    root, whole = damaged(case)
    lost = one_row(case, whole)
    path = whole.pairs.loc[lost, "dist_path"].item()
    content = (root / path).read_bytes()
    replace(root / path, content[: len(content) // 2])
    refused(case, root, f"{case.labels.source}: cannot read {path}")
    left_out(case, root, whole, lost)
    assert len(case.load(root, strict=False, check_images=False)) == len(whole)  # images are read later


@ALL
def test_image_of_another_size(case, damaged):
    root, whole = damaged(case)
    lost = one_row(case, whole)
    path = whole.pairs.loc[lost, "dist_path"].item()
    (root / path).unlink()
    Image.new("RGB", (8, 9)).save(root / path)
    refused(case, root, case.labels.source, f"{path} is 8 x 9", "(width x height)")
    left_out(case, root, whole, lost)


@ALL
def test_two_images_that_differ_only_by_case(case, damaged):
    root, whole = damaged(case)
    lost = one_row(case, whole)
    path = root / whole.pairs.loc[lost, "dist_path"].item()
    other = path.with_name(path.name.swapcase())
    if other.exists():
        pytest.skip("this file system does not tell case apart")
    other.write_bytes(path.read_bytes())
    refused(case, root, case.labels.source, path.name, other.name, "differ only by letter case")
    left_out(case, root, whole, lost)


@ALL
def test_partial_copy_without_one_reference(case, damaged):
    root, whole = damaged(case)
    lost = whole.pairs["ref_id"] == whole.references[-1]
    gone = whole.pairs[lost]
    for path in {*gone["ref_path"], *gone["dist_path"]}:
        (root / path).unlink()
    refused(case, root, f"({lost.sum()} such rows)", "no image", whole.references[-1])
    said = left_out(case, root, whole, lost)
    assert len(said) == lost.sum() > 1
    assert case.load(root, strict=False).references == whole.references[:-1]


@ALL
def test_missing_folder_of_references(case, damaged):
    root, whole = damaged(case)
    for path in whole.pairs["ref_path"].unique():
        (root / path).unlink()
    refused(case, root, f"({len(whole)} such rows)")
    with pytest.raises(DatabaseError, match=r"no row of \d+ can be used"):
        case.load(root, strict=False)


@ALL
def test_clutter_of_operating_systems_is_ignored(case, damaged):
    root, whole = damaged(case)
    folders = {Path(path).parent for column in ("ref_path", "dist_path") for path in whole.pairs[column]}
    for folder in {Path(), *folders}:
        for name in (".DS_Store", "Thumbs.db", "._x", "desktop.ini"):
            (root / folder / name).write_bytes(b"\0clutter")
    for path in {*whole.pairs["dist_path"][:3], case.labels.file}:
        (root / path).with_name(f"._{Path(path).name}").write_bytes(b"\0clutter")
    again = case.load(root, strict=False)
    pd.testing.assert_frame_equal(again.pairs, whole.pairs)
    assert again.omissions == whole.omissions


# ---- labels -----------------------------------------------------------------------------------------------------


@damages("row_damages")
def test_damaged_label(case, how, damaged):
    root, whole = damaged(case)
    case.labels.damage(root, how)
    refused(
        case, root, f"{case.labels.source}: ", {"score": "must be a finite number", "outside": "../../x"}.get(how, "")
    )
    left_out(case, root, whole, one_row(case, whole))


@damages("file_damages")
def test_damaged_label_file(case, how, damaged):
    root, _ = damaged(case)
    case.labels.damage(root, how)
    for strict in (True, False):
        with pytest.raises(DatabaseError, match=case.labels.file):
            case.load(root, strict=strict)


@ALL
def test_missing_label_file(case, damaged):
    root, _ = damaged(case)
    (root / case.labels.file).unlink()
    for strict in (True, False):
        with pytest.raises(DatabaseError, match=f"has no.*{case.labels.file}"):
            case.load(root, strict=strict)


@pytest.mark.parametrize(("start", "end"), [(b"", b"\r\n"), (b"\xef\xbb\xbf", b"\r")], ids=["CRLF", "BOM-CR"])
@pytest.mark.parametrize("case", TEXT, ids=lambda case: case.name)
def test_text_labels_with_any_line_ends_and_byte_order_mark(case, start, end, damaged):
    root, whole = damaged(case)
    path = root / case.labels.file
    replace(path, start + end.join(path.read_bytes().splitlines()) + end)
    pd.testing.assert_frame_equal(case.load(root, strict=False).pairs, whole.pairs)


@pytest.mark.parametrize("case", TEXT, ids=lambda case: case.name)
def test_a_pair_listed_twice_is_refused_or_taken_once(case, damaged):
    root, _ = damaged(case)
    (root / "mos_std.txt").unlink(missing_ok=True)  # of TID2013: another line would be missing there
    whole = case.load(root, strict=False)
    path = root / case.labels.file
    content = path.read_bytes()
    replace(path, content + content.splitlines()[ROW] + b"\n")
    with pytest.raises(
        DatabaseError, match=rf"^{case.labels.file}:\d+: pair listed twice, first in {case.labels.file}:\d+;"
    ):
        case.load(root)
    data = case.load(root, strict=False)
    pd.testing.assert_frame_equal(data.pairs, whole.pairs)
    assert re.match(rf"{case.labels.file}:\d+: pair listed twice, first in {case.labels.file}:\d+$", data.omissions[0])
