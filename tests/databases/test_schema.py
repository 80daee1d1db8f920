"""Tables of pairs: schema, splits, label scale, look-up of files, label files, and the loader of synthetic databases."""

import json
import os
import re
import shutil
import unicodedata
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtamiq.databases.loading import LOADERS, data_folder, load_database
from vtamiq.databases.reading import FolderIndex, LabelRows
from vtamiq.databases.schema import PAIR_COLUMNS, PREFERENCE_COLUMNS, Database, DatabaseError, LabelScale, pair_table
from vtamiq.images.reading import write_png


def table(references=4, per_reference=3, **changes):
    rows = [(f"r{r:03d}", i) for r in range(references) for i in range(per_reference)]
    columns = {
        "database": "toy",
        "ref_id": [ref for ref, _ in rows],
        "ref_path": [f"ref/{ref}.png" for ref, _ in rows],
        "dist_path": [f"dist/{ref}_{i}.png" for ref, i in rows],
        "dist_type": 1,
        "dist_name": "blur",
        "level": [i + 1 for _, i in rows],
        "score": np.arange(len(rows), dtype=float),
        "score_name": "MOS",
        "higher_better": True,
        "label_source": [f"labels.txt:{n}" for n in range(1, len(rows) + 1)],
    }
    return pair_table(**columns | changes)


def database(pairs=None, root="data", **changes):
    pairs = table() if pairs is None else pairs
    facts = {"name": "toy", "score_name": "MOS", "higher_better": True, "synthetic": True}
    return Database(root=root, pairs=pairs, **facts | changes)


def preferences(references=4):
    columns = {
        "database": "toy",
        "subset": "none",
        "ref_id": [f"r{r:03d}" for r in range(references)],
        "ref_path": [f"ref/r{r:03d}.png" for r in range(references)],
        "a_path": "a.png",
        "b_path": "b.png",
        "a_is_ref": False,
        "p_a": 0.25,
        "p_a_raw": np.nan,
        "kind": "pair",
        "label_source": [f"pairs.csv:{r}" for r in range(references)],
    }
    return pd.DataFrame(columns).astype(PREFERENCE_COLUMNS)


# ---- the table --------------------------------------------------------------------------------------------------


def test_pair_table_follows_the_schema_and_fills_in_what_a_database_lacks():
    pairs = pair_table(
        database="x", ref_id=["b", "a"], ref_path=["b.bmp", "a.bmp"], dist_path=["1.bmp", "2.bmp"], score_name="DMOS",
        higher_better=False, label_source=["l:1", "l:2"], group=[7, 8],
    )  # fmt: skip
    assert list(pairs) == [*PAIR_COLUMNS, "group"]
    assert pairs.dtypes[list(PAIR_COLUMNS)].equals(
        pd.DataFrame({n: [] for n in PAIR_COLUMNS}).astype(PAIR_COLUMNS).dtypes
    )
    assert pairs["ref_id"].tolist() == ["a", "b"]
    assert pairs["group"].tolist() == [8, 7]
    assert pairs["subset"].tolist() == ["none", "none"]
    assert pairs["dist_type"].isna().all()
    assert pairs["level"].isna().all()
    assert pairs[["score", "score_std", "score_lo", "score_hi"]].isna().all(axis=None)


def test_pair_table_keeps_the_label_order_within_a_reference():
    pairs = table(references=1, dist_path=["z.png", "a.png", "m.png"])
    assert pairs["dist_path"].tolist() == ["z.png", "a.png", "m.png"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dist_path": "../x.png"}, "relative"),
        ({"dist_path": "/x.png"}, "relative"),
        ({"dist_path": "C:/x.png"}, "relative"),
        ({"dist_path": r"a\x.png"}, "relative"),
        ({"ref_id": ""}, "empty ref_id"),
        ({"subset": "testing"}, "subset"),
        ({"score": np.inf}, "infinite score"),
        ({"dist_path": "same.png"}, "listed twice"),
        ({"higher_better": [True] * 11 + [False]}, "higher_better must be True in all rows"),
        ({"database": "other"}, "database must be 'toy' in all rows"),
        ({"content": ["a", None] * 6}, "empty content"),
        ({"content": ["a", "a", "b"] * 4}, "second content of one ref_id"),
        ({"ref_id": "one"}, "second reference image"),
    ],
)
def test_bad_rows_are_refused_with_their_label(changes, message):
    with pytest.raises(DatabaseError, match=rf"{message}.*labels\.txt:\d+"):
        database(table(**changes))


