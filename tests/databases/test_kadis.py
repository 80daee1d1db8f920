"""KADIS-700k: names to types, both sources of labels, images on disk and rendered ones, and its size."""

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtamiq.databases import kadis
from vtamiq.databases.kadis import KADIS700K, METRICS, load_kadis700k
from vtamiq.databases.pairs import PairImages
from vtamiq.databases.schema import DatabaseError, LabelScale
from vtamiq.images.distortions import DISTORTIONS, distort
from vtamiq.images.reading import read_image, write_png

HEADER = "dist_im,ref_im," + ",".join(METRICS)
# slug → type; a slug may hold words and numbers that look like those of a distortion
SLUGS = {"a-fleshy-plant-1464418": 7, "sky_jpeg_3": 8, "zebra-2": 15, "green-hill_2": 24}


def score(row, column):
    return round(0.001 * row + 0.05 * column, 4)


def write_labels(root, slugs):
    lines, listed, row = [HEADER], ["ref_im,dist_type_1,unknown"], 0
    for slug, type in slugs.items():
        listed.append(f"{slug}.png,{type},1")
        for level in range(1, 6):
            scores = ",".join(str(score(row, column)) for column in range(11))
            lines.append(f"{slug}_{DISTORTIONS[type].tag}_{level}.png,{slug}.png,{scores}")
            row += 1
    (root / "kadis700k_friqa.csv").write_text("\n".join(lines) + "\n")
    (root / "kadis700k_ref_imgs.csv").write_text("\r\n".join(listed) + "\r\n")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(kadis, "KADIS700K", replace(KADIS700K, references=4, pairs=20))
    (tmp_path / "ref_imgs").mkdir()
    (tmp_path / "dist_imgs").mkdir()
    write_labels(tmp_path, SLUGS)
    random = np.random.default_rng(0)
    for slug, type in SLUGS.items():
        image = random.integers(0, 256, (24, 32, 3), np.uint8)
        write_png(tmp_path / "ref_imgs" / f"{slug}.png", image)
        for level in range(1, 6):
            write_png(tmp_path / "image.png", distort(image, type, level, 1))
            os.replace(tmp_path / "image.png", tmp_path / "dist_imgs" / f"{slug}_{type:02d}_{level:02d}.bmp")
    (tmp_path / "ref_imgs" / ".DS_Store").write_bytes(b"x")
    return tmp_path


def change(root, old, new, name="kadis700k_friqa.csv"):
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new, 1))


def test_published_facts():
    assert (KADIS700K.references, KADIS700K.pairs) == (140_000, 700_000)
    assert list(METRICS) == [
        "ssim",
        "msssim",
        "iwssim",
        "mdsi",
        "vsi",
        "fsim",
        "gmsd",
        "sff",
        "scqi",
        "add_gsim",
        "sr_sim",
    ]


def test_scores_and_images_on_disk(root):
    data = load_kadis700k(root, check_images=True)
    assert (data.name, data.score_name, data.higher_better, data.synthetic) == ("kadis700k", "VSI", True, True)
    assert data.omissions == ()
    assert data.references == sorted(SLUGS)
    pairs = data.pairs.set_index("dist_path")
    assert len(pairs) == 20
    row = pairs.loc["dist_imgs/sky_jpeg_3_08_04.bmp"]  # its word is saturate, not jpeg, and not VTAMIQ's type 7
    assert (row["ref_id"], row["ref_path"]) == ("sky_jpeg_3", "ref_imgs/sky_jpeg_3.png")
    assert (row["dist_type"], row["dist_name"], row["level"]) == (8, "colour saturation 2", 4)
    assert row["label_source"] == "kadis700k_friqa.csv:10"
    assert [row[f"native_{name}"] for name in METRICS] == [score(8, column) for column in range(11)]
    assert row["score"] == score(8, 4)
    assert pairs.loc["dist_imgs/a-fleshy-plant-1464418_07_01.bmp", "dist_type"] == 7
    assert "recipe_seed" not in pairs
    assert PairImages(data)[3].shape == (2, 24, 32, 3)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_can_be_the_score(root, name):
    data = load_kadis700k(root, score=name)
    assert (data.score_name, data.higher_better) == (METRICS[name], name not in ("mdsi", "gmsd"))
    assert data.pairs["score"].equals(data.pairs[f"native_{name}"].rename("score"))


