"""CSIQ from its real labels: the workbook, the exports in circulation, and names that labels and disk spell
differently."""

import re
import shutil
import zipfile

import openpyxl
import pandas as pd
import pytest

from tests.layouts import LABELS, build_csiq, copy_layout, write_csiq_workbook, write_lines
from vtamiq.databases.csiq import load_csiq
from vtamiq.databases.schema import DatabaseError

WORKBOOK = "csiq.DMOS.xlsx"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(root, the published table) of a complete copy; not to be changed."""
    root = tmp_path_factory.mktemp("csiq") / "CSIQ"
    return root, build_csiq(root)


@pytest.fixture
def copy(whole, tmp_path):
    """A complete copy to change."""
    return copy_layout(whole[0], tmp_path / "copy")


@pytest.fixture
def part(tmp_path):
    """A copy of two references, as the trimmed real workbook has them."""
    build_csiq(tmp_path / "part", references=["1600", "elk"])
    return tmp_path / "part"


def change_workbook(root, **cells):
    book = openpyxl.load_workbook(root / WORKBOOK)
    for cell, value in cells.items():
        book["all_by_image"][cell] = value
    (root / WORKBOOK).unlink()
    book.save(root / WORKBOOK)


def without_source(pairs):
    return pairs.drop(columns="label_source")


# ---- what is published ------------------------------------------------------------------------------------------


def test_whole_database(whole):
    root, table = whole
    data = load_csiq(root)
    assert (data.name, data.score_name, data.higher_better, data.omissions) == ("csiq", "DMOS", False, ())
    assert (len(data), len(data.references)) == (866, 30)
    assert data.pairs["score"].mean() == pytest.approx(0.35074, abs=5e-6)
    assert data.references[22:25] == ["snow_leaves", "sunset_sparrow", "sunsetcolor"]  # in plain character order
    by_source = data.pairs.set_index("label_source").loc[[f"{WORKBOOK}:{row}" for row in range(5, 871)]]
    assert by_source["score"].tolist() == table["dmos"].astype(float).tolist()
    assert by_source["score_std"].tolist() == table["dmos_std"].astype(float).tolist()
    assert by_source["dist_type"].tolist() == table["dst_idx"].astype(int).tolist()
    assert by_source["level"].tolist() == table["dst_lev"].astype(int).tolist()
    assert by_source["ref_path"].tolist() == ("src_imgs/" + table["image"] + ".png").tolist()


def test_types_and_levels(whole):
    pairs = load_csiq(whole[0]).pairs
    first = pairs.groupby("dist_type").first()
    assert first["dist_name"].tolist() == [
        "white noise", "JPEG", "JPEG2000", "pink noise", "Gaussian blur", "contrast change",
    ]  # fmt: skip
    assert first["dist_path"].tolist() == [
        "dst_imgs/awgn/1600.AWGN.1.png", "dst_imgs/jpeg/1600.JPEG.1.png", "dst_imgs/jpeg2000/1600.jpeg2000.1.png",
        "dst_imgs/fnoise/1600.fnoise.1.png", "dst_imgs/blur/1600.BLUR.1.png",
        "dst_imgs/contrast/1600.contrast.1.png",
    ]  # fmt: skip
    assert pairs["dist_type"].value_counts(sort=False).tolist() == [150, 150, 150, 150, 150, 116]
    few = pairs["ref_id"].value_counts().loc[lambda counts: counts == 28].index
    assert sorted(few) == ["elk", "geckos", "lady_liberty", "swarm"]
    assert (pairs["score_std"] == 0).sum() == 25
    perfect = pairs[pairs["score"] == 0]
    assert list(zip(perfect["ref_id"], perfect["dist_name"], perfect["level"], strict=True)) == [
        ("boston", "JPEG", 1), ("log_seaside", "white noise", 1),
    ]  # fmt: skip


def test_trimmed_real_workbook(part):
    (part / WORKBOOK).unlink()
    shutil.copyfile(LABELS / WORKBOOK, part / WORKBOOK)
    with pytest.raises(DatabaseError, match=r"57 of 866 pairs and 2 of 30 references.*strict=False"):
        load_csiq(part)
    data = load_csiq(part, strict=False)
    assert (len(data), data.references) == (57, ["1600", "elk"])
    first, last = data.pairs.iloc[0], data.pairs.iloc[-1]
    assert first[["ref_path", "dist_path", "score", "score_std", "label_source"]].tolist() == [
        "src_imgs/1600.png", "dst_imgs/awgn/1600.AWGN.1.png", 0.061989, 0.061, "csiq.DMOS.xlsx:5",
    ]  # fmt: skip
    assert last[["dist_path", "level", "label_source"]].tolist() == [
        "dst_imgs/contrast/elk.contrast.3.png", 3, "csiq.DMOS.xlsx:61",
    ]  # fmt: skip


# ---- label files in circulation ---------------------------------------------------------------------------------


def export(root, name, table):
    """Write labels as one of the exports, and remove the workbook."""
    (root / WORKBOOK).unlink(missing_ok=True)
    if name == "DMOS.csv":
        table.to_csv(root / name, index=False)
    elif name == "csiq_label.txt":
        token = table["dst_type"].map(
            {"noise": "AWGN", "jpeg": "JPEG", "jpeg 2000": "jpeg2000", "fnoise": "fnoise", "blur": "BLUR"}
        )
        names = table["image"] + "." + token.fillna("contrast") + "." + table["dst_lev"] + ".png"
        write_lines(root / name, names + " " + table["dmos"], end="\n")
    else:
        table.to_csv(root / name, sep="\t", header=False, index=False)
    return root


@pytest.mark.parametrize("name", ["DMOS.csv", "csiq_dmos.txt", "ref_dist_mos.txt", "csiq_label.txt"])
def test_exports_give_the_same_pairs(copy, whole, name):
    export(copy, name, whole[1])
    pairs = load_csiq(copy).pairs
    expected = load_csiq(whole[0]).pairs
    if name == "csiq_label.txt":
        assert pairs["score_std"].isna().all()
        pairs = pairs.assign(score_std=expected["score_std"])
    pd.testing.assert_frame_equal(without_source(pairs), without_source(expected))
    assert pairs["label_source"].str.startswith(f"{name}:").all()


def test_the_workbook_comes_first(copy, whole):
    table = whole[1].assign(dmos="0.5")
    table.to_csv(copy / "csiq_dmos.txt", sep="\t", header=False, index=False)
    assert load_csiq(copy).pairs["label_source"].str.startswith(WORKBOOK).all()
    (copy / WORKBOOK).unlink()
    table.to_csv(copy / "DMOS.csv", index=False)
    assert load_csiq(copy).pairs["label_source"].str.startswith("DMOS.csv").all()


@pytest.mark.parametrize("name", ["DMOS.csv", "csiq_dmos.txt"])
def test_numbers_that_a_program_made_of_whole_columns(copy, whole, name):
    table = whole[1].assign(image=whole[1]["image"].replace("1600", "1600.0"), dst_lev=whole[1]["dst_lev"] + ".0")
    export(copy, name, table)
    pd.testing.assert_frame_equal(without_source(load_csiq(copy).pairs), without_source(load_csiq(whole[0]).pairs))


def test_lower_case_lists_with_folders(copy, whole):
    lines = [f"{path.removeprefix('dst_imgs/').lower()} {score}" for path, score in
             load_csiq(whole[0]).pairs[["dist_path", "score"]].itertuples(index=False)]  # fmt: skip
    (copy / WORKBOOK).unlink()
    write_lines(copy / "csiq_label.txt", lines)
    pairs = load_csiq(copy).pairs
    assert pairs["dist_path"].tolist() == load_csiq(whole[0]).pairs["dist_path"].tolist()


def test_scores_in_other_units_are_noticed(copy, whole):
    export(copy, "DMOS.csv", whole[1].assign(dmos=(whole[1]["dmos"].astype(float) * 100).astype(str)))
    (sentence,) = load_csiq(copy).omissions
    assert sentence.startswith("csiq: the mean DMOS is 35.07443, of the published labels it is 0.35074")


# ---- the workbook -----------------------------------------------------------------------------------------------


def test_image_1600_as_number_and_as_text(part):
    expected = load_csiq(part, strict=False).pairs
    for value in (1600.0, "1600", "1600.0", " 1600 "):
        change_workbook(part, **{f"D{row}": value for row in range(5, 34)})
        pd.testing.assert_frame_equal(load_csiq(part, strict=False).pairs, expected)


def test_the_header_is_found_wherever_it_is(part):
    expected = without_source(load_csiq(part, strict=False).pairs)
    book = openpyxl.load_workbook(part / WORKBOOK)
    sheet = book["all_by_image"]
    sheet.title = "All_by_image "
    sheet.insert_rows(1, 3)
    sheet.insert_cols(6, 2)
    sheet["D7"] = " Image"
    sheet.insert_rows(12)  # a blank row among the data
    (part / WORKBOOK).unlink()
    book.save(part / WORKBOOK)
    pairs = load_csiq(part, strict=False).pairs
    pd.testing.assert_frame_equal(without_source(pairs), expected)
    assert pairs["label_source"].tolist()[3:5] == [f"{WORKBOOK}:11", f"{WORKBOOK}:13"]


def test_a_stated_size_that_is_too_small_hides_nothing(part):
    """Some programs write `dimension ref="A1"`, and openpyxl then sees one cell."""
    expected = load_csiq(part, strict=False).pairs
    with zipfile.ZipFile(part / WORKBOOK) as book:
        files = {name: book.read(name) for name in book.namelist()}
    (part / WORKBOOK).unlink()
    with zipfile.ZipFile(part / WORKBOOK, "w") as book:
        for name, content in files.items():
            book.writestr(name, re.sub(rb'<dimension ref="[^"]*"', b'<dimension ref="A1"', content))
    pd.testing.assert_frame_equal(load_csiq(part, strict=False).pairs, expected)


@pytest.mark.parametrize(
    ("cell", "value", "message"),
    [
        ("I9", "#REF!", "dmos must be a finite number, found ''"),
        ("I9", None, "dmos must be a finite number, found ''"),
        ("H9", "n/a", "dmos_std must be a finite number, found 'n/a'"),
        ("G9", 1.5, "expected level 1 to 5, found '1.5'"),
        ("G9", 6, "expected level 1 to 5, found '6'"),
        ("F9", "wavelets", "unknown dst_type 'wavelets'"),
        ("F9", "blur", "dst_idx '1' is not that of dst_type 'blur', 5"),
        ("E9", None, "dst_idx '' is not that of dst_type 'noise', 1"),
        ("D9", None, "expected the name of an image, found ''"),
        ("D9", "1601", "no image 1601.png in src_imgs"),
    ],
)
def test_bad_cells_are_named_by_their_row(part, cell, value, message):
    change_workbook(part, **{cell: value})
    with pytest.raises(DatabaseError, match=re.escape(f"{WORKBOOK}:9: {message}")):
        load_csiq(part)
    data = load_csiq(part, strict=False)
    assert len(data) == 56
    assert data.omissions[0].startswith(f"{WORKBOOK}:9: {message}")


def test_workbooks_without_the_labels_are_refused(part):
    book = openpyxl.load_workbook(part / WORKBOOK)
    book["all_by_image"]["I4"] = "mos"
    (part / WORKBOOK).unlink()
    book.save(part / WORKBOOK)
    with pytest.raises(
        DatabaseError, match=r"csiq\.DMOS\.xlsx: no row of sheet all_by_image has the words image, dst_idx"
    ):
        load_csiq(part, strict=False)
    del book["all_by_image"]
    book.save(part / WORKBOOK)
    with pytest.raises(DatabaseError, match="has no sheet all_by_image, only raw, all_by_distortion"):
        load_csiq(part, strict=False)


@pytest.mark.parametrize("damage", ["half", "text", "empty", "other zip"])
def test_damaged_workbooks_are_refused(part, damage):
    path = part / WORKBOOK
    content = path.read_bytes()
    path.unlink()
    if damage == "other zip":
        with zipfile.ZipFile(path, "w") as other:
            other.writestr("labels.txt", "1600 0.5")
    else:
        path.write_bytes({"half": content[: len(content) // 2], "text": b"image\tdmos\n", "empty": b""}[damage])
    with pytest.raises(DatabaseError, match=r"cannot read .*csiq\.DMOS\.xlsx: .*is it the original workbook\?"):
        load_csiq(part, strict=False)


# ---- names on disk ----------------------------------------------------------------------------------------------


def test_repacked_folders_in_the_root_and_lower_case_names(copy, whole):
    expected = load_csiq(whole[0]).pairs
    for folder in (copy / "dst_imgs").iterdir():
        for path in folder.iterdir():
            path.rename(path.with_name(path.name.lower()))
        folder.rename(copy / folder.name.upper())
    (copy / "dst_imgs").rmdir()
    pairs = load_csiq(copy).pairs
    assert pairs["dist_path"].iloc[0] == "AWGN/1600.awgn.1.png"
    assert (
        pairs["dist_path"].str.lower().tolist()
        == expected["dist_path"].str.removeprefix("dst_imgs/").str.lower().tolist()
    )
    same = [name for name in pairs if name != "dist_path"]
    pd.testing.assert_frame_equal(pairs[same], expected[same])


def test_images_of_all_types_in_one_folder(copy):
    for path in list((copy / "dst_imgs").rglob("*.png")):
        path.rename(copy / "dst_imgs" / path.name)
    assert load_csiq(copy).pairs["dist_path"].iloc[0] == "dst_imgs/1600.AWGN.1.png"


def test_the_written_workbook_is_like_the_real_one(tmp_path, whole):
    """The builder of this test's layouts puts the labels where the real workbook has them."""
    table = whole[1][whole[1]["image"].isin(["1600", "elk"])]
    write_csiq_workbook(tmp_path / "made.xlsx", table)
    made = openpyxl.load_workbook(tmp_path / "made.xlsx")["all_by_image"]
    real = openpyxl.load_workbook(LABELS / WORKBOOK)["all_by_image"]
    for row in range(4, 62):
        assert [made.cell(row, c).value for c in range(4, 10)] == [real.cell(row, c).value for c in range(4, 10)]
