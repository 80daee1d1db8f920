"""PieAPP in its real layout, with few images: names, preferences, scores, and what may be wrong with a copy."""

import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtamiq.databases import pieapp
from vtamiq.databases.pieapp import PIEAPP, listing_order, load_pieapp
from vtamiq.databases.schema import DatabaseError
from vtamiq.images.reading import write_png

PAIR_HEADER = "ref. image, distorted image A, distorted image B, raw preference for A, processed preference for A"
TEST_HEADER = "ref. image, distorted image A, distorted image B, preference for A"
SCORE_HEADER = "ref. image, distorted image, score for distorted image"
# subset → numbers of references; each has images with these endings
REFERENCES = {"train": (1, 2, 10), "val": (30,), "test": (7, 100)}
IMAGES = ("gaussian_blur_inter_1", "jpeg_inter_12", "local_inter_noise_intra_3")


def distorted(number, which):
    return f"distort_{number}_{IMAGES[which]}.png"


def label_text(subset, number):
    """The pairwise file: pairs 0-1 (asked), 0-2 and 1-2 (train and val: not asked); in test also the reference."""
    ref, (a, b, c) = f"ref_{number}.png", (distorted(number, which) for which in range(3))
    if subset != "test":
        return [PAIR_HEADER, f"{ref},{a},{b},0.25,0.3", f"{ref},{a},{c},,0.75", f"{ref},{b},{c}, ,1"]
    return [TEST_HEADER, f"{ref},{a},{b},0.4", f"{ref},{ref},{c},0.975", f"{ref},{b},{ref},0"]


def score_text(number):
    lines = [f"ref_{number}.png,{distorted(number, which)},{number + which / 10}" for which in (2, 0, 1)]
    return [SCORE_HEADER, *lines]


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(pieapp, "PIEAPP", replace(PIEAPP, references=6))
    monkeypatch.setattr(pieapp, "_PREFERENCES", 12)
    monkeypatch.setattr(pieapp, "_SCORES", 6)
    return build(tmp_path, REFERENCES)


def build(root, references):
    image = root / "image.png"
    write_png(image, np.zeros((16, 16, 3), np.uint8))
    for subset, numbers in references.items():
        write(root / f"{subset}_reference_list.txt", [f"ref_{number}.png" for number in numbers])
        (root / "reference_images" / subset).mkdir(parents=True)
        for number in numbers:
            os.link(image, root / "reference_images" / subset / f"ref_{number}.png")
            folder = root / "distorted_images" / subset / f"ref_{number}"
            folder.mkdir(parents=True)
            for which in range(3):
                os.link(image, folder / distorted(number, which))
            labels = root / "labels" / subset
            write(labels / f"ref_{number}_pairwise_labels.csv", label_text(subset, number))
            if subset == "test":
                write(labels / f"ref_{number}_per_image_score.csv", score_text(number))
        (root / "labels" / subset / ".DS_Store").write_bytes(b"\xff")
    return root


TRAIN, TEST = "labels/train/ref_2_pairwise_labels.csv", "labels/test/ref_7_pairwise_labels.csv"
SCORE = "labels/test/ref_7_per_image_score.csv"


def change(root, name, old, new):
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new, 1))


def test_pairs(root):
    data = load_pieapp(root)
    assert (data.name, data.score_name, data.higher_better, data.synthetic) == ("pieapp", "dissimilarity", False, False)
    assert data.omissions == ()
    assert data.references == ["ref_1", "ref_10", "ref_100", "ref_2", "ref_30", "ref_7"]
    assert len(data) == 18
    pairs = data.pairs
    assert pairs.groupby("subset")["ref_id"].nunique().to_dict() == {"train": 3, "val": 1, "test": 2}
    assert pairs["score"].notna().equals(pairs["subset"] == "test")
    test = pairs[pairs["ref_id"] == "ref_7"]
    assert test["dist_path"].tolist() == [f"distorted_images/test/ref_7/{distorted(7, which)}" for which in (2, 0, 1)]
    assert test["score"].tolist() == [7.2, 7.0, 7.1]
    assert test["label_source"].tolist() == [f"{SCORE}:{line}" for line in (2, 3, 4)]
    train = pairs[pairs["ref_id"] == "ref_2"]
    assert train["dist_name"].tolist() == ["gaussian_blur", "jpeg", "local_inter_noise"]
    assert train["comparison"].tolist() == ["inter", "inter", "intra"]
    assert train["label_source"].tolist() == [f"{TRAIN}:{line}" for line in (2, 2, 3)]
    assert set(train["ref_path"]) == {"reference_images/train/ref_2.png"}
    assert pairs[["dist_type", "level"]].isna().all(axis=None)
    assert [len(part.references) for part in data.distributed_split()] == [3, 1, 2]