def test_reference_list_has_no_scores(root):
    (root / "kadis700k_friqa.csv").unlink()
    data = load_kadis700k(root, labels="none")
    assert (len(data), data.score_name, data.synthetic) == (20, "none published", True)
    assert data.pairs["score"].isna().all()
    zebra = data.pairs[data.pairs["ref_id"] == "zebra-2"]
    assert zebra["dist_path"].tolist() == [f"dist_imgs/zebra-2_15_0{level}.bmp" for level in range(1, 6)]
    assert zebra["level"].tolist() == [1, 2, 3, 4, 5]
    assert set(zebra["label_source"]) == {"kadis700k_ref_imgs.csv:4"}
    with pytest.raises(DatabaseError, match="have no score"):
        LabelScale.fit(data)


def test_reference_list_takes_tags_as_well(root):
    change(root, "sky_jpeg_3.png,8", "sky_jpeg_3.png,colorSaturate", "kadis700k_ref_imgs.csv")
    change(root, "zebra-2.png,15", "zebra-2.png,05", "kadis700k_ref_imgs.csv")
    data = load_kadis700k(root, labels="none", render=True)
    assert data.pairs.groupby("ref_id")["dist_type"].first().to_dict() == SLUGS | {"sky_jpeg_3": 7, "zebra-2": 5}


@pytest.mark.parametrize("labels", ["friqa", "none"])
def test_rendered_pairs(root, labels):
    for path in (root / "dist_imgs").iterdir():
        path.unlink()
    (root / "dist_imgs").rmdir()
    with pytest.raises(DatabaseError, match=r"no dist_imgs.*render=True"):
        load_kadis700k(root, labels=labels)
    data = load_kadis700k(root, labels=labels, render=True, seed=5, check_images=True)
    assert data.pairs["recipe_seed"].dtype == np.uint64
    assert data.pairs["dist_path"].iloc[0] == "dist_imgs/a-fleshy-plant-1464418_07_01.bmp"
    images = PairImages(data)
    for row in (0, 4, 7, 12, 16):
        pair = data.pairs.iloc[row]
        digest = hashlib.sha256(f"5 {pair['ref_id']}".encode()).digest()
        seed = sum(byte << 8 * place for place, byte in enumerate(digest[:8]))
        assert pair["recipe_seed"] == seed
        reference = read_image(root / "ref_imgs" / f"{pair['ref_id']}.png")
        np.testing.assert_array_equal(images[row][0], reference)
        expected = distort(reference, int(pair["dist_type"]), int(pair["level"]), seed)
        np.testing.assert_array_equal(images[row][1], expected)
    other = load_kadis700k(root, labels=labels, render=True)
    assert (other.pairs["recipe_seed"] != data.pairs["recipe_seed"]).all()
    assert (data.pairs.groupby("ref_id")["recipe_seed"].nunique() == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"labels": "vtamiq"}, "labels must be"), ({"score": "psnr"}, "no score 'psnr'; it has ssim")],
)
def test_options_are_checked(root, options, message):
    with pytest.raises(DatabaseError, match=message):
        load_kadis700k(root, **options)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("zebra-2_denoise_1", "zebra-2_unnoise_1", r"csv:12: unknown distortion 'unnoise' in 'zebra-2_unnoise_1\.png'"),
        ("zebra-2_denoise_1", "zebra-2_denoise_6", r"csv:12: level 6 of 'zebra-2_denoise_6\.png' is not 1 to 5"),
        ("zebra-2_denoise_1", "zebra-2_denoise", r"csv:12: expected _<word>_<level>\.png .*, found '_denoise\.png'"),
        ("zebra-2_denoise_1", "zebra-22_denoise_1", r"csv:12: expected _<word>_<level>"),
        ("zebra-2_denoise_1", "zebra-2_sky_denoise_1", r"csv:12: expected _<word>_<level>"),
        ("zebra-2_denoise_1", "zebra_denoise_1", r"csv:12: 'zebra_denoise_1\.png' is not of 'zebra-2\.png'"),
        (
            "zebra-2_denoise_1.png,zebra-2.png",
            "../../x_denoise_1.png,../../x.png",
            r"csv:12: '\.\./\.\./x\.png' is no path",
        ),
        ("zebra-2_denoise_1.png,zebra-2.png", "x_denoise_1.png,x.png", r"csv:12: no image x\.png in ref_imgs"),
        ("zebra-2_denoise_1.png,zebra-2.png", "x_denoise_1.png,x", r"csv:12: expected <slug>\.png, found 'x'"),
        ("zebra-2.png,0.01,", "zebra-2.png,nan,", r"csv:12: ssim must be a finite number, found 'nan'"),
        ("zebra-2.png,0.01,", "zebra-2.png,high,", r"csv:12: ssim must be a finite number, found 'high'"),
        ("zebra-2.png,0.01,", "zebra-2.png,", r"csv:12: 13 fields expected, found 12"),
        ("zebra-2.png,0.01,", "zebra-2.png,0.01,0.02,", r"csv:12: 13 fields expected, found 14"),
    ],
)
def test_bad_rows_are_named_or_left_out(root, old, new, message):
    change(root, old, new)
    with pytest.raises(DatabaseError, match=f"kadis700k_friqa.{message}"):
        load_kadis700k(root)
    data = load_kadis700k(root, strict=False)
    assert len(data) == 19
    assert len(data.omissions) == 2
    assert data.omissions[0].startswith("kadis700k_friqa.csv:12: ")
    assert data.omissions[1].endswith("this one has 19 of 20 pairs")


