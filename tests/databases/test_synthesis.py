"""Databases made from photographs: layout, labels, determinism, resuming, refusals; and the demo databases."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtamiq.databases import demo, synthesis
from vtamiq.databases.demo import PHOTOGRAPHS, cache_folder, demo_database, demo_photographs
from vtamiq.databases.loading import load_database
from vtamiq.databases.pairs import PairImages
from vtamiq.databases.schema import DatabaseError
from vtamiq.databases.synthesis import Recipe, synthesize
from vtamiq.databases.synthetic import load_synthetic
from vtamiq.images.distortions import distort
from vtamiq.images.iqms import IQMS, QuantileTables, iqm_scores, scale_regime, weak_labels
from vtamiq.images.reading import read_image, write_png
from vtamiq.utils.digests import digest_number
from vtamiq.utils.processes import executor

QUICK = {"types": [11, "jpeg"], "levels": [1, 5], "metrics": ["gmsd", "ssim"], "workers": 0, "progress": False}


def picture(seed, height=32, width=40):
    """Smooth random colours with some grain."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.uniform(60, 200, (4, 5, 3)), np.ones((height // 4, width // 5, 1)))
    return np.clip(coarse + rng.normal(0, 8, coarse.shape), 0, 255).astype(np.uint8)


PICTURES = {"b": picture(1), "a": picture(2)}