def test_bad_columns_are_refused():
    with pytest.raises(DatabaseError, match="lacks the columns score"):
        database(table().drop(columns=["score", "score_std"]))
    with pytest.raises(DatabaseError, match="level must have the type Int16"):
        database(table().astype({"level": "int64"}))
    with pytest.raises(DatabaseError, match="sorted"):
        database(table().iloc[::-1])
    with pytest.raises(DatabaseError, match="no rows"):
        database(table().iloc[:0])
    with pytest.raises(DatabaseError, match=r"needs the columns.*dist_path"):
        pair_table(database="x", ref_id=["a"])


def test_preferences_are_checked():
    assert len(database(preferences=preferences()).preferences) == 4
    with pytest.raises(DatabaseError, match=r"p_a outside.*pairs\.csv:0"):
        database(preferences=preferences().assign(p_a=1.5))
    with pytest.raises(DatabaseError, match="p_a outside"):
        database(preferences=preferences().assign(p_a=np.nan))


# ---- the database -----------------------------------------------------------------------------------------------


def test_database_says_what_it_is(tmp_path):
    data = database(root=tmp_path)
    assert len(data) == 12
    assert data.references == ["r000", "r001", "r002", "r003"]
    assert repr(data) == "<Database toy: 12 pairs of 4 references, MOS (higher is better)>"
    assert data.path("ref/r000.png") == tmp_path / "ref" / "r000.png"
    with pytest.raises(DatabaseError, match=r"\.\."):
        data.path("../secret.png")


def test_subset_by_references_and_by_mask():
    data = database(preferences=preferences())
    chosen = data.subset(["r002", "r000"])
    assert chosen.pairs["ref_id"].tolist() == ["r000"] * 3 + ["r002"] * 3
    assert chosen.pairs.index.tolist() == list(range(6))
    assert chosen.preferences["ref_id"].tolist() == ["r000", "r002"]
    first_levels = data.subset(data.pairs["level"] == 1)
    assert first_levels.pairs["score"].tolist() == [0, 3, 6, 9]
    assert len(data) == 12
    with pytest.raises(DatabaseError, match="no reference r9"):
        data.subset(["r000", "r9"])
    with pytest.raises(DatabaseError, match="mask needs 12"):
        data.subset(np.ones(3, bool))
    with pytest.raises(DatabaseError, match="no pairs"):
        data.subset(np.zeros(12, bool))
    with pytest.raises(DatabaseError, match="no pairs"):
        data.subset([])


@pytest.mark.parametrize(
    ("references", "counts"), [(29, (19, 5, 5)), (30, (18, 6, 6)), (25, (15, 5, 5)), (81, (49, 16, 16))]
)
def test_split_counts_are_those_of_the_paper(references, counts):
    parts = database(table(references)).split()
    assert tuple(len(part.references) for part in parts) == counts


def test_split_is_fixed_by_the_seed():
    train, val, test = database(table(10)).split(seed=3)
    order = [f"r{i:03d}" for i in np.random.default_rng(3).permutation(10)]
    assert (train.references, val.references, test.references) == (
        sorted(order[:6]),
        sorted(order[6:8]),
        sorted(order[8:]),
    )
    again = database(table(10)).split(seed=3)
    assert [part.references for part in again] == [train.references, val.references, test.references]
    assert database(table(10)).split(seed=4)[0].references != train.references


@settings(max_examples=12, deadline=None)
@given(
    references=st.integers(10, 40),
    ratios=st.sampled_from([(0.6, 0.2, 0.2), (0.8, 0.2), (0.7, 0.1, 0.2), (0.5, 0.5)]),
    seed=st.integers(0, 2**32),
)
def test_split_shares_no_reference_and_loses_none(references, ratios, seed):
    data = database(table(references, per_reference=1))
    parts = data.split(ratios, seed)
    names = [reference for part in parts for reference in part.references]
    assert len(parts) == len(ratios)
    assert sorted(names) == data.references
    for part, ratio in zip(parts[1:], ratios[1:], strict=True):
        assert len(part.references) == int(round(references * ratio, 9))


