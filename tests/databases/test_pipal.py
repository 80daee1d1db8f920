"""PIPAL: the whole published label table, all layouts in circulation, parts without labels, and bad copies."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vtamiq.databases import pipal
from vtamiq.databases.pipal import PIPAL, load_pipal
from vtamiq.databases.schema import DatabaseError, LabelScale
from vtamiq.images.reading import write_png

PUBLISHED = pd.read_csv(Path(__file__).parents[1] / "data" / "labels" / "pipal_train.csv.xz", dtype={"elo": str})


class Links:
    """Hard links to one small image; file systems limit how many a file may have."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0

    def __call__(self, path):
        image = self.folder / f"image{self.count // 5000}.png"
        if not image.exists():
            write_png(image, np.zeros((16, 16, 3), np.uint8))
        os.link(image, path)
        self.count += 1


def build(root, labels, folder_of, references="Train_Ref", scores="Train_Label", ending="\n"):
    """A train part; `folder_of` gives the folder of an image from the number (1-4) of its distributed folder."""
    link = Links(root)
    for folder in {references, scores, *map(folder_of, (1, 2, 3, 4))}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for reference, rows in labels.groupby(labels["name"].str[:5]):
        link(root / references / f"{reference}.bmp")
        lines = [f"{name},{elo}" for name, elo in zip(rows["name"], rows["elo"], strict=True)]
        (root / scores / f"{reference}.txt").write_text(ending.join(lines), newline="")
        for name, number in zip(rows["name"], rows["distortion_folder"], strict=True):
            link(root / folder_of(number) / name)
    (root / scores / ".DS_Store").write_bytes(b"\xff\x00")
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return build(tmp_path_factory.mktemp("pipal"), PUBLISHED, "Distortion_{}".format)


def test_the_whole_train_part(whole):
    data = load_pipal(whole, check_images=False)
    assert (data.name, data.score_name, data.higher_better, data.synthetic) == ("pipal", "Elo", True, False)
    assert data.omissions == ()  # so the mean is the published one as well
    assert (len(data), len(data.references)) == (23_200, 200)
    assert round(data.pairs["score"].mean(), 4) == 1448.9596
    assert (data.pairs["score"].min(), data.pairs["score"].max()) == (916.7136, 1835.9856)
    pairs = data.pairs
    np.testing.assert_array_equal(pairs["dist_path"].str.rpartition("/")[2], PUBLISHED["name"])
    np.testing.assert_array_equal(pairs["score"], PUBLISHED["elo"].astype(float))
    np.testing.assert_array_equal(pairs["dist_path"].str[11].astype(int), PUBLISHED["distortion_folder"])
    groups = pairs[pairs["ref_id"] == "A0248"].groupby("dist_type").size()
    assert groups.to_dict() == {0: 12, 1: 16, 2: 10, 3: 24, 4: 13, 5: 14, 6: 27}
    row = pairs.iloc[115]
    assert (row["dist_path"], row["ref_path"]) == ("Distortion_1/A0001_06_26.bmp", "Train_Ref/A0001.bmp")
    assert (row["dist_type"], row["dist_name"], row["variant"]) == (6, "super-resolution and denoising", 26)
    assert row["label_source"] == "Train_Label/A0001.txt:116"
    assert pairs["level"].isna().all()
    assert (pairs["dist_name"] != "").all()
    assert set(pairs["subset"]) == {"train"}


def test_a_lost_reference_is_missed(whole):
    os.rename(whole / "Train_Label/A0100.txt", whole / "Train_Label/A0100.txt.part")
    try:
        with pytest.raises(DatabaseError, match="23084 of 23200 pairs and 199 of 200 references"):
            load_pipal(whole, check_images=False)
        assert len(load_pipal(whole, check_images=False, strict=False)) == 23_084
    finally:
        os.rename(whole / "Train_Label/A0100.txt.part", whole / "Train_Label/A0100.txt")


# ---- small copies -----------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """The first three images of one reference of each distributed folder, as if that were all."""
    labels = PUBLISHED[PUBLISHED["name"].str[:5].isin(["A0001", "A0060", "A0121", "A0185"])]
    labels = labels[labels["name"].str[5:].isin(["_00_00.bmp", "_03_11.bmp", "_06_26.bmp"])]
    facts = replace(PIPAL["train"], references=4, pairs=12, score_mean=labels["elo"].astype(float).mean())
    monkeypatch.setitem(pipal.PIPAL, "train", facts)
    return labels


