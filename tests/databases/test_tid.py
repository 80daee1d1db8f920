"""TID2008 and TID2013 from their real labels: letter case, reference 25, standard deviations by line, types and
levels."""

import re

import numpy as np
import pandas as pd
import pytest

from tests.layouts import build_tid2008, build_tid2013, copy_layout, write_lines
from vtamiq.databases.schema import DatabaseError
from vtamiq.databases.tid import load_tid2008, load_tid2013
from vtamiq.images.reading import read_image


@pytest.fixture(scope="module")
def whole2008(tmp_path_factory):
    root = tmp_path_factory.mktemp("tid") / "tid2008"
    return root, build_tid2008(root)


@pytest.fixture(scope="module")
def whole2013(tmp_path_factory):
    root = tmp_path_factory.mktemp("tid") / "tid2013"
    return root, build_tid2013(root)


@pytest.fixture
def copy(whole2013, tmp_path):
    return copy_layout(whole2013[0], tmp_path / "copy")


@pytest.fixture
def part(tmp_path):
    """240 pairs of TID2013: the references 07 and 25."""
    build_tid2013(tmp_path / "part", references=["07", "25"])
    return tmp_path / "part"


def change_line(path, number, line):
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    write_lines(path, lines)


# ---- what is published ------------------------------------------------------------------------------------------


def test_tid2013(whole2013):
    root, table = whole2013
    data = load_tid2013(root)
    assert (data.name, data.score_name, data.higher_better, data.omissions) == ("tid2013", "MOS", True, ())
    assert (len(data), data.references) == (3000, [f"I{n:02d}" for n in range(1, 26)])
    pairs = data.pairs
    assert pairs["score"].mean() == pytest.approx(4.47466, abs=5e-6)
    assert (pairs["score"].min(), pairs["score"].max()) == (0.24242, 7.21429)
    assert (pairs["score_std"].min(), pairs["score_std"].max()) == (0, 0.29978)
    assert (pairs.loc[0, "score_lo"], pairs.loc[0, "score_hi"]) == (0, 9)
    # the order of the labels is that of the sorted table
    assert pairs["score"].tolist() == table["mos"].astype(float).tolist()
    assert pairs["score_std"].tolist() == table["std"].astype(float).tolist()
    assert pairs["dist_path"].tolist() == ("distorted_images/" + table["label_name"]).tolist()
    assert pairs["label_source"].tolist() == [f"mos_with_names.txt:{n}" for n in range(1, 3001)]
    assert set(pairs.loc[pairs["ref_id"] == "I25", "ref_path"]) == {"reference_images/i25.bmp"}
    assert set(pairs.loc[pairs["ref_id"] == "I24", "ref_path"]) == {"reference_images/I24.BMP"}


def test_tid2008(whole2008):
    root, table = whole2008
    data = load_tid2008(root)
    assert (data.name, data.score_name, data.higher_better, data.omissions) == ("tid2008", "MOS", True, ())
    assert (len(data), data.references) == (1700, [f"I{n:02d}" for n in range(1, 26)])
    pairs = data.pairs
    assert pairs["score"].mean() == pytest.approx(4.47960, abs=5e-6)
    assert (pairs["score"].min(), pairs["score"].max(), (pairs["score"] == 0).sum()) == (0, 7.7143, 3)
    assert pairs["score"].tolist() == table["mos"].astype(float).tolist()
    assert pairs["score_std"].isna().all()
    assert table["label_name"].str.startswith("i").all()
    assert pairs["dist_path"].tolist() == ("distorted_images/" + table["disk_name"]).tolist()
    assert pairs["dist_path"].str.contains("/I").sum() == 1268