@pytest.mark.parametrize("ratios", [(1.0,), (0.5, 0.4), (0.6, 0.4, 0.0), (0.4, 0.3, 0.2, 0.1), (0.6, 0.6, -0.2)])
def test_split_refuses_ratios_that_make_no_sense(ratios):
    with pytest.raises(DatabaseError, match="ratios"):
        database().split(ratios)


def test_split_refuses_empty_parts():
    with pytest.raises(DatabaseError, match="4 contents, too few"):
        database().split()  # floor(0.2 * 4) is 0


@given(seed=st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_views_of_one_content_stay_together(seed):
    content = np.repeat([f"c{k}" for k in range(6)], 2 * 3)  # two references of three pairs each
    data = database(table(12, content=content))
    parts = data.split(seed=seed)
    assert [len(part.references) for part in parts] == [8, 2, 2]
    assert sum(len(set(part.contents.values())) for part in parts) == 6
    torn = table(12, content=content, subset=np.repeat(["train", "test", *["train"] * 9, "test"], 3))
    with pytest.raises(DatabaseError, match="content 'c0' is in more than one part"):
        database(torn).distributed_split()


def test_distributed_split():
    subset = np.repeat(["test", "train", "train", "val"], 3)
    train, val, test = database(table(subset=subset)).distributed_split()
    assert (train.references, val.references, test.references) == (["r001", "r002"], ["r003"], ["r000"])
    train, test = database(table(subset=np.repeat(["test", "train"], 6))).distributed_split()
    assert test.references == ["r000", "r001"]
    for bad in (["none"] * 12, ["train"] * 12, ["train"] * 6 + ["test"] * 5 + ["none"]):
        with pytest.raises(DatabaseError, match="use split"):
            database(table(subset=bad)).distributed_split()
    with pytest.raises(DatabaseError, match="'r000' is in more than one part"):
        database(table(subset=["train"] * 2 + ["test"] * 10)).distributed_split()


# ---- labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("higher_better", "expected"), [(True, [1, 0.5, 0, 1.5]), (False, [0, 0.5, 1, -0.5])])
def test_label_scale_turns_both_directions_into_distortions(higher_better, expected):
    scores = [2.0, 4.0, 6.0]
    pairs = table(1, score=scores, higher_better=higher_better)
    scale = LabelScale.fit(database(pairs, higher_better=higher_better))
    assert scale.to_distortion([*scores, 0.0]).tolist() == expected
    assert LabelScale(**json.loads(json.dumps(asdict(scale)))) == scale


def test_label_scale_sees_the_training_part_only():
    pairs = table(2, score=[1, 2, 3, -100, 0, 100], subset=["train"] * 3 + ["test"] * 3)
    train, test = database(pairs).distributed_split()
    scale = LabelScale.fit(train)
    assert (scale.best, scale.worst) == (3, 1)
    assert scale.to_distortion(test.pairs["score"]).tolist() == [51.5, 1.5, -48.5]


def test_label_scale_refuses_missing_and_constant_scores():
    with pytest.raises(DatabaseError, match=r"1 of 3 rows have no score, first labels.txt:2"):
        LabelScale.fit(database(table(1, score=[1, np.nan, 2])))
    with pytest.raises(DatabaseError, match="all 3 scores"):
        LabelScale.fit(database(table(1, score=1.0)))
    for worst in (1, float("nan")):
        with pytest.raises(DatabaseError):
            LabelScale(best=1, worst=worst)


# ---- files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name in ("Images/I01.BMP", "Images/i02.bmp", "Images/.DS_Store", "Images/Thumbs.db", "Images/._I01.BMP"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


def test_folder_index_ignores_case_and_clutter(folder):
    index = FolderIndex(folder)
    assert index.find("images/i01.bmp") == "Images/I01.BMP"
    assert index.find(r"IMAGES\I02.BMP") == "Images/i02.bmp"
    assert index.get("images/.ds_store") is None
    assert index.get("images/i01.bmp/below") is None
    assert index.find("refs", "images") == "Images"
    assert index.files("images", [".bmp"]) == ["Images/I01.BMP", "Images/i02.bmp"]
    with pytest.raises(DatabaseError, match=r"has no images/i03\.bmp"):
        index.find("images/i03.bmp")
    with pytest.raises(DatabaseError, match="none of refs, references"):
        index.find("refs", "references")
    with pytest.raises(DatabaseError, match="no such folder"):
        FolderIndex(folder / "missing")


def test_names_in_either_unicode_form_are_the_same(tmp_path):
    """macOS writes decomposed names into its archives, label files have composed ones, or the other way round."""
    composed, decomposed = (unicodedata.normalize(form, "Bäume/é1.PNG") for form in ("NFC", "NFD"))
    path = tmp_path / decomposed
    path.parent.mkdir()
    path.touch()
    on_disk = f"{os.listdir(tmp_path)[0]}/{os.listdir(path.parent)[0]}"
    for name in (composed, decomposed, composed.lower()):
        assert FolderIndex(tmp_path).get(name) == on_disk
    assert FolderIndex(tmp_path).files("bäume", [".png"]) == [on_disk]


@pytest.mark.parametrize(
    "name", ["../images/i01.bmp", "images/../../x", "/etc/passwd", r"..\x", r"\x", "C:/x", "c:x", "", "a//b", "x\0y"]
)
def test_folder_index_refuses_names_that_lead_elsewhere(folder, name):
    with pytest.raises(DatabaseError, match="no path within the database"):
        FolderIndex(folder).get(name)


def test_files_that_differ_only_by_case_are_ambiguous(folder):
    (folder / "Images" / "i01.bmp").write_bytes(b"")
    if len(os.listdir(folder / "Images")) == 5:
        pytest.skip("this file system does not tell case apart")
    with pytest.raises(DatabaseError, match=r"I01\.BMP and i01\.bmp .* differ only by letter case"):
        FolderIndex(folder).get("images/I01.bmp")
    assert FolderIndex(folder).get("images/i02.bmp") == "Images/i02.bmp"


def test_label_files_are_read_by_names_or_without_a_header(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b'\xef\xbb\xbfimage, Score ,more\r\na.png,1.5,x\r\n\r\n"b,c.png", 2 ,y')
    rows = LabelRows.read(FolderIndex(tmp_path), "LABELS.csv", ("score", "image"))
    assert list(rows.table) == ["score", "image", "label_source"]
    assert rows.table.values.tolist() == [["1.5", "a.png", "labels.csv:2"], ["2", "b,c.png", "labels.csv:4"]]
    rows.number("score")
    assert rows.table["score"].tolist() == [1.5, 2.0]
    (tmp_path / "mos.txt").write_bytes(b"5.5 i01_01_1.bmp\r\n4 i01_01_2.bmp\r\n")
    rows = LabelRows.read(FolderIndex(tmp_path), "mos.txt", ("mos", "name"), header="none", separator=None)
    assert rows.table.values.tolist() == [["5.5", "i01_01_1.bmp", "mos.txt:1"], ["4", "i01_01_2.bmp", "mos.txt:2"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "labels.csv is empty"),
        (b"image,level\na,1", r"labels.csv:1: no column score"),
        (b"image,score\na,1\nb\n", r"labels.csv:3: 2 fields expected, found 1"),
        (b"image,score\na,1\n\xff,2\n", r"labels.csv:3: not UTF-8"),
    ],
)
def test_damaged_label_files_are_refused_by_name_and_line(tmp_path, content, message):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DatabaseError, match=message):
        LabelRows.read(FolderIndex(tmp_path), "labels.csv", ("image", "score"))


