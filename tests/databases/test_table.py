"""Anybody's own csv of pairs: columns, direction, and what may be wrong with it."""

import os

import numpy as np
import pytest

from vtamiq.databases.schema import DatabaseError
from vtamiq.databases.table import load_table
from vtamiq.images.reading import write_png


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "Mine"
    for folder in ("photos", "out"):
        (root / folder).mkdir(parents=True)
    for name in ("photos/b", "photos/a", "out/a1", "out/a2", "out/b1"):
        write_png(root / f"{name}.png", np.zeros((16, 16, 3), np.uint8))
    (root / "pairs.csv").write_text(
        "reference,distorted,score\nphotos/b.png,out/b1.png,0.5\nphotos/a.png,out/a1.png,1\nphotos/a.png,out/a2.png,-2e1\n"
    )
    return root


def write(root, *lines, name="pairs.csv"):
    (root / name).write_text("\n".join(lines) + "\n")


def test_the_simplest_table(root):
    data = load_table(root, higher_better=False)
    assert (data.name, data.score_name, data.higher_better, data.synthetic) == ("Mine", "score", False, False)
    assert data.omissions == ()
    assert data.references == ["photos/a.png", "photos/b.png"]
    assert data.pairs["dist_path"].tolist() == ["out/a1.png", "out/a2.png", "out/b1.png"]
    assert data.pairs["score"].tolist() == [1, -20, 0.5]
    assert data.pairs["label_source"].tolist() == ["pairs.csv:3", "pairs.csv:4", "pairs.csv:2"]
    assert "content" not in data.pairs
    train, test = data.split((0.5, 0.5))
    assert {*train.references, *test.references} == set(data.references)


def test_all_columns_in_other_words(root):
    write(
        root,
        "Note;MOS; Ref ;Image;type;Dist_Name;LEVEL;subset;std;content;ref_id",
        r"x;3;photos\a.png;out/A1.png;4;blur;1;Train;0.5;scene;first",
        "y;2.5;photos/a.png;out/a2.png;;;;;;scene;first",
        "z;1;photos/b.png;out/b1.png;-7; noise ;2;TEST;0;;",
        name="my labels.csv",
    )
    data = load_table(
        root, labels="My labels.csv", separator=";", reference="ref", distorted="image", score="mos", higher_better=True,
        score_name="MOS", name="own", synthetic=True,
    )  # fmt: skip
    assert (data.name, data.score_name, data.higher_better, data.synthetic) == ("own", "MOS", True, True)
    pairs = data.pairs
    assert pairs["ref_id"].tolist() == ["first", "first", "photos/b.png"]
    assert data.contents == {"first": "scene", "photos/b.png": "photos/b.png"}
    assert pairs["dist_type"].fillna(0).tolist() == [4, 0, -7]
    assert pairs["dist_name"].tolist() == ["blur", "", "noise"]
    assert pairs["level"].fillna(0).tolist() == [1, 0, 2]
    assert pairs["subset"].tolist() == ["train", "none", "test"]
    np.testing.assert_array_equal(pairs["score_std"], [0.5, np.nan, 0])
    assert pairs["dist_path"].tolist() == ["out/a1.png", "out/a2.png", "out/b1.png"]
    assert pairs["ref_path"].tolist() == ["photos/a.png", "photos/a.png", "photos/b.png"]


def test_no_scores(root):
    data = load_table(root, score=None)
    assert (len(data), data.score_name) == (3, "none")
    assert data.pairs["score"].isna().all()


@pytest.mark.parametrize("direction", [None, "higher", 1])
def test_the_direction_must_be_given(root, direction):
    with pytest.raises(DatabaseError, match=rf"direction of scores cannot be guessed.*got {direction!r}"):
        load_table(root, higher_better=direction)


def test_columns_must_be_there_and_different(root):
    with pytest.raises(DatabaseError, match=r"pairs\.csv:1: no column mos; the header is reference, distorted, score"):
        load_table(root, score="mos", higher_better=True)
    write(root, "reference,distorted,score,Score", "photos/a.png,out/a1.png,1,2")
    with pytest.raises(DatabaseError, match=r"pairs\.csv:1: more than one column score"):
        load_table(root, higher_better=True)
    with pytest.raises(DatabaseError, match="different columns, got reference, distorted"):
        load_table(root, score="distorted", higher_better=True)
    with pytest.raises(DatabaseError, match="different columns, got Reference, reference"):
        load_table(root, reference="Reference", distorted="reference", score=None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("photos/a.png,out/a1.png,high,1,1,,1", "score must be a finite number, found 'high'"),
        ("photos/a.png,out/a1.png,,1,1,,1", "score must be a finite number, found ''"),
        ("photos/a.png,out/a1.png,inf,1,1,,1", "score must be a finite number"),
        ("photos/a.png,out/a1.png,1,blur,1,,1", "dist_type must be a finite number, found 'blur'"),
        ("photos/a.png,out/a1.png,1,1.5,1,,1", r"dist_type must be a whole number below 32768, found 1\.5"),
        ("photos/a.png,out/a1.png,1,1,70000,,1", r"level must be a whole number below 32768, found 70000\.0"),
        ("photos/a.png,out/a1.png,1,1,1,testing,1", "subset must be train, val, test or none, found 'testing'"),
        ("photos/a.png,out/a1.png,1,1,1,,-1", r"a standard deviation cannot be -1\.0"),
        ("photos/a.png,out/a1.png,1,1,1,1", "7 fields expected, found 6"),
        ("photos/a.png,out/a3.png,1,1,1,,1", r"no image out/a3\.png in the root"),
        ("photos/a.png,../../x,1,1,1,,1", r"'\.\./\.\./x' is no path within the database"),
        ("/etc/passwd,out/a1.png,1,1,1,,1", "'/etc/passwd' is no path within the database"),
        ("photos/a.png,,1,1,1,,1", "'' is no path within the database"),
    ],
)
def test_bad_rows_are_named_or_left_out(root, row, message):
    write(root, "reference,distorted,score,type,level,subset,std", "photos/b.png,out/b1.png,1,1,1,,", row)
    with pytest.raises(DatabaseError, match=rf"^pairs\.csv:3: {message}"):
        load_table(root, higher_better=True)
    data = load_table(root, higher_better=True, strict=False)
    assert data.pairs["dist_path"].tolist() == ["out/b1.png"]
    assert len(data.omissions) == 1
    assert data.omissions[0].startswith("pairs.csv:3: ")


