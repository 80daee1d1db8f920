"""LIVE from its real arrays: which score belongs to which image, both scores, and arrays that cannot be used."""

import pickle
import re

import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat, savemat

from tests.layouts import LIVE_FOLDERS, build_live, copy_layout, write_lines
from vtamiq.databases.live import FOLDERS, IMAGES, load_live
from vtamiq.databases.schema import DatabaseError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(root, the published table) of a complete copy; not to be changed."""
    root = tmp_path_factory.mktemp("live") / "databaserelease2"
    return root, build_live(root)


@pytest.fixture
def copy(whole, tmp_path):
    return copy_layout(whole[0], tmp_path / "copy")


def change_mat(path, **arrays):
    """Replace arrays of a MATLAB file."""
    kept = {name: values for name, values in loadmat(path).items() if not name.startswith("__")}
    path.unlink()
    savemat(path, kept | arrays)


def refuse(root, *patterns, **options):
    """Refused, strict or not."""
    for strict in (True, False):
        with pytest.raises(DatabaseError) as error:
            load_live(root, strict=strict, **options)
        for pattern in patterns:
            assert re.search(pattern, str(error.value)), f"{pattern!r} not in {error.value}"


# ---- what is published ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("realigned", "mean", "low", "high"), [(True, 48.5812, -2.6400, 111.7747), (False, 44.7655, 17.9024, 84.4890)]
)
def test_both_scores_as_published(whole, realigned, mean, low, high):
    data = load_live(whole[0], realigned=realigned)
    assert (data.name, data.higher_better, data.synthetic, data.omissions) == ("live", False, False, ())
    assert data.score_name == ("DMOS realigned" if realigned else "DMOS")
    assert (len(data), len(data.references)) == (779, 29)
    scores = data.pairs["score"]
    assert [scores.mean(), scores.min(), scores.max()] == pytest.approx([mean, low, high], abs=5e-5)
    if realigned:
        assert ((scores < 0).sum(), (scores > 100).sum()) == (3, 21)  # nothing is clipped
        assert data.pairs["score_std"].between(0, 10, inclusive="neither").all()
    else:
        assert data.pairs["score_std"].isna().all()


def test_the_two_scores_are_of_the_same_images_and_differ(whole):
    new, old = load_live(whole[0]).pairs, load_live(whole[0], realigned=False).pairs
    pd.testing.assert_frame_equal(new[["ref_path", "dist_path"]], old[["ref_path", "dist_path"]])
    assert np.corrcoef(new["score"], old["score"])[0, 1] == pytest.approx(0.947, abs=5e-4)


@pytest.mark.parametrize(("realigned", "column"), [(True, "dmos_new"), (False, "dmos")])
def test_every_pair_is_that_of_the_published_table(whole, realigned, column):
    root, table = whole
    table = table.assign(
        dist_path=table["folder"] + "/img" + table["index"].astype(str) + ".bmp", position=range(1, 983)
    )
    expected = table[table["org"] == 0].set_index("dist_path")
    pairs = load_live(root, realigned=realigned).pairs.set_index("dist_path").loc[expected.index]
    assert len(pairs) == 779
    assert pairs["score"].tolist() == expected[column].tolist()
    assert pairs["ref_path"].tolist() == ("refimgs/" + expected["ref"]).tolist()
    assert pairs["ref_id"].tolist() == expected["ref"].str.removesuffix(".bmp").tolist()
    if realigned:
        assert pairs["score_std"].tolist() == expected["dmos_std"].tolist()
        assert pairs["label_source"].tolist() == [f"dmos_realigned.mat:{n}" for n in expected["position"]]


def test_image_10_is_not_image_2(whole):
    root, table = whole
    pairs = load_live(root).pairs.set_index("dist_path")
    published = table[table["folder"] == "jp2k"].set_index("index")["dmos_new"]
    assert pairs.loc["jp2k/img2.bmp", "score"] == published[2] != published[10]
    assert pairs.loc["jp2k/img10.bmp", "score"] == published[10]
    assert pairs.loc["jp2k/img2.bmp", "label_source"] == "dmos_realigned.mat:2"
    assert pairs.loc["jpeg/img2.bmp", "label_source"] == f"dmos_realigned.mat:{227 + 2}"


def test_types_and_copies_of_references(whole):
    pairs = load_live(whole[0]).pairs
    counts = pairs.groupby("dist_type")["dist_name"].agg(["first", "nunique", "size"])
    assert counts["first"].tolist() == ["JPEG2000", "JPEG", "white noise", "Gaussian blur", "fast fading"]
    assert counts["size"].tolist() == [169, 175, 145, 145, 145]
    assert counts["nunique"].eq(1).all()
    assert (
        pairs["dist_path"]
        .str.split("/")
        .str[0]
        .map(dict(zip(FOLDERS, range(1, 6), strict=True)))
        .eq(pairs["dist_type"])
        .all()
    )
    assert pairs["level"].isna().all()
    assert pairs["ref_id"].value_counts().between(26, 29).all()
    assert "cemetry" in set(pairs["ref_id"])
    assert tuple(FOLDERS) == LIVE_FOLDERS
    assert IMAGES == 982


def test_upper_case_copy(copy):
    for path in sorted(copy.rglob("*"), reverse=True):  # files before their folders
        if path.suffix != ".mat":
            path.rename(path.with_name(path.name.upper()))
    pairs = load_live(copy).pairs
    assert len(pairs) == 779
    assert pairs.loc[0, ["ref_id", "ref_path", "dist_path"]].tolist() == [
        "bikes", "REFIMGS/BIKES.BMP", "JP2K/IMG15.BMP",
    ]  # fmt: skip


# ---- arrays that cannot be used ---------------------------------------------------------------------------------


def test_missing_realigned_scores_are_explained(copy):
    (copy / "dmos_realigned.mat").unlink()
    refuse(copy, "has no dmos_realigned.mat: it is a separate file", "realigned=False")
    assert load_live(copy, realigned=False).score_name == "DMOS"


def test_filtered_arrays_are_refused(copy, whole):
    kept = whole[1]["org"].to_numpy() == 0
    arrays = loadmat(copy / "dmos_realigned.mat")
    names = loadmat(copy / "refnames_all.mat")["refnames_all"][:, kept]
    change_mat(copy / "dmos_realigned.mat", orgs=arrays["orgs"][:, kept])
    change_mat(copy / "refnames_all.mat", refnames_all=names.T)  # a copy in circulation has it upright
    refuse(copy, "982 values each, found dmos_new 982, dmos_std 982, orgs 779, refnames_all 779", "original files")
    filtered = {name: arrays[name][:, kept] for name in ("dmos_new", "dmos_std", "orgs")}
    change_mat(copy / "dmos_realigned.mat", **filtered)  # all agree now, and say nothing about images
    refuse(copy, "found dmos_new 779, dmos_std 779, orgs 779, refnames_all 779")


@pytest.mark.parametrize("start", [b"MATLAB 7.3 MAT-file, Platform: GLNXA64", b"\x89HDF\r\n\x1a\n"])
@pytest.mark.parametrize("name", ["dmos_realigned.mat", "refnames_all.mat"])
def test_hdf5_files_are_refused_with_advice(copy, name, start):
    (copy / name).unlink()
    (copy / name).write_bytes(start.ljust(512, b"\0"))
    refuse(copy, rf"cannot read .*{name}: it is of MATLAB 7\.3 \(HDF5\).*-v7")


@pytest.mark.parametrize("damage", ["empty", "half", "header", "text", "pickle", "flipped"])
@pytest.mark.parametrize("name", ["dmos_realigned.mat", "refnames_all.mat"])
def test_damaged_arrays_are_refused(copy, name, damage):
    content = (copy / name).read_bytes()
    (copy / name).unlink()
    damaged = {
        "empty": b"",
        "half": content[: len(content) // 2],
        "header": content[:128],
        "text": b"12.5 13.5\n" * 100,
        "pickle": pickle.dumps([1.0] * 982),
        "flipped": content[:128] + bytes(255 - byte for byte in content[128:]),
    }[damage]
    (copy / name).write_bytes(damaged)
    refuse(copy, rf"cannot read .*{name}: .*is it the original file\?")


def test_other_arrays_are_refused(copy):
    change_mat(copy / "dmos_realigned.mat", dmos_new="text")
    refuse(copy, "dmos_realigned.mat: it has something else where numbers are expected")
    (copy / "dmos_realigned.mat").unlink()
    savemat(copy / "dmos_realigned.mat", {"dmos": np.zeros((1, 982))})
    refuse(copy, "dmos_realigned.mat: it has no array dmos_new, dmos_std, orgs")


@pytest.mark.parametrize("form", ["upright", "characters"])
def test_other_forms_of_the_same_names_are_read(copy, whole, form):
    names = whole[1]["ref"].tolist()
    cells = np.array(names, dtype=object)[:, None] if form == "upright" else np.array(names)  # padded with blanks
    (copy / "refnames_all.mat").unlink()
    savemat(copy / "refnames_all.mat", {"refnames_all": cells})
    pd.testing.assert_frame_equal(load_live(copy).pairs, load_live(whole[0]).pairs)


def test_names_that_are_none(copy):
    cells = loadmat(copy / "refnames_all.mat")["refnames_all"]
    cells[0, 1] = np.array([])
    change_mat(copy / "refnames_all.mat", refnames_all=cells)
    with pytest.raises(DatabaseError, match=r"dmos_realigned\.mat:2: expected <reference>\.bmp, found ''"):
        load_live(copy)


def test_marks_of_copies_must_fit_the_scores(copy):
    marks = loadmat(copy / "dmos_realigned.mat")["orgs"]
    change_mat(copy / "dmos_realigned.mat", orgs=np.roll(marks, 1))
    with pytest.raises(
        DatabaseError, match=r"dmos_realigned\.mat:2: orgs is 1\.0 and the score 15\.5.* \(188 such rows\)"
    ):
        load_live(copy)
    marks[0, 1] = 2
    change_mat(copy / "dmos_realigned.mat", orgs=marks)
    with pytest.raises(DatabaseError, match=r"dmos_realigned\.mat:2: orgs is 2\.0 and the score 15\.5"):
        load_live(copy)
    data = load_live(copy, strict=False)
    assert len(data) == 778
    assert data.omissions[0].startswith("dmos_realigned.mat:2: orgs is 2.0")


def test_other_scores_are_noticed(copy):
    scores = loadmat(copy / "dmos_realigned.mat")["dmos_new"]
    change_mat(copy / "dmos_realigned.mat", dmos_new=scores / 100)
    (sentence,) = load_live(copy).omissions
    assert sentence.startswith("live: the mean DMOS realigned is 0.48581, of the published labels it is 48.58120")


# ---- the pairing against info.txt -------------------------------------------------------------------------------


def test_pairing_is_compared_with_info(copy):
    (copy / "jpeg" / "info.txt").unlink()
    write_lines(copy / "jpeg" / "info.txt", ["Womanhat.BMP img1.bmp 0.5", "bikes.bmp  img2.bmp 0.5"])
    refuse(copy, r"jpeg/info\.txt:2: img2\.bmp is of bikes\.bmp, but by refnames_all\.mat of [a-z]+\d?\.bmp")


def test_arrays_in_another_order_are_refused(copy, whole):
    names = loadmat(copy / "refnames_all.mat")["refnames_all"]
    change_mat(copy / "refnames_all.mat", refnames_all=np.roll(names, 1))
    refuse(copy, r"jp2k/info\.txt:\d+: img\d+\.bmp is of ")


def test_info_may_be_missing_or_have_other_lines(copy, whole):
    (copy / "wn" / "info.txt").unlink()
    info = copy / "gblur" / "info.txt"
    lines = info.read_text().splitlines()
    info.unlink()
    write_lines(info, ["source destination sigma", *lines[1:], "", "bikes.bmp img999.bmp 1"])
    data = load_live(copy)
    pd.testing.assert_frame_equal(data.pairs, load_live(whole[0]).pairs)
    assert data.omissions == ("gblur/info.txt: 2 of 175 lines name no image of this folder",)