@pytest.mark.parametrize("value", ["", "x", "nan", "inf", "1,5", "1.5.2"])
def test_a_score_that_is_no_number_is_refused_by_file_and_line(tmp_path, value):
    (tmp_path / "labels.csv").write_text(f"image;score\na;1\nb;{value}\n")
    index = FolderIndex(tmp_path)
    rows = LabelRows.read(index, "labels.csv", ("image", "score"), separator=";")
    message = rf"labels\.csv:3: score must be a finite number, found '{value}'"
    with pytest.raises(DatabaseError, match=message):
        rows.number("score")
    rows = LabelRows.read(index, "labels.csv", ("image", "score"), separator=";", strict=False)
    rows.number("score")
    assert rows.table.values.tolist() == [["a", 1.0, "labels.csv:2"]]
    assert re.fullmatch(message, rows.omissions[0])


def test_an_empty_field_may_stand_for_no_number(tmp_path):
    (tmp_path / "labels.csv").write_text("image,score\na,\nb,1\n")
    rows = LabelRows.read(FolderIndex(tmp_path), "labels.csv", ("image", "score"))
    rows.number("score", blank=True)
    np.testing.assert_array_equal(rows.table["score"], [np.nan, 1.0])


def test_a_quotation_mark_that_is_not_closed_spoils_its_own_line_only(tmp_path):
    lines = [f"{n}.png,{n}" for n in range(30_000)]
    lines[7] = '"7.png,7'
    (tmp_path / "labels.csv").write_text("\n".join(["image,score", *lines]))
    rows = LabelRows.read(FolderIndex(tmp_path), "labels.csv", ("image", "score"), strict=False)
    assert rows.omissions == ["labels.csv:9: a quotation mark is not closed"]
    assert rows.table["image"].tolist() == [f"{n}.png" for n in range(30_000) if n != 7]