@pytest.mark.parametrize(
    "folder_of",
    [
        "Distortion_{}", "Distortion/Distortion_{}", "Train_Dist/Distortion_{}", "Train_Dist", "Train_Dis", "Distortion",
        "train_dist",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("references", "scores"), [("Train_Ref", "Train_Label"), ("Reference_train", "MOS_Scores_train")]
)
def test_all_folder_names_in_circulation(tmp_path, few, folder_of, references, scores):
    data = load_pipal(build(tmp_path, few, folder_of.format, references, scores, ending="\r\n"))
    assert (len(data), data.omissions) == (12, ())
    expected = [f"{folder_of.format(n)}/{name}" for n, name in zip(few["distortion_folder"], few["name"], strict=True)]
    assert data.pairs["dist_path"].tolist() == expected
    assert data.pairs["score"].tolist() == few["elo"].astype(float).tolist()
    assert data.pairs["label_source"].iloc[0] == f"{scores}/A0001.txt:1"


def test_one_merged_label_file(tmp_path, few):
    build(tmp_path, few, "Train_Dist".format)
    for file in (tmp_path / "Train_Label").glob("*.txt"):
        file.unlink()
    lines = [f"{name}, {elo}" for name, elo in zip(few["name"], few["elo"], strict=True)]
    (tmp_path / "Train_Label/pipal_train.txt").write_text("\n".join(lines))
    assert load_pipal(tmp_path).pairs["score"].tolist() == few["elo"].astype(float).tolist()


@pytest.fixture
def root(tmp_path, few):
    return build(tmp_path, few, "Distortion_{}".format)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("A0060_03_11.bmp,", "A0060_03_11.bmp,x", "score must be a finite number, found 'x"),
        ("A0060_03_11.bmp,", "A0060_03_11.bmp,inf,", "2 fields expected, found 3"),
        ("A0060_03_11.bmp,", "A0060_03_11.bmp", "2 fields expected, found 1"),
        ("A0060_03_11", "A0060_03_11_1", "expected <reference>_<group>_<number>"),
        ("A0060_03_11", "../../x", r"'\.\./\.\./x\.bmp' is not of A0060"),
        ("A0060_03_11", "A0060/../x", r"expected <reference>_<group>_<number>\.bmp, found 'A0060/\.\./x\.bmp'"),
        ("A0060_03_11", "A0001_03_11", r"'A0001_03_11\.bmp' is not of A0060"),
        ("A0060_03_11", "A0060_03_12", r"no image A0060_03_12\.bmp in Distortion_1 or Distortion_2"),
    ],
)
def test_bad_rows_are_named_or_left_out(root, old, new, message):
    file = root / "Train_Label/A0060.txt"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(DatabaseError, match=rf"^Train_Label/A0060\.txt:2: {message}"):
        load_pipal(root)
    data = load_pipal(root, strict=False)
    assert len(data) == 11
    assert len(data.omissions) == 2
    assert data.omissions[0].startswith("Train_Label/A0060.txt:2: ")
    assert data.omissions[1].endswith("this one has 11 of 12 pairs")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", " is empty"), (b" \r\n", " is empty"), ("A0060_00_00.bmp,1".encode("utf-16"), ":1: not")],
)
def test_damaged_label_files_are_errors_or_one_omission_each(root, content, message):
    whole = load_pipal(root, strict=False)
    path = root / "Train_Label/A0060.txt"
    path.write_bytes(content)
    with pytest.raises(DatabaseError, match=rf"^Train_Label/A0060\.txt{message}"):
        load_pipal(root)
    data = load_pipal(root, strict=False)
    assert data.omissions[0].startswith(f"Train_Label/A0060.txt{message}")
    rest = whole.pairs[whole.pairs["ref_id"] != "A0060"].reset_index(drop=True)
    pd.testing.assert_frame_equal(data.pairs, rest)
    for other in (root / "Train_Label").iterdir():
        other.write_bytes(content)
    with pytest.raises(DatabaseError, match=r"none of the .* files can be used"):
        load_pipal(root, strict=False)


def test_images_missing_damaged_or_of_another_size(root):
    image = root / "Distortion_3/A0121_03_11.bmp"
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(DatabaseError, match=r"^Train_Label/A0121\.txt:2: no image A0121_03_11\.bmp"):
        load_pipal(root)
    image.write_bytes(content[:-40])
    with pytest.raises(DatabaseError, match=r"^Train_Label/A0121\.txt:2: cannot read Distortion_3/A0121_03_11\.bmp"):
        load_pipal(root)
    assert len(load_pipal(root, strict=False)) == 11
    assert len(load_pipal(root, check_images=False)) == 12
    os.unlink(image)
    write_png(root / "wide.png", np.zeros((16, 20, 3), np.uint8))
    os.rename(root / "wide.png", image)
    with pytest.raises(DatabaseError, match=r"A0121\.bmp is 16 x 16 and Distortion_3/A0121_03_11\.bmp is 20 x 16"):
        load_pipal(root)
    (root / "Train_Ref/A0121.bmp").unlink()
    with pytest.raises(DatabaseError, match=r"no image A0121\.bmp in Train_Ref .*3 such rows"):
        load_pipal(root)
    data = load_pipal(root, strict=False)
    assert data.references == ["A0001", "A0060", "A0185"]
    assert data.omissions[-1].endswith("this one has 9 of 12 pairs and 3 of 4 references")