def test_names_are_those_of_reference_type_and_level(whole2008, whole2013):
    for data in (load_tid2008(whole2008[0]), load_tid2013(whole2013[0])):
        pairs = data.pairs
        made = [
            f"{r}_{t:02d}_{n}.bmp".lower()
            for r, t, n in zip(pairs["ref_id"], pairs["dist_type"], pairs["level"], strict=True)
        ]
        assert made == pairs["dist_path"].str.removeprefix("distorted_images/").str.lower().tolist()
        assert (pairs.groupby("ref_id").size() == len(data) // 25).all()


def test_types_are_the_same_in_both(whole2008, whole2013):
    old = load_tid2008(whole2008[0]).pairs.groupby("dist_type")["dist_name"].unique().map(list)
    new = load_tid2013(whole2013[0]).pairs.groupby("dist_type")["dist_name"].unique().map(list)
    assert (len(old), len(new)) == (17, 24)
    assert new[:17].equals(old)
    names = [name for of_type in new for name in of_type]
    assert len(set(names)) == 24
    assert (names[0], names[7], names[9], names[10]) == ("Gaussian noise", "Gaussian blur", "JPEG", "JPEG2000")
    assert (names[16], names[23]) == ("contrast change", "sparse sampling")


def test_levels_are_not_severity(whole2008, whole2013):
    """Known answers that a shift of rows, types or levels would break."""

    def means(data, type):
        rows = data.pairs[data.pairs["dist_type"] == type]
        return rows.groupby("level")["score"].mean().round(2).tolist()

    new, old = load_tid2013(whole2013[0]), load_tid2008(whole2008[0])
    assert means(new, 17) == [5.63, 6.48, 4.48, 6.29, 3.45]
    assert means(old, 17) == [6.82, 5.06, 6.57, 3.98]
    assert np.diff(means(new, 15)[::4]) > 0.7
    assert new.pairs.loc[new.pairs["score"].idxmax(), "dist_path"] == "distorted_images/i04_17_4.bmp"


def test_rows_that_can_be_named(part):
    with pytest.raises(DatabaseError, match=r"240 of 3000 pairs and 2 of 25 references.*strict=False"):
        load_tid2013(part)
    pairs = load_tid2013(part, strict=False).pairs.set_index("dist_path")
    first = pairs.loc["distorted_images/I07_01_1.bmp"]
    assert first[["score", "score_std", "label_source"]].tolist() == [5.68182, 0.11928, "mos_with_names.txt:1"]
    assert pairs.loc["distorted_images/i07_01_2.bmp", "score"] == 5.09091
    assert {"distorted_images/I07_11_1.BMP", "distorted_images/I07_13_1.BMP"} < set(pairs.index)


# ---- letter case ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_repacked_copies_of_one_case(copy, whole2013, case):
    for folder in ("distorted_images", "reference_images"):
        for path in list((copy / folder).iterdir()):
            path.rename(path.with_name(case(path.name)))
    pairs, expected = load_tid2013(copy).pairs, load_tid2013(whole2013[0]).pairs
    same = [name for name in pairs if not name.endswith("_path")]
    pd.testing.assert_frame_equal(pairs[same], expected[same])
    for column in ("ref_path", "dist_path"):
        assert pairs[column].str.lower().tolist() == expected[column].str.lower().tolist()
    assert pairs.loc[0, "dist_path"] == f"distorted_images/{case('i01_01_1.bmp')}"


def test_one_ending_of_a_public_copy_differs_from_its_label(copy):
    folder = copy / "distorted_images"
    (folder / "I04_11_1.BMP").rename(folder / "I04_11_1.bmp")
    assert "distorted_images/I04_11_1.bmp" in set(load_tid2013(copy).pairs["dist_path"])


def test_reference_25_in_either_case(whole2008, tmp_path):
    copy = copy_layout(whole2008[0], tmp_path / "copy")
    (copy / "reference_images" / "i25.bmp").rename(copy / "reference_images" / "I25.BMP")
    data = load_tid2008(copy)
    assert len(data) == 1700
    assert data.pairs["ref_path"].iloc[-1] == "reference_images/I25.BMP"


def test_an_ambiguous_reference_concerns_its_rows_only(copy):
    other = copy / "reference_images" / "i03.bmp"
    if other.exists():
        pytest.skip("this file system does not tell case apart")
    other.write_bytes((copy / "reference_images" / "I03.BMP").read_bytes())
    with pytest.raises(DatabaseError, match=r"mos_with_names\.txt:241: I03\.BMP and i03\.bmp .* \(120 such rows\)"):
        load_tid2013(copy)
    data = load_tid2013(copy, strict=False)
    assert (len(data), len(data.omissions)) == (2880, 121)
    assert "I03" not in data.references


# ---- the artificial reference -----------------------------------------------------------------------------------


def test_artificial_reference_left_out(whole2008, whole2013):
    for load, root, pairs in ((load_tid2008, whole2008[0], 1632), (load_tid2013, whole2013[0], 2880)):
        data, everything = load(root, artificial=False), load(root)
        assert (len(data), data.references) == (pairs, everything.references[:-1])
        assert data.omissions == (f"{data.name}: the artificial reference I25 was left out as asked",)
        pd.testing.assert_frame_equal(data.pairs, everything.pairs[everything.pairs["ref_id"] != "I25"])


def test_a_copy_without_the_artificial_reference(copy):
    for path in [*copy.glob("*/i25*"), *copy.glob("*/I25*")]:
        path.unlink()
    with pytest.raises(DatabaseError, match=r"mos_with_names\.txt:2881: no image I25\.bmp .*120 such rows"):
        load_tid2013(copy)
    assert len(load_tid2013(copy, artificial=False)) == 2880


# ---- labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5.1 i07_01_6.bmp", "expected iRR_TT_L.bmp (reference, type, level up to 5), found 'i07_01_6.bmp'"),
        ("5.1 i07_1_2.bmp", "expected iRR_TT_L.bmp"),
        ("5.1 i07_01_2.bmp.bak", "expected iRR_TT_L.bmp"),
        ("5.1 i07_25_2.bmp", "tid2013 has types 1 to 24, not 'i07_25_2.bmp'"),
        ("5.1 i07_00_2.bmp", "tid2013 has types 1 to 24, not 'i07_00_2.bmp'"),
        ("5.1 i26_01_2.bmp", "no image I26.bmp in reference_images"),
        ("i07_01_2.bmp 5.1", "expected iRR_TT_L.bmp"),
        ("5,1 i07_01_2.bmp", "score must be a finite number, found '5,1'"),
        ("inf i07_01_2.bmp", "score must be a finite number, found 'inf'"),
        ("5.1", "2 fields expected, found 1"),
    ],
)
def test_bad_lines_are_named(part, line, message):
    change_line(part / "mos_with_names.txt", 2, line)
    expected = f"mos_with_names.txt:2: {message}"
    with pytest.raises(DatabaseError, match=re.escape(expected)):
        load_tid2013(part)
    data = load_tid2013(part, strict=False)
    assert len(data) == 239
    assert data.omissions[0].startswith(expected)