def test_one_picture_cannot_be_two_contents():
    """Splits go by content, and would put the picture into two parts."""
    pairs = table(3, 2)
    pairs["ref_path"] = pairs["ref_path"].where(pairs["ref_id"] != "r001", "ref/r000.png")
    with pytest.raises(DatabaseError, match=r"one reference image is two contents.*r001"):
        database(pairs)
    content = pairs["ref_id"].replace({"r001": "r000"}).astype("str")
    database(pairs.assign(content=content))


def test_lines_of_another_length_are_left_out_if_asked(tmp_path):
    (tmp_path / "labels.csv").write_text("image,score\na,1\nb\nc,2,3\nd,4\n")
    rows = LabelRows.read(FolderIndex(tmp_path), "labels.csv", ("image", "score"), strict=False)
    assert rows.table["image"].tolist() == ["a", "d"]
    assert rows.omissions == ["labels.csv:3: 2 fields expected, found 1", "labels.csv:4: 2 fields expected, found 3"]


def labels(*names):
    return pd.DataFrame({"name": names, "label_source": [f"l.txt:{n}" for n in range(1, len(names) + 1)]}, dtype="str")


def test_images_are_located_whatever_their_case(folder):
    rows = LabelRows(FolderIndex(folder), labels("i01.bmp", "I02.bmp"))
    rows.locate("name", "elsewhere", "images")
    assert rows.table["name"].tolist() == ["Images/I01.BMP", "Images/i02.bmp"]
    assert rows.omissions == []


def test_missing_images_are_an_error_or_a_stated_omission(folder):
    index, names = FolderIndex(folder), labels("i01.bmp", "i03.bmp", "i02.bmp", "../i01.bmp")
    with pytest.raises(DatabaseError, match=r"^l\.txt:2: no image i03\.bmp in images .*\(2 such rows\).*strict=False"):
        LabelRows(index, names).locate("name", "images")
    rows = LabelRows(index, names, strict=False)
    rows.locate("name", "images")
    assert rows.table["name"].tolist() == ["Images/I01.BMP", "Images/i02.bmp"]
    assert rows.table["label_source"].tolist() == ["l.txt:1", "l.txt:3"]
    assert rows.omissions[0] == "l.txt:2: no image i03.bmp in images (letter case does not matter)"
    assert rows.omissions[1].startswith("l.txt:4: '../i01.bmp' is no path within the database")
    with pytest.raises(DatabaseError, match="no row of 2 can be used"):
        LabelRows(index, labels("x", "y"), strict=False).locate("name", "images")
    with pytest.raises(DatabaseError, match=r"l\.txt:1: '/i01\.bmp' is no path within"):
        LabelRows(index, labels("/i01.bmp")).locate("name", "images")