def test_preferences(root):
    table = load_pieapp(root).preferences
    assert len(table) == 18
    train = table[table["ref_id"] == "ref_2"]
    assert train["p_a"].tolist() == [0.3, 0.75, 1]
    np.testing.assert_array_equal(train["p_a_raw"], [0.25, np.nan, np.nan])
    assert train["kind"].tolist() == ["inter", "mixed", "mixed"]
    assert train["label_source"].tolist() == [f"{TRAIN}:{line}" for line in (2, 3, 4)]
    folder = "distorted_images/train/ref_2/"
    assert train["a_path"].tolist() == [folder + distorted(2, which) for which in (0, 0, 1)]
    assert train["b_path"].tolist() == [folder + distorted(2, which) for which in (1, 2, 2)]
    test = table[table["ref_id"] == "ref_100"]
    assert test["p_a"].tolist() == [0.4, 0.975, 0]
    assert test["p_a_raw"].isna().all()
    assert test["a_is_ref"].tolist() == [False, True, False]
    assert test["kind"].tolist() == ["inter", "reference", "reference"]
    assert test["a_path"].iloc[1] == test["b_path"].iloc[2] == "reference_images/test/ref_100.png"
    assert (table["subset"] == "test").sum() == 6
    assert all((root / path).is_file() for side in ("a_path", "b_path") for path in table[side])


def test_the_original_split_counts_label_files_in_another_order_than_references(root):
    files = sorted(os.listdir(root / "labels/train"))
    expected = [name.removesuffix("_pairwise_labels.csv") for name in files if name.endswith(".csv")]
    train = load_pieapp(root).distributed_split()[0]
    assert listing_order(train.references) == expected == ["ref_10", "ref_1", "ref_2"]
    assert train.references == ["ref_1", "ref_10", "ref_2"]


def test_a_number_in_two_subsets_is_two_references(root):
    (root / "other").mkdir()
    build(root / "other", {"train": (1, 2, 10), "val": (2,), "test": (7, 100)})
    data = load_pieapp(root / "other")
    assert data.references == ["ref_1", "ref_10", "ref_100", "ref_2 (train)", "ref_2 (val)", "ref_7"]
    assert (len(data), len(data.preferences)) == (18, 18)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (TRAIN, "0.25,0.3", "0.25,", r"csv:2: p_a must be a finite number, found ''"),
        (TRAIN, "0.25,0.3", "0.25,nan", r"csv:2: p_a must be a finite number"),
        (TRAIN, "0.25,0.3", "0.25,1.5", r"csv:2: p_a must lie in 0\.\.1, found 1\.5"),
        (TRAIN, "0.25,0.3", "-1,0.3", r"csv:2: p_a_raw must lie in 0\.\.1, found -1\.0"),
        (TRAIN, "0.25,0.3", "many,0.3", r"csv:2: p_a_raw must be a finite number, found 'many'"),
        (TRAIN, "0.25,0.3", "0.3", r"csv:2: 5 fields expected, found 4"),
        (TRAIN, f"ref_2.png,{distorted(2, 0)}", f"ref_1.png,{distorted(2, 0)}", r"csv:2: labels of ref_2\.png expected"),
        (TRAIN, distorted(2, 0), distorted(1, 0), r"csv:2: 'distort_1_gaussian_blur_inter_1\.png' is not of ref_2\.png"),
        (TRAIN, distorted(2, 0), "../../x.png", r"csv:2: expected distort_<n>_.*found '\.\./\.\./x\.png'"),
        (TRAIN, distorted(2, 0), "distort_2_../../x_inter_1.png", r"csv:2: 'distort_2_\.\./.*' is no path within"),
        (TRAIN, distorted(2, 0), distorted(2, 1), r"csv:2: 'distort_2_jpeg_inter_12\.png' is compared with itself"),
        (TRAIN, distorted(2, 0), "distort_2_rain_inter_1.png", r"csv:2: no image distort_2_rain_inter_1\.png in distorted"),
        (TEST, "0.4", "", r"csv:2: p_a must be a finite number"),
        (TEST, "0.4", "0.4,0.4", r"csv:2: 4 fields expected, found 5"),
    ],
)  # fmt: skip
def test_bad_preferences_are_named_or_left_out(root, file, old, new, message):
    change(root, file, old, new)
    with pytest.raises(DatabaseError, match=f"^{file[:-3]}{message}"):
        load_pieapp(root)
    data = load_pieapp(root, strict=False)
    assert len(data.preferences) == 17
    assert any(said.startswith(f"{file}:2: ") for said in data.omissions)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("7.2", "nan", r"csv:2: score must be a finite number"),
        ("7.2", "", r"csv:2: score must be a finite number"),
        (distorted(7, 2), distorted(7, 0), r"csv:3: 'distort_7_gaussian_blur_inter_1\.png' has two scores"),
        ("ref_7.png,distort", "ref_8.png,distort", r"csv:2: labels of ref_7\.png expected, found 'ref_8\.png'"),
    ],
)
def test_bad_scores_are_named_or_left_out(root, old, new, message):
    change(root, SCORE, old, new)
    with pytest.raises(DatabaseError, match=f"^{SCORE[:-3]}{message}"):
        load_pieapp(root)
    data = load_pieapp(root, strict=False)
    assert len(data) == 17
    assert len(data.preferences) == 17  # nothing is known about the third image
    assert any("has no score in the labels of ref_7" in said for said in data.omissions)
    assert any("cannot be used" in said for said in data.omissions)
    assert data.omissions[-1].endswith("this one has 5 of 6 scored images in test")