def test_letter_case(root):
    os.rename(root / "Distortion_3/A0121_03_11.bmp", root / "Distortion_3/a0121_03_11.BMP")
    assert "Distortion_3/a0121_03_11.BMP" in set(load_pipal(root).pairs["dist_path"])
    (root / "Distortion_3/A0121_03_11.bmp").write_bytes(b"")
    if len(os.listdir(root / "Distortion_3")) == 4:
        with pytest.raises(DatabaseError, match=r"A0121\.txt:2: .*differ only by letter case"):
            load_pipal(root)


def test_missing_folders_are_named(root):
    for number in (1, 2, 3, 4):
        os.rename(root / f"Distortion_{number}", root / f"D{number}")
    with pytest.raises(DatabaseError, match="none of Train_Dist, Train_Dis, Distortion, Distortion_1, "):
        load_pipal(root)
    with pytest.raises(DatabaseError, match="none of Val_Ref, Reference_valid"):
        load_pipal(root, part="val")
    with pytest.raises(DatabaseError, match="parts train, val, ntire2022_val, ntire2022_test, not 'test'"):
        load_pipal(root, part="test")
    os.rename(root / "D1", root / "Distortion_1")
    for file in (root / "Train_Label").glob("*.txt"):
        file.unlink()
    with pytest.raises(DatabaseError, match="Train_Label has no label files"):
        load_pipal(root, strict=False)


def test_other_labels_than_the_published_ones_are_told(root):
    file = root / "Train_Label/A0060.txt"
    file.write_text("\n".join(line.replace(",1", ",2") for line in file.read_text().split("\n")))
    assert "are these the original labels?" in load_pipal(root).omissions[0]


# ---- parts without labels ---------------------------------------------------------------------------------------

PARTS = [
    ("val", "Val_Ref", "Val_Dist", "pipal_val", 40, "val"),
    ("val", "Reference_valid", "Distortion_valid", "pipal_val", 40, "val"),
    ("ntire2022_val", "NTIRE2022_FR_Valid_Ref", "NTIRE2022_FR_Valid_Dis", "ntire2022_val", 66, "val"),
    ("ntire2022_test", "NTIRE2022_FR_Testing_Ref", "NTIRE2022_FR_Testing_Dist", "ntire2022_test", 66, "test"),
]


@pytest.mark.parametrize(("part", "references", "distorted", "name", "per_reference", "subset"), PARTS)
def test_parts_without_labels(tmp_path, part, references, distorted, name, per_reference, subset):
    link = Links(tmp_path)
    for folder in (references, distorted):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "Thumbs.db").write_bytes(b"")
        if sys.platform == "linux":  # names are text elsewhere
            (tmp_path / folder / os.fsdecode(b"caf\xe9.bmp")).write_bytes(b"")
    for number in range(25):
        link(tmp_path / references / f"A{number:04d}.bmp")
        for variant in range(per_reference):
            link(tmp_path / distorted / f"A{number:04d}_10_{variant + number:02d}.bmp")  # with gaps
    data = load_pipal(tmp_path, part=part, check_images=part != "ntire2022_val")
    assert (data.name, data.score_name, data.omissions) == (name, "none published", ())
    assert (len(data), len(data.references)) == (25 * per_reference, 25)
    assert data.pairs["score"].isna().all()
    assert set(data.pairs["subset"]) == {subset}
    row = data.pairs.iloc[per_reference + 2]
    assert (row["ref_id"], row["dist_type"], row["dist_name"], row["variant"]) == ("A0001", 10, "", 3)
    assert row["label_source"] == row["dist_path"] == f"{distorted}/A0001_10_03.bmp"
    with pytest.raises(DatabaseError, match="have no score"):
        LabelScale.fit(data)
    (tmp_path / distorted / "A0001_10_03.bmp").unlink()
    with pytest.raises(DatabaseError, match=rf"has {25 * per_reference - 1} of {25 * per_reference} pairs"):
        load_pipal(tmp_path, part=part, check_images=False)
    (tmp_path / distorted / "x.bmp").write_bytes(b"")
    with pytest.raises(DatabaseError, match=rf"^{distorted}/x\.bmp: expected <reference>_<group>_<number>\.bmp"):
        load_pipal(tmp_path, part=part, check_images=False)
    for file in (tmp_path / distorted).iterdir():
        file.unlink()
    with pytest.raises(DatabaseError, match="has no images"):
        load_pipal(tmp_path, part=part, strict=False)