def contents(folder):
    """Every file below a folder, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def interrupt(*_, **__):
    raise KeyboardInterrupt


def interrupted_after(count, monkeypatch):
    """From now on, the unit after `count` units is interrupted."""
    render, calls = synthesis._render, []

    def stop(unit):
        if len(calls) == count:
            raise KeyboardInterrupt
        calls.append(unit)
        return render(unit)

    monkeypatch.setattr(synthesis, "_render", stop)


def counting(name, monkeypatch):
    """Arguments of the calls of a function of the module, which still works."""
    function, calls = getattr(synthesis, name), []

    def counted(*arguments, **options):
        calls.append(arguments)
        return function(*arguments, **options)

    monkeypatch.setattr(synthesis, name, counted)
    return calls


# ---- what is made -----------------------------------------------------------------------------------------------


def test_layout_and_labels(tmp_path):
    out = tmp_path / "made"
    data = synthesize(PICTURES, out, **QUICK, seed=7, subsets={"a": "train", "b": "test"})
    images = [f"I0{r}_{type}_0{level}.png" for r in (1, 2) for type in (10, 11) for level in (1, 5)]
    expected = {"dmos.csv", "iqm_scores.csv", "manifest.json", "quantiles.json", "images/I01.png", "images/I02.png"}
    assert set(contents(out)) == expected | {f"images/{image}" for image in images}
    np.testing.assert_array_equal(read_image(out / "images" / "I01.png"), PICTURES["b"])  # in the order given

    assert (data.name, data.synthetic, data.higher_better, len(data)) == ("made", True, True, 8)
    assert "synthetic" in data.score_name
    assert data.pairs["subset"].tolist() == ["test"] * 4 + ["train"] * 4
    assert data.pairs["dist_name"].tolist() == ["JPEG", "JPEG", "white noise", "white noise"] * 2
    assert data.pairs["level"].tolist() == [1, 5] * 4

    # Labels, computed once more from the files by the functions that define them.
    seeds = {"I01": digest_number("7 b"), "I02": digest_number("7 a")}
    for row, image in zip(data.pairs.itertuples(), images, strict=True):
        reference, distorted = read_image(out / row.ref_path), read_image(out / row.dist_path)
        assert row.dist_path == f"images/{image}"
        np.testing.assert_array_equal(distorted, distort(reference, row.dist_type, row.level, seeds[row.ref_id]))
    scores = pd.read_csv(out / "iqm_scores.csv")
    assert list(scores) == ["dist_img", "ref_img", "ssim", "gmsd"]  # in the order of IQMS
    last = iqm_scores(PICTURES["a"], read_image(out / "images" / "I02_11_05.png"), ["gmsd", "ssim"])
    assert scores.iloc[-1][["gmsd", "ssim"]].tolist() == pytest.approx(list(last.values()), rel=1e-5)
    tables = QuantileTables.fit(scores.iloc[4:])  # the train photograph only
    assert QuantileTables.from_json((out / "quantiles.json").read_text()) == tables
    labels = weak_labels(scores, tables)
    np.testing.assert_allclose(data.pairs["score"], 5 - 4 * labels["consensus"], atol=1e-6)
    np.testing.assert_allclose(data.pairs["score_std"], 4 * labels["spread"], atol=1e-6)


def test_five_is_a_perfect_copy_and_worse_is_lower(tmp_path):
    data = synthesize(PICTURES, tmp_path / "out", **QUICK | {"types": ["gblur"], "levels": [1, 4, 5]})
    score = data.pairs.pivot_table(index="ref_id", columns="level", values="score").to_numpy()
    assert score[:, 0].tolist() == [5, 5]  # Gaussian blur of level 1 changes nothing
    assert (np.diff(score) < 0).all()
    assert score.min() >= 1


def test_manifest_says_how_it_was_made(tmp_path):
    synthesize(PICTURES, tmp_path / "out", **QUICK, size=(32, 24))
    text = (tmp_path / "out" / "manifest.json").read_text()
    manifest = json.loads(text)
    assert str(tmp_path) not in text
    assert manifest["types"] == {"10": "JPEG", "11": "white noise"}
    assert (manifest["levels"], manifest["metrics"], manifest["size"]) == ([1, 5], ["ssim", "gmsd"], [32, 24])
    assert (manifest["seed"], manifest["pairs"], manifest["complete"]) == (0, 8, True)
    assert [(r["ref_id"], r["source"], r["subset"]) for r in manifest["references"]] == [
        ("I01", "b", "none"),
        ("I02", "a", "none"),
    ]
    assert {"vtamiq", "piq", "torch"} < set(manifest["versions"])
    np.testing.assert_array_equal(read_image(tmp_path / "out/images/I01.png"), PICTURES["b"][4:28, 4:36])


def test_other_seeds_and_names_give_other_noise_but_the_same_jpeg(tmp_path):
    one = synthesize({"a": PICTURES["a"], "c": PICTURES["a"]}, tmp_path / "1", **QUICK)
    two = synthesize({"a": PICTURES["a"]}, tmp_path / "2", **QUICK, seed=1)

    def bytes_of(data, image):
        return (data.root / "images" / image).read_bytes()

    assert bytes_of(one, "I01_11_05.png") != bytes_of(two, "I01_11_05.png")
    assert bytes_of(one, "I01_11_05.png") != bytes_of(one, "I02_11_05.png")
    assert bytes_of(one, "I01_10_05.png") == bytes_of(two, "I01_10_05.png") == bytes_of(one, "I02_10_05.png")


# ---- sources ----------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, image in PICTURES.items():
        write_png(folder / f"{name}.png", image)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"clutter")
    return folder


def test_a_folder_and_a_list_of_its_files_are_the_same(photos, tmp_path):
    folder = synthesize(photos, tmp_path / "1" / "out", **QUICK)
    files = synthesize([photos / "a.png", str(photos / "b.png")], tmp_path / "2" / "out", **QUICK)
    assert contents(folder.root) == contents(files.root)
    manifest = json.loads((folder.root / "manifest.json").read_text())
    assert [entry["source"] for entry in manifest["references"]] == ["a.png", "b.png"]


def test_unusable_photographs_are_skipped_by_name(photos, tmp_path, caplog):
    (photos / "a0.jpg").write_bytes((photos / "a.png").read_bytes()[:200])
    write_png(photos / "small.png", picture(3, 12, 10))
    data = synthesize(photos, tmp_path / "out", **QUICK, size=(16, 16))
    assert data.references == ["I01", "I03"]  # a and b
    assert len(data) == 8
    assert any("a0.jpg" in message for message in caplog.messages)
    assert "a0.jpg was skipped" in data.omissions[0]
    assert data.omissions[1] == "small.png was skipped: 10 x 12 pixels are too few for a crop of 16 x 16"
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()


def test_nothing_usable_is_an_error(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"not a picture")
    with pytest.raises(DatabaseError, match=r"none of the 1 photographs can be used.*a\.png"):
        synthesize(tmp_path / "photos", tmp_path / "out", **QUICK)
    with pytest.raises(DatabaseError, match="none of the 1 photographs"):
        synthesize([tmp_path / "missing.png"], tmp_path / "out2", **QUICK)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, "no photograph"),
        ([], "no photograph"),
        ("nowhere", "no folder nowhere"),
        (["x/a.png", "y/a.png"], r"two photographs are called a\.png"),
        (["x/a.png", "x/a.png"], r"two photographs are called a\.png"),
    ],
)
def test_bad_sources(images, message, tmp_path):
    with pytest.raises(DatabaseError, match=message):
        synthesize(images, tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(DatabaseError, match="has no image files"):
        synthesize(tmp_path, tmp_path / "out", **QUICK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"types": ["gblurr"]}, "gblur"),
        ({"types": [26]}, "26"),
        ({"types": [1, "gblur"]}, "types.*twice"),
        ({"types": []}, "types must name something"),
        ({"levels": (0,)}, "unknown level 0"),
        ({"metrics": ["psnr"]}, "unknown metric 'psnr'"),
        ({"size": (4, 100)}, "size"),
        ({"size": (40.5, 40)}, "whole pixels"),
        ({"size": 40}, "size"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"workers": -1}, "workers"),
        ({"subsets": {"z": "train"}}, "subsets names z"),
        ({"subsets": {"a": "training"}}, "subset of a"),
    ],
)
def test_bad_arguments(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        synthesize(PICTURES, tmp_path / "out", **QUICK | changes)
    assert not (tmp_path / "out").exists()


def test_recipe_takes_everything_by_default():
    recipe = Recipe()
    assert recipe.types == tuple(range(1, 26))
    assert len(recipe.metrics) == 11
    assert recipe.levels == (1, 2, 3, 4, 5)


def test_recipe_keeps_plain_numbers_in_one_order():
    odd = Recipe(types=np.array([11, 1]), levels=np.array([5.0, 1.0]), metrics=("gmsd", "ssim"), seed=np.int64(3))
    plain = Recipe(types=(1, 11), levels=(1, 5), metrics=("ssim", "gmsd"), seed=3)
    assert odd == plain
    assert json.loads(json.dumps(odd.to_dict())) == plain.to_dict()


def test_names_that_become_the_same_are_refused(tmp_path):
    with pytest.raises(DatabaseError, match="two photographs are called 1"):
        synthesize({1: PICTURES["a"], "1": PICTURES["b"]}, tmp_path / "out", **QUICK)
    data = synthesize({1: PICTURES["a"]}, tmp_path / "out", **QUICK | {"levels": 5}, subsets={1: "train"})
    assert data.pairs["subset"].tolist() == ["train"] * 2


def test_photographs_at_two_metric_scales_are_refused(tmp_path):
    images = {"low": picture(1, 380, 400), "high": picture(2, 400, 400)}
    with pytest.raises(DatabaseError, match=r"(?s)(low|high).*give a size"):
        synthesize(images, tmp_path / "out", **QUICK)
    cropped = synthesize(images, tmp_path / "out", **QUICK | {"levels": [3], "size": (24, 16)})  # as the message says
    assert len(cropped) == 4
    assert read_image(cropped.path(cropped.pairs["dist_path"][0])).shape == (16, 24, 3)
    data = synthesize(images, tmp_path / "out2", **QUICK | {"types": [10], "levels": [3], "metrics": ["gmsd"]})
    assert len(data) == 2  # GMSD does not depend on the scale


def test_a_distortion_that_fails_is_named(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("too small")

    monkeypatch.setattr(synthesis, "distort", fail)
    with pytest.raises(DatabaseError, match="b with JPEG at level 1: too small"):
        synthesize(PICTURES, tmp_path / "out", **QUICK)


def test_distortions_that_change_nothing_cannot_be_ranked(tmp_path):
    with pytest.raises(DatabaseError, match=r"out: no ranks .*perfect copy.*take types or levels"):
        synthesize(PICTURES, tmp_path / "out", **QUICK | {"types": [1], "levels": [1]})


# ---- determinism and resuming -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_processes():
    with executor(2) as pool:
        yield pool


@pytest.fixture
def pool(two_processes, monkeypatch):
    """One pool for the tests that do not look at how its processes start and end, which takes longer than their work."""
    monkeypatch.setattr(synthesis, "executor", lambda n: contextlib.nullcontext(two_processes if n > 1 else None))


def test_files_do_not_depend_on_the_number_of_workers(tmp_path):
    one = synthesize(PICTURES, tmp_path / "1" / "out", **QUICK)
    two = synthesize(PICTURES, tmp_path / "2" / "out", **QUICK | {"workers": 2})
    assert contents(one.root) == contents(two.root)


def test_a_finished_folder_is_loaded_not_remade(tmp_path, monkeypatch):
    synthesize(PICTURES, tmp_path / "out", **QUICK)
    before = contents(tmp_path / "out")
    for name in ("_render", "_prepare_reference", "_write_labels"):
        monkeypatch.delattr(synthesis, name)
    data = synthesize(PICTURES, tmp_path / "out", **QUICK | {"workers": 2})
    assert contents(tmp_path / "out") == before
    pd.testing.assert_frame_equal(data.pairs, load_database("synthetic", tmp_path / "out").pairs)


def test_an_interrupted_folder_is_finished_without_doing_anything_twice(tmp_path, monkeypatch):
    whole = synthesize(PICTURES, tmp_path / "1" / "out", **QUICK)
    out = tmp_path / "2" / "out"
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            synthesize(PICTURES, out, **QUICK)
    with pytest.raises(DatabaseError, match="unfinished"):
        load_database("synthetic", out)
    (out / "parts" / "I01_11.json").unlink()  # as if killed after its images, before its scores
    distorted = counting("distort", monkeypatch)
    data = synthesize(PICTURES, out, **QUICK)
    assert [(type, level) for _, type, level, _ in distorted] == [(11, 1), (11, 5), (10, 1), (10, 5), (11, 1), (11, 5)]
    assert contents(data.root) == contents(whole.root)


@pytest.mark.parametrize("name", ["images/I01_10_01.png", "images/I01.png", "parts/I01_10.json"])
@pytest.mark.parametrize("damage", ["cut off", "flipped", "gone", "other"])
def test_what_was_damaged_meanwhile_is_made_again(tmp_path, monkeypatch, name, damage):
    whole = synthesize(PICTURES, tmp_path / "1" / "out", **QUICK)
    out = tmp_path / "2" / "out"
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            synthesize(PICTURES, out, **QUICK)
    content = (out / name).read_bytes()
    place = len(content) * 2 // 3
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    (out / name).write_bytes({"cut off": content[:place], "flipped": flipped, "gone": b"", "other": b"[{}]"}[damage])
    if damage == "gone":
        (out / name).unlink()
    data = synthesize(PICTURES, out, **QUICK)
    assert contents(data.root) == contents(whole.root)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": NaN}', "[" * 100_000, "\udcff"], ids=range(7))
def test_a_damaged_manifest_is_named(tmp_path, text):
    synthesize(PICTURES, tmp_path / "out", **QUICK)
    (tmp_path / "out" / synthesis.MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    for use in (lambda: synthesize(PICTURES, tmp_path / "out", **QUICK), lambda: load_synthetic(tmp_path / "out")):
        with pytest.raises(DatabaseError, match=f"{synthesis.MANIFEST} .*remove the folder and make it again"):
            use()


def test_interrupted_before_the_labels(tmp_path, monkeypatch):
    whole = synthesize(PICTURES, tmp_path / "1" / "out", **QUICK)
    out = tmp_path / "2" / "out"
    with monkeypatch.context() as patch:
        patch.setattr(synthesis, "weak_labels", interrupt)
        with pytest.raises(KeyboardInterrupt):
            synthesize(PICTURES, out, **QUICK)
    rendered = counting("_render", monkeypatch)
    data = synthesize(PICTURES, out, **QUICK)
    assert rendered == []
    assert contents(data.root) == contents(whole.root)


def _make_slowly(out):
    render = synthesis._render
    synthesis._render = lambda unit: time.sleep(0.2) or render(unit)
    synthesize(PICTURES, out, **QUICK)


def test_killed_at_any_moment_it_can_be_finished(tmp_path):
    whole = synthesize(PICTURES, tmp_path / "1" / "out", **QUICK)
    out = tmp_path / "2" / "out"
    process = multiprocessing.get_context("spawn").Process(target=_make_slowly, args=(out,))
    process.start()
    limit = time.monotonic() + 120
    while not list(out.glob("parts/I01_10.json")) and time.monotonic() < limit:
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (out / "parts" / "I01_10.json").exists()
    data = synthesize(PICTURES, out, **QUICK)
    found = {name: content for name, content in contents(data.root).items() if not name.endswith(".tmp")}
    assert found == contents(whole.root)


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_the_second_of_two_at_once_waits_and_loads_what_the_first_has_made(tmp_path, monkeypatch):
    whole = contents(synthesize(PICTURES, tmp_path / "1" / "out", **QUICK).root)
    out, render, found = tmp_path / "2" / "out", synthesis._render, []
    second = threading.Thread(target=lambda: found.append(synthesize(PICTURES, out, **QUICK)))
    makers = []

    def slow(unit):
        makers.append(threading.current_thread())
        if second.ident is None:
            second.start()
            second.join(0.3)  # time enough for it to make all of this
        return render(unit)

    monkeypatch.setattr(synthesis, "_render", slow)
    first = synthesize(PICTURES, out, **QUICK)
    second.join()
    assert makers == [threading.current_thread()] * 4
    pd.testing.assert_frame_equal(found[0].pairs, first.pairs)
    assert contents(out) == whole


def test_every_photograph_is_read_once_for_its_digest(photos, tmp_path, monkeypatch):
    read = counting("file_digest", monkeypatch)
    for _ in range(2):  # to make, and to load
        synthesize(photos, tmp_path / "out", **QUICK)
        assert sorted(path.name for (path,) in read if path.parent == photos) == ["a.png", "b.png"]
        read.clear()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed: there 0, now 1"),
        ({"types": [10]}, "types: there"),
        ({"metrics": ["ssim"]}, "metrics"),
        ({"size": (16, 16)}, r"size: there null, now \[16, 16\]"),
        ({"subsets": {"a": "train"}}, "references"),
    ],
)
def test_a_folder_made_with_other_arguments_is_refused(changes, message, tmp_path):
    synthesize(PICTURES, tmp_path / "out", **QUICK)
    before = contents(tmp_path / "out")
    with pytest.raises(DatabaseError, match=message):
        synthesize(PICTURES, tmp_path / "out", **QUICK | changes)
    assert contents(tmp_path / "out") == before


def test_a_folder_that_came_to_nothing_takes_other_arguments(tmp_path):
    with pytest.raises(DatabaseError, match="none of the 2 photographs"):
        synthesize(PICTURES, tmp_path / "out", **QUICK, size=(4000, 3000))
    data = synthesize(PICTURES, tmp_path / "out", **QUICK, size=(16, 16))
    assert len(data) == 8
    assert not data.omissions


def test_damaged_left_overs_are_made_again(tmp_path, monkeypatch):
    whole = contents(synthesize(PICTURES, tmp_path / "whole" / "out", **QUICK).root)
    interrupted_after(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        synthesize(PICTURES, tmp_path / "out", **QUICK)
    monkeypatch.undo()
    for name in ("parts/I01_10.json", "images/I02.png"):  # as a power cut may leave them
        (tmp_path / "out" / name).write_bytes(b"")
    (tmp_path / "out" / "images" / f".I01-{'0' * 32}.tmp").write_bytes(b"half")
    assert contents(synthesize(PICTURES, tmp_path / "out", **QUICK).root) == whole


def test_other_versions_on_resuming_are_told(tmp_path, monkeypatch, caplog):
    interrupted_after(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        synthesize(PICTURES, tmp_path / "out", **QUICK)
    monkeypatch.undo()
    monkeypatch.setattr(synthesis, "__version__", "0.0.0")
    synthesize(PICTURES, tmp_path / "out", **QUICK)
    assert any("out was begun with" in message and "'vtamiq': '0.0.0'" in message for message in caplog.messages)
    assert str(tmp_path) not in caplog.text  # notebooks show what is logged


def test_changed_photographs_are_noticed(photos, tmp_path):
    synthesize(photos, tmp_path / "out", **QUICK)
    write_png(photos / "a.png", PICTURES["b"])
    with pytest.raises(DatabaseError, match="references: there"):
        synthesize(photos, tmp_path / "out", **QUICK)


def test_a_folder_of_something_else_is_refused(photos):
    before = contents(photos)
    with pytest.raises(DatabaseError, match="not empty and was not made by vtamiq"):
        synthesize(PICTURES, photos, **QUICK)
    with pytest.raises(DatabaseError, match="is a file"):
        synthesize(PICTURES, photos / "a.png", **QUICK)
    assert contents(photos) == before


# ---- recipes ----------------------------------------------------------------------------------------------------


def same_pairs(one, other):
    """The images of every pair of two databases, however they are made, and everything that is said of them."""
    a, b = PairImages(one), PairImages(other)
    assert len(a) == len(b) > 0
    for row in range(len(a)):
        np.testing.assert_array_equal(a[row], b[row])
    names = ["ref_id", "dist_type", "dist_name", "level", "score", "score_std", "subset", "content", "rank_ssim"]
    pd.testing.assert_frame_equal(one.pairs[names], other.pairs[names])


@pytest.mark.parametrize("size", [None, (32, 24)])
def test_recipes_of_a_folder_are_the_same_pairs_without_any_image(photos, tmp_path, size):
    options = QUICK | {"size": size, "subsets": {"a.png": "train", "b.png": "test"}}
    images = synthesize(photos, tmp_path / "images" / "made", **options)
    recipes = synthesize(photos, tmp_path / "recipes" / "made", **options, recipes_only=True)
    assert set(contents(tmp_path / "recipes" / "made")) == {
        "dmos.csv", "iqm_scores.csv", "manifest.json", "quantiles.json"
    }  # fmt: skip
    same_pairs(images, recipes)
    assert (recipes.name, recipes.root, recipes.crop) == ("made", (tmp_path / "photos"), size)
    assert recipes.pairs["ref_path"].unique().tolist() == ["a.png", "b.png"]
    assert "recipe_seed" not in images.pairs
    manifest = (tmp_path / "recipes" / "made" / "manifest.json").read_text()
    assert json.loads(manifest)["photographs"] == "../../photos"
    assert str(tmp_path) not in manifest


def test_recipes_of_arrays_keep_copies_of_the_references(tmp_path):
    images = synthesize(PICTURES, tmp_path / "1" / "made", **QUICK)
    recipes = synthesize(PICTURES, tmp_path / "2" / "made", **QUICK, recipes_only=True)
    assert {name for name in contents(recipes.root) if "images" in name} == {"images/I01.png", "images/I02.png"}
    same_pairs(images, recipes)
    with pytest.raises(DatabaseError, match="has its references"):
        load_database("synthetic", recipes.root, photographs=tmp_path)


def test_recipes_and_photographs_may_move(photos, tmp_path):
    made = synthesize(photos, tmp_path / "made", **QUICK, recipes_only=True)
    seen = [PairImages(made)[row] for row in range(len(made))]
    (tmp_path / "together").mkdir()
    for name in ("photos", "made"):
        (tmp_path / name).rename(tmp_path / "together" / name)
    moved = load_database("synthetic", tmp_path / "together" / "made")
    np.testing.assert_array_equal([PairImages(moved)[row] for row in range(len(moved))], seen)
    (tmp_path / "together" / "photos").rename(tmp_path / "elsewhere")
    with pytest.raises(DatabaseError, match=r"photographs of .*made are not in \.\./photos; say with photographs="):
        load_database("synthetic", tmp_path / "together" / "made")
    moved = load_database("synthetic", tmp_path / "together" / "made", photographs=tmp_path / "elsewhere")
    np.testing.assert_array_equal(PairImages(moved)[7], seen[7])
    again = synthesize(tmp_path / "elsewhere", tmp_path / "together" / "made", **QUICK, recipes_only=True)
    assert again.root == tmp_path / "elsewhere"


def test_recipes_of_photographs_that_changed_are_refused(photos, tmp_path):
    made = synthesize(photos, tmp_path / "made", **QUICK, recipes_only=True)
    write_png(photos / "b.png", PICTURES["a"])
    with pytest.raises(DatabaseError, match=r"b\.png in .*photos is missing or not the photograph"):
        load_database("synthetic", tmp_path / "made")
    (photos / "b.png").unlink()
    with pytest.raises(DatabaseError, match=r"b\.png in .*photos is missing"):
        load_database("synthetic", tmp_path / "made")
    assert len(load_database("synthetic", tmp_path / "made", check_images=False)) == len(made)


def test_recipes_do_not_depend_on_workers_and_can_be_finished(photos, pool, tmp_path, monkeypatch):
    write_png(photos / "small.png", picture(3, 12, 10))
    options = QUICK | {"size": (16, 16), "recipes_only": True}
    synthesize(photos, tmp_path / "1" / "made", **options)
    synthesize(photos, tmp_path / "2" / "made", **options | {"workers": 2})
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            synthesize(photos, tmp_path / "3" / "made", **options)
    rendered = counting("_render", monkeypatch)
    data = synthesize(photos, tmp_path / "3" / "made", **options)
    assert len(rendered) == 2
    assert data.omissions == ("small.png was skipped: 10 x 12 pixels are too few for a crop of 16 x 16",)
    one, *others = (contents(tmp_path / n / "made") for n in "123")
    assert all(other == one for other in others)


def test_recipes_without_labels(photos, tmp_path, monkeypatch):
    monkeypatch.delattr(synthesis, "_render")
    made = synthesize(photos, tmp_path / "made", **QUICK | {"metrics": ()}, recipes_only=True)
    assert set(contents(tmp_path / "made")) == {"dmos.csv", "manifest.json"}
    assert made.pairs["score"].isna().all()
    assert made.score_name == "synthetic score (not measured)"
    np.testing.assert_array_equal(
        PairImages(made)[3][1], distort(PICTURES["a"], 11, 5, int(made.pairs["recipe_seed"][3]))
    )
    with pytest.raises(DatabaseError, match="has no labels, so none by 'vsi'"):
        load_database("synthetic", tmp_path / "made", label="vsi")
    with pytest.raises(ValueError, match="only recipes may go without labels"):
        synthesize(photos, tmp_path / "other", **QUICK | {"metrics": ()})


def test_images_and_recipes_do_not_mix_in_one_folder(photos, tmp_path):
    synthesize(photos, tmp_path / "made", **QUICK)
    with pytest.raises(DatabaseError, match="recipes_only: there false, now true"):
        synthesize(photos, tmp_path / "made", **QUICK, recipes_only=True)
    with pytest.raises(DatabaseError, match="photographs and cache are for recipes only"):
        load_database("synthetic", tmp_path / "made", cache=tmp_path / "cache")


def test_a_cache_keeps_what_was_rendered(photos, tmp_path, monkeypatch):
    made = synthesize(photos, tmp_path / "made", **QUICK, recipes_only=True)
    cached = load_database("synthetic", tmp_path / "made", cache=tmp_path / "cache")
    same_pairs(made, cached)
    assert len(list((tmp_path / "cache").glob("made-*/*/*.png"))) == len(made)
    (part, *_) = cached.split((0.5, 0.5))
    assert part.cache == cached.cache
    monkeypatch.setattr("vtamiq.databases.pairs.distort", lambda *_: pytest.fail("rendered again"))
    images = PairImages(load_database("synthetic", tmp_path / "made", cache=tmp_path / "cache"))
    again = [images[row] for row in range(len(images))]
    monkeypatch.undo()
    np.testing.assert_array_equal(again, [PairImages(made)[row] for row in range(len(made))])
    next((tmp_path / "cache").glob("made-*/*/*.png")).write_bytes(b"half")  # by a power cut
    same_pairs(made, cached)
    other = synthesize(photos, tmp_path / "2" / "made", **QUICK, recipes_only=True, seed=1)  # of the same name
    same_pairs(other, load_database("synthetic", other_folder := tmp_path / "2" / "made", cache=tmp_path / "cache"))
    assert other_folder.is_dir()
    assert len(list((tmp_path / "cache").iterdir())) == 2


# ---- one type for each photograph -------------------------------------------------------------------------------


def many(count):
    return {f"p{n}": PICTURES["a"] for n in range(count)}


def dealt(keys, **options):
    recipe = Recipe(one_type=True, **options)
    return {
        source.key: source.types[0]
        for source in synthesis._list_sources(dict.fromkeys(keys, PICTURES["a"]), {}, {}, recipe)
    }


@settings(deadline=None)
@given(count=st.integers(1, 60), types=st.sets(st.integers(1, 25), min_size=1), seed=st.integers(0, 2**40))
def test_types_are_dealt_evenly_and_whatever_the_order(count, types, seed):
    keys = [f"p{n}" for n in range(count)]
    one = dealt(keys, types=tuple(types), seed=seed)
    numbers = pd.Series(one).value_counts().reindex(sorted(types), fill_value=0)
    assert numbers.max() - numbers.min() <= 1
    assert dealt(keys[::-1], types=tuple(types), seed=seed) == one


def test_other_seeds_deal_otherwise():
    keys = [f"p{n}" for n in range(40)]
    first_to_last = [tuple(dealt(keys, seed=seed).values()) for seed in range(20)]
    assert len(set(first_to_last)) == 20
    few = [dealt(["p"], seed=seed)["p"] for seed in range(200)]  # no type is preferred where photographs are few
    assert set(few) == set(range(1, 26))


@pytest.mark.parametrize("recipes_only", [False, True])
def test_one_type_for_each_photograph(pool, tmp_path, recipes_only):
    options = QUICK | {"types": [10, 11, 17], "levels": [2, 4], "one_type": True, "recipes_only": recipes_only}
    made = synthesize(many(6), tmp_path / "1" / "made", **options)
    assert len(made) == 12
    types = made.pairs.groupby("ref_id")["dist_type"].unique()
    assert all(len(type) == 1 for type in types)
    assert types.map(lambda type: type[0]).value_counts().to_dict() == {10: 2, 11: 2, 17: 2}
    manifest = json.loads((tmp_path / "1" / "made" / "manifest.json").read_text())
    assert [entry["type"] for entry in manifest["references"]] == [type[0] for type in types]
    two = synthesize(many(6), tmp_path / "2" / "made", **options | {"workers": 2})
    assert contents(tmp_path / "1" / "made") == contents(tmp_path / "2" / "made")
    same_pairs(made, two)


def test_a_missing_gpu_is_said_at_once(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="device is cuda, but torch finds none"):
        synthesize(PICTURES, tmp_path / "made", **QUICK, device="cuda")
    with pytest.raises(ValueError, match="device must be cpu or cuda, got 'gpu'"):
        synthesize(PICTURES, tmp_path / "made", **QUICK, device="gpu")


# ---- demo databases ---------------------------------------------------------------------------------------------


def test_demo_photographs_have_credits():
    images = demo_photographs()
    assert list(images) == [photo.name for photo in PHOTOGRAPHS]
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in images.values())
    assert all(photo.credit and photo.licence for photo in PHOTOGRAPHS)
    assert len({image.tobytes() for image in images.values()}) == len(images)  # nothing twice
    grey = {name for name, image in images.items() if (image == image[..., :1]).all()}
    assert grey == {*demo_photographs("textures"), "camera"}
    assert {photo.name for photo in PHOTOGRAPHS if photo.licence == "CC BY 2.0"} == {"china", "flower"}
    with pytest.raises(DatabaseError, match="known: photos, textures"):
        demo_photographs("photo")


def test_demo_database_is_complete():
    """Twelve photographs or more, all types, levels and metrics, and three parts."""
    photographs = [photo for photo in PHOTOGRAPHS if photo.database == "photos"]
    assert len(photographs) == 12
    for photos in (photographs, [photo for photo in PHOTOGRAPHS if photo.database == "textures"]):
        assert {photo.subset for photo in photos} == {"train", "val", "test"}
    recipe = demo._DEMOS["demo"]
    assert (len(recipe.types), len(recipe.levels), len(recipe.metrics)) == (25, 5, 11)
    assert min(recipe.size) >= max(iqm.min_side for iqm in IQMS.values())  # no metric sees a mirrored border
    assert scale_regime((recipe.size[1], recipe.size[0])) == 1


@pytest.mark.parametrize("name", ["photos", "textures"])
def test_smoke_demo_database(name, tmp_path, monkeypatch):
    data = demo_database(name, cache=tmp_path, preset="smoke", progress=False)
    assert (data.name, len(data), data.synthetic) == (name, 48, True)
    assert [len(part.references) for part in data.distributed_split()] == [2, 1, 1]
    assert read_image(data.path(data.pairs["ref_path"][0])).shape == (160, 192, 3)
    assert data.pairs["score"].between(1, 5).all()
    monkeypatch.delattr(synthesis, "_render")
    assert demo_database(name, cache=tmp_path, preset="smoke").root == data.root


def test_demo_database_has_simulated_preferences_and_any_label(tmp_path):
    data = demo_database(cache=tmp_path, preset="smoke", progress=False)
    assert (data.preferences["kind"] == "simulated").all()
    assert set(data.preferences["ref_id"]) == set(data.references)
    train, _, test = data.distributed_split()
    assert (train.preferences["subset"] == "train").all()
    assert set(test.preferences["ref_id"]) == set(test.references)
    score = data.pairs.set_index("dist_path")["score"]
    better = data.preferences["a_path"].map(score) > data.preferences["b_path"].map(score)
    assert ((data.preferences["p_a"] > 0.5) == better).all()
    one = demo_database(cache=tmp_path, preset="smoke", label="gmsd", progress=False)
    assert one.score_name == "synthetic score (GMSD alone)"
    np.testing.assert_allclose(one.pairs["score"], 5 - 4 * data.pairs["rank_gmsd"], atol=1e-6)
    assert not one.preferences["p_a"].equals(data.preferences["p_a"])


@pytest.mark.parametrize("size", [recipe.size for recipe in demo._DEMOS.values()])
def test_views_of_a_demo_photograph_are_crops_of_one_content(size):
    width, height = size
    for photo in PHOTOGRAPHS:
        image, crops = photo.load(), photo.crops(size)
        assert list(crops) == [photo.name, f"{photo.name}-2", f"{photo.name}-3"][: photo.views]
        assert all(crop.shape == (height, width, 3) for crop in crops.values())
        if photo.views > 1:
            np.testing.assert_array_equal(crops[f"{photo.name}-2"], image[:height, :width])
    three = replace(PHOTOGRAPHS[0], views=3).crops(size)
    np.testing.assert_array_equal(three["astronaut-3"], PHOTOGRAPHS[0].load()[-height:, -width:])
    assert {photo.subset for photo in PHOTOGRAPHS if photo.views > 1} == {"train"}


def test_contents_come_back_with_the_database(tmp_path):
    images = {name: picture(seed) for seed, name in enumerate(["left", "right", "other"])}
    data = synthesize(images, tmp_path / "out", **QUICK, contents={"left": "scene", "right": "scene"})
    assert data.contents == {"I01": "scene", "I02": "scene", "I03": "other"}
    train, test = data.split((0.5, 0.5), seed=1)
    assert {tuple(train.references), tuple(test.references)} == {("I01", "I02"), ("I03",)}
    with pytest.raises(DatabaseError, match="contents names z"):
        synthesize(images, tmp_path / "2", **QUICK, contents={"z": "scene"})


def test_demo_database_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(DatabaseError, match="known: photos, textures"):
        demo_database("photo", cache=tmp_path)
    with pytest.raises(DatabaseError, match="unknown preset 'full'"):
        demo_database(preset="full", cache=tmp_path)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("VTAMIQ_CACHE", str(tmp_path / "set"))
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    assert cache_folder() == tmp_path / "set"
    monkeypatch.delenv("VTAMIQ_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "vtamiq"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "vtamiq"


def test_copies_of_one_photograph_are_one_content(tmp_path, caplog):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("b", "a"):
        write_png(folder / f"{name}.png", PICTURES["a" if name == "a" else "b"])
    shutil.copy(folder / "a.png", folder / "a copy.png")
    data = synthesize(folder, tmp_path / "made", **QUICK)
    assert data.contents == {"I01": "a copy.png", "I02": "a copy.png", "I03": "b.png"}
    assert "a.png is a copy of a copy.png: both are one content" in caplog.text
    stated = synthesize(folder, tmp_path / "stated", **QUICK, contents={"a.png": "mine"})
    assert stated.contents["I02"] == "mine"


def test_ranks_are_not_made_of_test_photographs(tmp_path):
    images = {"train": tmp_path / "none.png", "test": PICTURES["b"]}
    with pytest.raises(DatabaseError, match="none of the train photographs can be used"):
        synthesize(images, tmp_path / "made", **QUICK, subsets={"train": "train", "test": "test"})


@pytest.mark.parametrize("name", ["a\\b.png", "a\nb.png", os.fsdecode(b"caf\xe9.png")])
def test_names_that_tables_cannot_keep_are_refused_before_any_work(tmp_path, name):
    write_png(tmp_path / "a.png", PICTURES["a"])
    try:
        os.rename(tmp_path / "a.png", tmp_path / name)
    except (OSError, ValueError):
        pytest.skip("this file system refuses the name itself")
    with pytest.raises(DatabaseError, match="cannot be kept in tables; rename"):
        synthesize(tmp_path, tmp_path / "made", **QUICK)


def test_recipes_of_a_list_may_be_asked_for_again_by_their_folder(photos, tmp_path):
    files = sorted(photos.glob("[a-z]*.png"))
    first = synthesize(files, tmp_path / "made", **QUICK, recipes_only=True)
    again = synthesize(photos, tmp_path / "made", **QUICK, recipes_only=True)
    assert again.root == first.root


def test_a_synthetic_folder_is_no_kadid(tmp_path):
    synthesize(PICTURES, tmp_path / "made", **QUICK)
    with pytest.raises(DatabaseError, match="its labels are synthetic: load it as 'synthetic'"):
        load_database("kadid10k", tmp_path / "made", strict=False)


def test_a_reference_cut_off_by_a_power_cut_is_written_again(tmp_path, monkeypatch):
    whole = synthesize(PICTURES, tmp_path / "whole", **QUICK)
    measure = synthesis.iqm_scores

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthesis, "iqm_scores", stop)
    with pytest.raises(KeyboardInterrupt):
        synthesize(PICTURES, tmp_path / "cut", **QUICK)
    path = tmp_path / "cut" / "images" / "I01.png"
    path.write_bytes(path.read_bytes()[:-30])
    monkeypatch.setattr(synthesis, "iqm_scores", measure)
    again = synthesize(PICTURES, tmp_path / "cut", **QUICK)
    assert path.read_bytes() == (whole.root / "images" / "I01.png").read_bytes()
    assert again.pairs["score"].tolist() == whole.pairs["score"].tolist()


def test_numbers_of_numpy_are_numbers(tmp_path):
    options = QUICK | {"types": np.int64(10), "levels": np.int64(5)}
    data = synthesize(PICTURES, tmp_path / "made", **options)
    assert data.pairs[["dist_type", "level"]].drop_duplicates().to_numpy().tolist() == [[10, 5]]