def test_levels_and_types_of_tid2008_are_fewer(tmp_path):
    build_tid2008(tmp_path, references=["01"])
    for name, message in (("i01_01_5.bmp", "level up to 4"), ("i01_18_1.bmp", "tid2008 has types 1 to 17")):
        change_line(tmp_path / "mos_with_names.txt", 3, f"5.0 {name}")
        with pytest.raises(DatabaseError, match=rf"mos_with_names\.txt:3: .*{message}"):
            load_tid2008(tmp_path)


def test_labels_of_the_other_database_are_refused(whole2008, tmp_path):
    copy = copy_layout(whole2008[0], tmp_path / "copy")
    with pytest.raises(DatabaseError, match="1700 of 3000 pairs"):
        load_tid2013(copy)


# ---- standard deviations ----------------------------------------------------------------------------------------


def test_spread_may_be_missing(copy):
    (copy / "mos_std.txt").unlink()
    assert load_tid2013(copy).pairs["score_std"].isna().all()


def test_tid2008_with_spread(whole2008, tmp_path):
    copy = copy_layout(whole2008[0], tmp_path / "copy")
    write_lines(copy / "mos_std.txt", [f"{n / 10000:.4f}" for n in range(1, 1701)])
    assert load_tid2008(copy).pairs["score_std"].tolist() == [n / 10000 for n in range(1, 1701)]


@pytest.mark.parametrize("change", [lambda lines: lines[1:], lambda lines: [*lines, "0.1"]])
def test_spread_of_another_length_is_refused(part, change):
    path = part / "mos_std.txt"
    write_lines(path, change(path.read_text().splitlines()))
    for strict in (True, False):
        with pytest.raises(DatabaseError, match=r"mos_with_names\.txt has 240 lines and mos_std\.txt (239|241)"):
            load_tid2013(part, strict=strict)


def test_spread_stays_with_its_line_when_rows_are_left_out(part):
    whole = load_tid2013(part, strict=False).pairs
    change_line(part / "mos_with_names.txt", 3, "5.1")  # left out while it is read
    change_line(part / "mos_with_names.txt", 9, "x i07_02_4.bmp")
    change_line(part / "mos_std.txt", 6, "0.1 0.2")
    change_line(part / "mos_std.txt", 12, "nan")
    with pytest.raises(DatabaseError, match=r"mos_with_names\.txt:3"):
        load_tid2013(part)
    data = load_tid2013(part, strict=False)
    pd.testing.assert_frame_equal(data.pairs, whole.drop(index=[2, 5, 8, 11]).reset_index(drop=True))
    assert [sentence.split(": ")[:2] for sentence in data.omissions[:-1]] == [
        ["mos_with_names.txt:3", "2 fields expected, found 1"],
        ["mos_with_names.txt:6", "mos_std.txt has no number in the same line"],
        ["mos_with_names.txt:12", "mos_std.txt has no number in the same line"],
        ["mos_with_names.txt:9", "score must be a finite number, found 'x'"],
    ]
    change_line(part / "mos_with_names.txt", 3, "4.80000 i07_01_3.bmp")
    with pytest.raises(DatabaseError, match=r"mos_std\.txt:6: 1 fields expected, found 2"):
        load_tid2013(part)


# ---- the builder ------------------------------------------------------------------------------------------------


def test_layout_with_images_that_follow_the_score(tmp_path):
    def image(reference, type, level, score):
        assert (type == level == 0) is (score is None)
        grey = 200 if score is None else round(20 * score)
        return np.full((12, 10, 3), grey, np.uint8)

    build_tid2013(tmp_path, image, references=["04"])
    data = load_tid2013(tmp_path, strict=False)
    assert len(data) == 120
    for row in data.pairs.iloc[::30].itertuples():
        assert read_image(data.path(row.dist_path)).shape == (12, 10, 3)
        assert read_image(data.path(row.dist_path))[0, 0, 0] == round(20 * row.score)
    assert read_image(data.path("reference_images/I04.BMP"))[0, 0, 0] == 200


def test_standard_deviations_are_not_shifted_by_a_blank_line(tmp_path):
    build_tid2013(tmp_path, references=["07"])
    path = tmp_path / "mos_with_names.txt"
    lines = path.read_text().splitlines()
    write_lines(path, ["", *lines])
    for strict in (True, False):
        with pytest.raises(DatabaseError, match="blank ones elsewhere"):
            load_tid2013(tmp_path, strict=strict)
    write_lines(tmp_path / "mos_std.txt", ["", *(tmp_path / "mos_std.txt").read_text().splitlines()])
    assert len(load_tid2013(tmp_path, strict=False)) == 120