# ---- loading by name --------------------------------------------------------------------------------------------


def test_unknown_names_get_a_hint():
    with pytest.raises(DatabaseError, match=r"did you mean `synthetic`.*there are .*synthetic"):
        load_database("syntetic")
    with pytest.raises(DatabaseError, match="unknown database 'xyz'; there are"):
        load_database("xyz")


def test_a_missing_folder_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("VTAMIQ_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DatabaseError, match=r"nowhere \(VTAMIQ_DATA\)"):
        load_database("synthetic")
    monkeypatch.setenv("VTAMIQ_DATA", str(tmp_path))
    with pytest.raises(DatabaseError, match="looked for synthetic"):
        load_database("synthetic")
    monkeypatch.delenv("VTAMIQ_DATA")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatabaseError, match="VTAMIQ_DATA is not set"):
        load_database("synthetic")
    with pytest.raises(DatabaseError, match=r"no folder .*other"):
        load_database("synthetic", tmp_path / "other")


def test_notebooks_look_beside_their_folder(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.delenv("VTAMIQ_DATA", raising=False)
    for here, expected in (("notebooks", "../{}"), (".", "{}")):
        monkeypatch.chdir(tmp_path / here)
        assert data_folder() == Path(expected.format("data"))
        monkeypatch.setenv("VTAMIQ_DATA", "mine")
        assert data_folder() == Path(expected.format("mine"))
        monkeypatch.setenv("VTAMIQ_DATA", str(tmp_path))
        assert data_folder() == tmp_path
        monkeypatch.delenv("VTAMIQ_DATA")


@pytest.fixture
def made(tmp_path):
    """A folder in the form that synthesis writes, by hand: 2 references with 2 distorted images each."""
    root = tmp_path / "made"
    (root / "images").mkdir(parents=True)
    rows, scores = ["dist_img,ref_img,dmos,var"], ["dist_img,ref_img,ssim,gmsd"]
    for r, ref in enumerate(("I01", "I02")):
        write_png(root / "images" / f"{ref}.png", np.full((8, 8, 3), 100, np.uint8))
        for level in (1, 2):
            write_png(root / "images" / f"{ref}_10_{level:02d}.png", np.full((8, 8, 3), level, np.uint8))
            rows.append(f"{ref}_10_{level:02d}.png,{ref}.png,{5 - r - level},0.5")
            scores.append(f"{ref}_10_{level:02d}.png,{ref}.png,{1 - 0.2 * level},{0.1 * level}")
    (root / "dmos.csv").write_text("\n".join(rows) + "\n")
    (root / "iqm_scores.csv").write_text("\n".join(scores) + "\n")
    (root / "quantiles.json").write_text(
        '{"values": {"ssim": [0, 1], "gmsd": [0, 0.4]}, "ranks": {"ssim": [0, 1], "gmsd": [0, 1]}}'
    )
    references = [
        {"ref_id": "I01", "source": "a.jpg", "subset": "train", "content": "scene"},
        {"ref_id": "I02", "source": "b.jpg", "subset": "test"},
    ]
    manifest = {
        "format": 2, "complete": True, "pairs": 4, "types": {"10": "JPEG"}, "metrics": ["ssim", "gmsd"], "size": None,
        "references": references, "skipped": {"c.jpg": "truncated"}, "recipes_only": False, "photographs": None,
    }  # fmt: skip
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def change_manifest(root, **changes):
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps(manifest | changes))