@pytest.mark.parametrize("type", ["0", "26", "7.5", "", "sepia"])
def test_bad_rows_of_the_reference_list(root, type):
    change(root, "zebra-2.png,15", f"zebra-2.png,{type}", "kadis700k_ref_imgs.csv")
    with pytest.raises(DatabaseError, match=rf"ref_imgs\.csv:4: dist_type_1 must be 1 to 25 or a tag, found '{type}'"):
        load_kadis700k(root, labels="none")
    assert len(load_kadis700k(root, labels="none", strict=False)) == 15


def test_missing_damaged_and_ambiguous_images(root):
    (root / "dist_imgs" / "zebra-2_15_03.bmp").unlink()
    with pytest.raises(DatabaseError, match=r"friqa\.csv:14: no image zebra-2_15_03\.bmp in dist_imgs"):
        load_kadis700k(root)
    data = load_kadis700k(root, strict=False)
    assert len(data) == 19
    assert data.omissions[0].startswith("kadis700k_friqa.csv:14: no image")
    (root / "dist_imgs" / "ZEBRA-2_15_02.BMP").write_bytes(b"")
    if len(os.listdir(root / "dist_imgs")) == 20:
        with pytest.raises(
            DatabaseError, match=r"csv:13: ZEBRA.* and zebra-2_15_02\.bmp in .* differ only by letter case"
        ):
            load_kadis700k(root)
        assert len(load_kadis700k(root, strict=False)) == 18
    path = root / "ref_imgs" / "sky_jpeg_3.png"
    path.write_bytes(path.read_bytes()[:-30])
    assert len(load_kadis700k(root, render=True)) == 20
    with pytest.raises(DatabaseError, match=r"friqa\.csv:7: cannot read ref_imgs/sky_jpeg_3\.png"):
        load_kadis700k(root, render=True, check_images=True)
    write_png(path, np.zeros((8, 8, 3), np.uint8))
    (root / "dist_imgs" / "ZEBRA-2_15_02.BMP").unlink()
    shutil.copy(root / "dist_imgs" / "zebra-2_15_02.bmp", root / "dist_imgs" / "zebra-2_15_03.bmp")
    with pytest.raises(DatabaseError, match=r"sky_jpeg_3\.png is 8 x 8 and dist_imgs/sky_jpeg_3_0._01\.bmp is 32 x 24"):
        load_kadis700k(root, check_images=True)