def test_a_pair_or_content_that_contradicts_itself(root):
    write(root, "reference,distorted,score", "photos/a.png,out/a1.png,1", "PHOTOS/A.png,OUT/a1.png,2")
    message = r"pairs\.csv:2: pair listed twice, with 2 scores; give it one \(2 such rows\)"
    for strict in (True, False):
        with pytest.raises(DatabaseError, match=message):
            load_table(root, higher_better=True, strict=strict)
    write(root, "reference,distorted,score,ref_id", "photos/a.png,out/a1.png,1,x", "photos/b.png,out/b1.png,2,x")
    with pytest.raises(DatabaseError, match=r"second reference image of one ref_id: row 1 \(pairs\.csv:3"):
        load_table(root, higher_better=True)


@pytest.mark.parametrize("score", ["1", ""])
def test_of_a_pair_listed_twice_the_first_row_stays_unless_its_scores_differ(root, score):
    rows = ["photos/a.png,out/a1.png,1", "photos/b.png,out/b1.png,2", "photos/b.png,out/b1.png,2.0"]
    rows += ["photos/a.png,out/a2.png,3", "photos/a.png,out/a2.png,4", "photos/b.png,out/b1.png,2"]
    options = {"higher_better": True} if score else {"score": None}
    write(root, "reference,distorted,score", *rows)
    with pytest.raises(DatabaseError, match=r"^pairs\.csv:4: pair listed twice, first in pairs\.csv:3 \("):
        load_table(root, **options)
    data = load_table(root, strict=False, **options)
    repeats = [f"pairs.csv:{line}: pair listed twice, first in pairs.csv:3" for line in (4, 7)]
    if score:
        both = [f"pairs.csv:{line}: pair listed twice, with 2 scores; give it one" for line in (5, 6)]
        assert data.pairs["label_source"].tolist() == ["pairs.csv:2", "pairs.csv:3"]
        assert list(data.omissions) == [repeats[0], *both, repeats[1]]
    else:
        assert data.pairs["label_source"].tolist() == ["pairs.csv:2", "pairs.csv:5", "pairs.csv:3"]
        assert list(data.omissions) == [repeats[0], "pairs.csv:6: pair listed twice, first in pairs.csv:5", repeats[1]]


def test_images_damaged_of_another_size_or_ambiguous(root):
    content = (root / "out/a1.png").read_bytes()
    (root / "out/a1.png").write_bytes(content[:-40])
    with pytest.raises(DatabaseError, match=r"pairs\.csv:3: cannot read out/a1\.png"):
        load_table(root, higher_better=True)
    assert len(load_table(root, higher_better=True, strict=False)) == 2
    assert len(load_table(root, higher_better=True, check_images=False)) == 3
    write_png(root / "out/a1.png", np.zeros((16, 17, 3), np.uint8))
    with pytest.raises(DatabaseError, match=r"photos/a\.png is 16 x 16 and out/a1\.png is 17 x 16"):
        load_table(root, higher_better=True)
    (root / "out/A2.png").write_bytes(b"")
    if len(os.listdir(root / "out")) == 4:
        with pytest.raises(DatabaseError, match=r"pairs\.csv:4: A2\.png and a2\.png .* differ only by letter case"):
            load_table(root, higher_better=True, check_images=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"reference,distorted,score\n", "no rows below"),
        ("reference,distorted,score\n".encode("utf-16"), "pairs.csv:1: not UTF-8"),
    ],
)
def test_damaged_files_are_errors_always(root, content, message):
    (root / "pairs.csv").write_bytes(content)
    with pytest.raises(DatabaseError, match=message):
        load_table(root, higher_better=True, strict=False)
    (root / "pairs.csv").unlink()
    with pytest.raises(DatabaseError, match=r"has no pairs\.csv"):
        load_table(root, higher_better=True, strict=False)