def test_synthetic_database_is_loaded(made):
    data = load_database("Synthetic", made)
    assert (data.name, data.synthetic, data.higher_better) == ("made", True, True)
    assert data.score_name == "synthetic score (consensus of 2 IQMs)"
    assert data.omissions == ("c.jpg was skipped: truncated",)
    expected = table(2, 2, database="made")  # for its dtypes
    expected = expected.assign(
        subset=["train", "train", "test", "test"],
        ref_id=["I01", "I01", "I02", "I02"],
        ref_path=["images/I01.png"] * 2 + ["images/I02.png"] * 2,
        dist_path=[f"images/I{r}_10_0{level}.png" for r in ("01", "02") for level in (1, 2)],
        dist_name="JPEG",
        score=[4.0, 3.0, 3.0, 2.0],
        score_name=data.score_name,
        score_std=0.5,
        score_lo=1.0,
        score_hi=5.0,
        label_source=["dmos.csv:2", "dmos.csv:3", "dmos.csv:4", "dmos.csv:5"],
        content=["scene"] * 2 + ["I02"] * 2,  # its own where none is stated
        ref_sha256="",
    )
    expected["dist_type"] = pd.array([10] * 4, dtype="Int16")
    extra = {"native_ssim": [0.8, 0.6] * 2, "native_gmsd": [0.1, 0.2] * 2}
    extra |= {"rank_ssim": [0.2, 0.4] * 2, "rank_gmsd": [0.25, 0.5] * 2}
    pd.testing.assert_frame_equal(data.pairs, expected.assign(**extra))
    assert all(data.path(path).is_file() for path in data.pairs["dist_path"])


def test_synthetic_database_is_found_by_its_folder_name(made, monkeypatch):
    shutil.copytree(made, made.parent / "Synthetic")
    monkeypatch.setenv("VTAMIQ_DATA", str(made.parent))
    assert load_database("synthetic").name == "Synthetic"


def test_synthetic_database_reports_missing_images(made):
    (made / "images" / "I01_10_02.png").unlink()
    with pytest.raises(DatabaseError, match=r"dmos\.csv:3: no image I01_10_02\.png"):
        load_database("synthetic", made)
    data = load_database("synthetic", made, strict=False)
    assert len(data) == 3
    assert data.omissions[1].startswith("dmos.csv:3: no image I01_10_02.png")


def test_synthetic_database_reports_missing_rows(made):
    lines = (made / "dmos.csv").read_text().splitlines()
    (made / "dmos.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(DatabaseError, match="3 rows, 4 were written"):
        load_database("synthetic", made)
    assert load_database("synthetic", made, strict=False).omissions[1] == "dmos.csv has 3 rows, 4 were written"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("I01_10_01.png,I01.png,high,0.5", r"dmos\.csv:2: dmos must be a finite number, found 'high'"),
        ("I01_10_01.png,I01.png,4,nan", r"dmos\.csv:2: var must be a finite number"),
        ("I01.png,I01.png,4,0.5", r"dmos\.csv:2: expected <reference>_<type>_<level>\.png"),
        ("I02_10_01.png,I01.png,4,0.5", r"dmos\.csv:2: 'I02_10_01\.png' is not of 'I01\.png'"),
        ("../I01_10_01.png,../I01.png,4,0.5", r"dmos\.csv:2: '\.\./I01\.png' is no path within"),
        ("I01_10_01.png,I01.png,4", r"dmos\.csv:2: 4 fields expected"),
    ],
)
def test_synthetic_database_refuses_bad_rows_by_file_and_line(made, row, message):
    lines = (made / "dmos.csv").read_text().splitlines()
    (made / "dmos.csv").write_text("\n".join([lines[0], row, *lines[2:]]))
    with pytest.raises(DatabaseError, match=message):
        load_database("synthetic", made)


def test_synthetic_database_refuses_unfinished_and_foreign_folders(made):
    change_manifest(made, complete=False)
    with pytest.raises(DatabaseError, match="unfinished"):
        load_database("synthetic", made)
    change_manifest(made, format=99)
    with pytest.raises(DatabaseError, match="format 99"):
        load_database("synthetic", made)
    (made / "manifest.json").write_text('{"format": 2}')
    with pytest.raises(DatabaseError, match="lacks complete"):
        load_database("synthetic", made)
    (made / "manifest.json").write_text("{")
    with pytest.raises(DatabaseError, match=r"cannot read .*manifest\.json"):
        load_database("synthetic", made)
    (made / "manifest.json").unlink()
    with pytest.raises(DatabaseError, match="vtamiq did not make"):
        load_database("synthetic", made)


def test_unknown_options_are_refused(made):
    with pytest.raises(TypeError, match="colour"):
        load_database("synthetic", made, colour=True)


def test_every_registered_loader_has_folders():
    assert all(loader.folders and callable(loader.load) for loader in LOADERS.values())