def test_names_on_disk_may_differ_in_case_and_lie_one_folder_deeper(root):
    (root / "kadis700k").mkdir()
    os.rename(root / "dist_imgs", root / "kadis700k" / "Dist_Imgs")
    os.rename(root / "ref_imgs", root / "kadis700k" / "ref_imgs")
    os.rename(root / "kadis700k/Dist_Imgs/zebra-2_15_03.bmp", root / "kadis700k/Dist_Imgs/Zebra-2_15_03.BMP")
    data = load_kadis700k(root, check_images=True)
    assert "kadis700k/Dist_Imgs/Zebra-2_15_03.BMP" in set(data.pairs["dist_path"])
    assert data.pairs["ref_path"].iloc[0] == "kadis700k/ref_imgs/a-fleshy-plant-1464418.png"


@pytest.mark.skipif(sys.platform != "linux", reason="names are text there")
def test_stray_files_do_not_matter_whatever_they_are_called(root):
    whole = load_kadis700k(root)
    for folder in ("dist_imgs", "ref_imgs"):
        for name in (b"caf\xe9.bmp", b"._a.bmp", b"zzz.bmp"):
            (root / folder / os.fsdecode(name)).write_bytes(b"")
    pd.testing.assert_frame_equal(load_kadis700k(root).pairs, whole.pairs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "friqa.csv is empty"),
        (HEADER.encode(), "no rows below its header"),
        (HEADER.encode("utf-16"), "friqa.csv:1: not UTF-8"),
        (b"dist_im,ref_im,ssim\na,b,1\n", "no column msssim"),
    ],
)
def test_damaged_label_files_are_errors_always(root, content, message):
    (root / "kadis700k_friqa.csv").write_bytes(content)
    for strict in (True, False):
        with pytest.raises(DatabaseError, match=message):
            load_kadis700k(root, strict=strict)
    (root / "kadis700k_friqa.csv").unlink()
    with pytest.raises(DatabaseError, match=r"has no kadis700k_friqa\.csv"):
        load_kadis700k(root, strict=False)


def test_pairs_listed_twice_are_refused(root):
    change(root, "zebra-2_denoise_2", "zebra-2_denoise_1")
    with pytest.raises(DatabaseError, match="listed twice"):
        load_kadis700k(root)


SLUG = st.from_regex(r"[a-z0-9_-]{1,20}", fullmatch=True)


@settings(max_examples=12, deadline=None)
@given(slugs=st.dictionaries(SLUG, st.sampled_from(sorted(DISTORTIONS)), min_size=1, max_size=6))
def test_any_slug_and_word_is_parsed(tmp_path_factory, slugs):
    root = tmp_path_factory.mktemp("kadis")
    write_labels(root, slugs)
    (root / "ref_imgs").mkdir()
    for slug in slugs:
        (root / "ref_imgs" / f"{slug}.png").write_bytes(b"")
    for labels in ("friqa", "none"):
        data = load_kadis700k(root, labels=labels, render=True, strict=False)
        assert len(data.omissions) == 1  # the counts
        assert data.pairs.groupby("ref_id")["dist_type"].unique().map(list).to_dict() == {
            slug: [type] for slug, type in slugs.items()
        }
        names = {f"dist_imgs/{slug}_{type:02d}_0{n}.bmp" for slug, type in slugs.items() for n in range(1, 6)}
        assert set(data.pairs["dist_path"]) == names


MEASURE = """
import resource, sys, time
from vtamiq.databases.kadis import load_kadis700k
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
data = load_kadis700k(sys.argv[1], render=True, strict=False)
seconds = time.process_time() - start
assert len(data) == 70_000 and len(data.omissions) == 1, data.omissions[:3]
sys.stdout.write(f"{seconds} {(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="units of resource")
def test_a_tenth_of_the_real_size_loads_quickly(tmp_path):
    (tmp_path / "ref_imgs").mkdir()
    slugs = {f"a-photograph-of-something-{1_000_000 + n}": n % 25 + 1 for n in range(14_000)}
    for slug in slugs:
        os.close(os.open(tmp_path / "ref_imgs" / f"{slug}.png", os.O_CREAT))
    tail = ",0.1234567" * 11
    with open(tmp_path / "kadis700k_friqa.csv", "w") as file:
        file.write(HEADER + "\n")
        for slug, type in slugs.items():
            file.writelines(f"{slug}_{DISTORTIONS[type].tag}_{n}.png,{slug}.png{tail}\n" for n in range(1, 6))
    run = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, run.stdout.split())
    assert seconds < 6  # about 1.4
    assert megabytes < 300  # about 140