def test_missing_and_damaged_images(root):
    image = root / "distorted_images/train/ref_2" / distorted(2, 1)
    content = image.read_bytes()
    image.unlink()
    image.write_bytes(content[:-40])
    with pytest.raises(DatabaseError, match=rf"{TRAIN}:2: cannot read distorted_images/train/ref_2/distort_2_jpeg"):
        load_pieapp(root)
    assert len(load_pieapp(root, check_images=False)) == 18
    data = load_pieapp(root, strict=False)
    assert (len(data), len(data.preferences)) == (17, 16)
    assert f"{TRAIN}:2: the image '{distorted(2, 1)}' cannot be used" in data.omissions
    write_png(image, np.zeros((8, 16, 3), np.uint8))
    with pytest.raises(DatabaseError, match=r"ref_2\.png is 16 x 16 and .* is 16 x 8"):
        load_pieapp(root)
    image.unlink()
    with pytest.raises(DatabaseError, match=rf"{TRAIN}:2: no image distort_2_jpeg_inter_12\.png in distorted_images"):
        load_pieapp(root)
    (root / "reference_images/val/ref_30.png").unlink()
    with pytest.raises(DatabaseError, match=r"val_reference_list\.txt:1: no image ref_30\.png in reference_images/val"):
        load_pieapp(root)
    with pytest.raises(DatabaseError, match="ref_30"):  # its labels are in no list any more, which is said as well
        load_pieapp(root)
    data = load_pieapp(root, strict=False)
    assert "labels/val/ref_30_pairwise_labels.csv: no such reference in val_reference_list.txt" in data.omissions


def test_names_may_differ_in_case(root):
    folder = root / "distorted_images/train/ref_2"
    os.rename(folder / distorted(2, 1), folder / distorted(2, 1).upper())
    os.rename(root / TRAIN, root / "labels/train/Ref_2_Pairwise_Labels.csv")
    change(root, "labels/train/Ref_2_Pairwise_Labels.csv", distorted(2, 0), distorted(2, 0).title())
    data = load_pieapp(root)
    assert len(data) == 18
    assert data.preferences["b_path"].str.endswith(distorted(2, 1).upper()).sum() == 1
    (folder / distorted(2, 1)).write_bytes(b"")
    if len(os.listdir(folder)) == 4:
        with pytest.raises(DatabaseError, match="differ only by letter case"):
            load_pieapp(root)


