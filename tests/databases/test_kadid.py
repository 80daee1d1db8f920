"""KADID-10k from its real labels, whose "dmos" is a mean opinion score."""

import re

import pytest

from tests.layouts import build_kadid10k, copy_layout, write_lines
from vtamiq.databases.kadid import load_kadid10k
from vtamiq.databases.loading import load_database
from vtamiq.databases.schema import DatabaseError, LabelScale


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(database, the published table)"""
    root = tmp_path_factory.mktemp("kadid") / "kadid10k"
    table = build_kadid10k(root)
    return load_kadid10k(root), table


@pytest.fixture
def part(tmp_path):
    """250 pairs of two references."""
    build_kadid10k(tmp_path / "part", references=["I01.png", "I40.png"])
    return tmp_path / "part"


def test_whole_database(whole):
    data, table = whole
    assert (data.name, data.score_name, data.higher_better, data.omissions) == ("kadid10k", "MOS", True, ())
    assert (len(data), data.references) == (10125, [f"I{n:02d}" for n in range(1, 82)])
    pairs = data.pairs
    assert pairs["score"].mean() == pytest.approx(3.03263, abs=5e-6)
    assert (pairs["score"].min(), pairs["score"].max()) == (1, 4.93)
    assert (pairs.loc[0, "score_lo"], pairs.loc[0, "score_hi"]) == (1, 5)
    assert pairs["score"].tolist() == table["dmos"].astype(float).tolist()
    assert pairs["dist_path"].tolist() == ("images/" + table["dist_img"]).tolist()
    assert pairs["ref_path"].tolist() == ("images/" + table["dist_img"].str[:3] + ".png").tolist()
    assert pairs["label_source"].tolist() == [f"dmos.csv:{n}" for n in range(2, 10127)]
    assert (pairs.groupby(["dist_type", "level"]).size() == 81).all()


def test_rows_that_can_be_named(whole):
    first = whole[0].pairs[["dist_path", "dist_name", "level", "score", "score_std"]].iloc[:2].to_numpy().tolist()
    assert first == [
        ["images/I01_01_01.png", "Gaussian blur", 1, 4.57, 0.496],  # var as it stands: it is a standard deviation
        ["images/I01_01_02.png", "Gaussian blur", 2, 4.33, 0.869],
    ]


def test_references_in_the_same_folder_are_no_distorted_images(whole):
    data, _ = whole
    assert not set(data.pairs["dist_path"]) & set(data.pairs["ref_path"])
    assert len(list((data.root / "images").iterdir())) == 10206


def test_higher_is_better(whole):
    """The weakest distortions have the highest scores on average, so the column is no DMOS."""
    data, _ = whole
    means = data.pairs.groupby("level")["score"].mean()
    assert means.is_monotonic_decreasing
    scale = LabelScale.fit(data)
    assert (scale.best, scale.worst) == (4.93, 1)


def test_types(whole):
    names = whole[0].pairs.groupby("dist_type")["dist_name"].unique()
    assert names.index.tolist() == list(range(1, 26))
    assert names.map(len).eq(1).all()
    assert [names[type][0] for type in (1, 9, 10, 15, 25)] == [
        "Gaussian blur", "JPEG2000", "JPEG", "denoise", "contrast change",
    ]  # fmt: skip


def test_split_is_that_of_the_paper(whole):
    train, val, test = whole[0].split()
    assert [len(part.references) for part in (train, val, test)] == [49, 16, 16]
    assert [len(part) for part in (train, val, test)] == [6125, 2000, 2000]


def test_it_is_found_by_name(part, monkeypatch):
    copy_layout(part, part.parent / "KADID10K")
    monkeypatch.setenv("VTAMIQ_DATA", str(part.parent))
    assert len(load_database("kadid10k", strict=False)) == 250


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("I01_26_01.png,I01.png,4,0.5", "types are 1 to 25 and levels 1 to 5, not those of 'images/I01_26_01.png'"),
        ("I01_01_06.png,I01.png,4,0.5", "types are 1 to 25 and levels 1 to 5"),
        ("I02_01_01.png,I01.png,4,0.5", "'I02_01_01.png' is not of 'I01.png'"),
        ("I01.png,I01.png,4,0.5", "expected <reference>_<type>_<level>.png, found 'I01.png'"),
        ("I01_01_01.png,I01.png,,0.5", "dmos must be a finite number, found ''"),
        ("I01_01_01.png,I01.png,4", "4 fields expected, found 3"),
    ],
)
def test_bad_lines_are_named(part, line, message):
    for name in ("I01_26_01.png", "I01_01_06.png"):
        (part / "images" / name).write_bytes((part / "images" / "I01.png").read_bytes())
    path = part / "dmos.csv"
    lines = path.read_text().splitlines()
    lines[1] = line
    write_lines(path, lines)
    expected = f"dmos.csv:2: {message}"
    with pytest.raises(DatabaseError, match=re.escape(expected)):
        load_kadid10k(part)
    data = load_kadid10k(part, strict=False)
    assert len(data) == 249
    assert data.omissions[0].startswith(expected)


def test_columns_in_another_order_and_without_spread(part):
    path = part / "dmos.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    whole = load_kadid10k(part, strict=False).pairs
    write_lines(path, (",".join([var, dmos, "x", ref, dist]) for dist, ref, dmos, var in rows))
    assert load_kadid10k(part, strict=False).pairs.equals(whole)
    write_lines(path, (",".join([dist, ref, dmos]) for dist, ref, dmos, var in rows))
    with pytest.raises(DatabaseError, match=r"dmos\.csv:1: no column var; the header is dist_img, ref_img, dmos"):
        load_kadid10k(part, strict=False)