def test_partial_copies(root):
    (root / "labels/train/ref_1_pairwise_labels.csv").unlink()
    with pytest.raises(DatabaseError, match=r"train_reference_list\.txt:1: ref_1\.png has no labels/train/ref_1_pairw"):
        load_pieapp(root)
    data = load_pieapp(root, strict=False)
    assert (len(data), len(data.preferences)) == (15, 15)
    assert data.omissions[1].endswith("this one has 9 of 12 preferences in train and val")
    assert data.omissions[2].endswith("this one has 5 of 6 references")
    change(root, TEST, "ref_7.png,distort", "ref_8.png,distort")
    change(root, "test_reference_list.txt", "ref_7.png\n", "")
    with pytest.raises(DatabaseError, match=r"ref_1\.png has no labels"):
        load_pieapp(root)
    (root / "val_reference_list.txt").unlink()
    with pytest.raises(DatabaseError, match=r"has no val_reference_list\.txt"):
        load_pieapp(root)
    data = load_pieapp(root, strict=False)
    assert "has no val_reference_list.txt" in data.omissions[0]
    assert set(data.pairs["subset"]) == {"train", "test"}


def test_without_test_nothing_is_scored(root):
    for ending in ("pairwise_labels", "per_image_score"):
        for number in REFERENCES["test"]:
            (root / f"labels/test/ref_{number}_{ending}.csv").unlink()
    data = load_pieapp(root, strict=False)
    assert set(data.pairs["subset"]) == {"train", "val"}
    assert data.pairs["score"].isna().all()


def test_labels_of_unlisted_references_are_told(root):
    write(root / "labels/test/ref_8_per_image_score.csv", score_text(8))
    with pytest.raises(DatabaseError, match=r"^labels/test/ref_8_per_image_score\.csv: no such reference in test_ref"):
        load_pieapp(root)
    assert len(load_pieapp(root, strict=False).omissions) == 1


def test_wrong_lists(root):
    change(root, "train_reference_list.txt", "ref_2.png", "ref_1.png")
    with pytest.raises(DatabaseError, match=r"train_reference_list\.txt:2: ref_1\.png is listed twice"):
        load_pieapp(root)
    change(root, "train_reference_list.txt", "ref_10.png", "../ref_10.png")
    with pytest.raises(DatabaseError, match=r"train_reference_list\.txt:3: expected ref_<n>\.png"):
        load_pieapp(root)


@pytest.mark.parametrize("file", [TRAIN, SCORE, "test_reference_list.txt"])
@pytest.mark.parametrize(
    ("content", "message"), [(b"", " is empty"), ("ref_7.png\nref_100.png\n".encode("utf-16"), ":1: not UTF-8")]
)
def test_damaged_label_files_are_errors_or_omissions(root, file, content, message):
    whole = load_pieapp(root)
    (root / file).write_bytes(content)
    with pytest.raises(DatabaseError, match=f"{file}{message}"):
        load_pieapp(root)
    data = load_pieapp(root, strict=False)
    assert sum(said.startswith(f"{file}{message}") for said in data.omissions) == 1
    lost = {TRAIN: ["ref_2"], SCORE: ["ref_7"], "test_reference_list.txt": ["ref_7", "ref_100"]}[file]
    assert sorted(set(whole.references) - set(data.references)) == sorted(lost)
    rest = whole.pairs[~whole.pairs["ref_id"].isin(lost)].reset_index(drop=True)
    pd.testing.assert_frame_equal(data.pairs, rest)


def test_a_copy_without_any_list_is_refused(root):
    for subset in ("train", "val", "test"):
        (root / f"{subset}_reference_list.txt").unlink()
    with pytest.raises(DatabaseError, match=r"none of the 3 files can be used\. .* has no train_reference_list\.txt"):
        load_pieapp(root, strict=False)


@pytest.mark.parametrize(("file", "text"), [(TRAIN, label_text("train", 2)), (SCORE, score_text(7))])
def test_a_missing_header_costs_no_row(root, file, text):
    write(root / file, text[1:])
    with pytest.raises(DatabaseError, match=rf"{file}:1: a header was expected, found numbers"):
        load_pieapp(root)
    write(root / file, text[:1])
    with pytest.raises(DatabaseError, match="no rows below its header"):
        load_pieapp(root)


def test_published_facts():
    assert (PIEAPP.references, PIEAPP.higher_better) == (200, False)
    assert pieapp._PREFERENCES == 160 * 483
    assert pieapp._SCORES == 40 * 15


@given(numbers=st.sets(st.integers(1, 300), min_size=1))
def test_listing_order_is_that_of_file_names(numbers):
    files = sorted(f"ref_{number}_pairwise_labels.csv" for number in numbers)
    assert [f"{ref_id}_pairwise_labels.csv" for ref_id in listing_order(f"ref_{n}" for n in numbers)] == files
