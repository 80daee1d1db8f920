"""Tables of pairs: same scores as one by one, bad rows named, interrupted and resumed, several processes, one result."""

import csv
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.small import TINY, small_database
from vtamiq.__main__ import _spare_cores, main
from vtamiq.caps import CAPS
from vtamiq.images.reading import ImageError
from vtamiq.model.inference import fingerprint
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring import table as batch
from vtamiq.scoring.journal import Result, Store, merge, read_scores
from vtamiq.scoring.pairs import pair_folders, read_pairs
from vtamiq.scoring.scores import score
from vtamiq.scoring.table import score_table

CAPS_4 = CAPS(num_patches=4)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VTAMIQ(TINY).eval()


@pytest.fixture(scope="module")
def model_folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five references with four versions each, and `pairs.csv`."""
    folder = tmp_path_factory.mktemp("images")
    pairs = small_database(folder).pairs
    table = pd.DataFrame({"reference": pairs["ref_path"], "distorted": pairs["dist_path"], "level": pairs["level"]})
    table.sample(frac=1, random_state=0).to_csv(folder / "pairs.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def expected(folder, model):
    pairs = pd.read_csv(folder / "pairs.csv")
    rows = zip(pairs["reference"], pairs["distorted"], strict=True)
    return [score(folder / r, folder / d, model=model, caps=CAPS_4) for r, d in rows]


# ------------------------------------------------------------------------------------------------------------ scores


def test_scores_are_those_of_score_in_the_order_of_the_table(folder, model, expected):
    table = score_table(folder / "pairs.csv", model=model, caps=CAPS_4)
    pairs = pd.read_csv(folder / "pairs.csv")
    assert table["q"].tolist() == expected
    for name in pairs:
        assert table[name].tolist() == pairs[name].tolist()
    assert table["standard_error"].isna().all()
    assert (table["error"] == "").all()
    assert table["weights"].unique().tolist() == [fingerprint(model)]
    for name, value in (("repeats", 1), ("num_patches", 4), ("seed", 0)):
        assert (table[name] == value).all()


def test_repeats_batches_and_workers(folder, model):
    pairs = read_pairs(folder / "pairs.csv").head(3)
    options = {"model": model, "caps": CAPS_4, "repeats": 3, "seed": 5}
    table = score_table(pairs, root=folder, batch_size=7, workers=1, **options)
    for row in table.itertuples():
        q, error = score(folder / row.reference, folder / row.distorted, return_std=True, **options)
        assert row.q == pytest.approx(q, abs=1e-7)
        assert row.standard_error == pytest.approx(error, abs=1e-7)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
def test_formats_keep_every_digit(folder, model, expected, tmp_path, suffix):
    out = tmp_path / "new" / f"scores{suffix}"
    table = score_table(folder / "pairs.csv", out, model=model, caps=CAPS_4)
    written = read_scores(out)
    assert written["q"].tolist() == expected
    pd.testing.assert_frame_equal(
        written[list(table)].astype({"level": int}), table.reset_index(drop=True), check_dtype=False
    )
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_bad_rows_are_named_and_the_others_scored(folder, model, tmp_path):
    (tmp_path / "torn.png").write_bytes((folder / "images/r0_1.png").read_bytes()[:200])
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    good = [str(folder / "images" / name) for name in ("r0.png", "r0_1.png")]
    text = (
        "\ufeffreference,distorted,note\n"
        f"{good[0]},{good[1]},fine\n"
        f"{good[0]},torn.png,torn\n"
        "\n"
        f'{good[0]},missing.png,"two\nlines"\n'
        f"{good[0]},small.png,size\n"
        f"{good[0]},,nothing\n"
        f"{good[0]},{good[1]}\n"
        f"{good[0]},{good[0]},copy\n"
    )
    (tmp_path / "pairs.csv").write_text(text, encoding="utf-8")
    table = score_table(tmp_path / "pairs.csv", model=model, caps=CAPS_4)
    assert table.index.tolist() == [2, 3, 5, 7, 8, 9, 10]
    errors = table["error"].tolist()
    assert [bool(error) for error in errors] == [False, True, True, True, True, True, False]
    for error, part in zip(
        errors[1:6],
        ("torn.png", "missing.png: no such file", "differ in size", "no distorted image", "fields"),
        strict=True,
    ):
        assert part in error
    assert table["q"].notna().tolist() == [not error for error in errors]
    assert table["q"].iloc[-1] == 0


def test_a_score_that_is_not_finite_is_a_bad_row(folder, expected):
    torch.manual_seed(0)
    broken = VTAMIQ(TINY).eval()
    with torch.no_grad():
        broken.head.output.bias.fill_(torch.nan)
    table = score_table(read_pairs(folder / "pairs.csv").head(2), root=folder, model=broken, caps=CAPS_4)
    assert table["q"].isna().all()
    assert table["error"].str.contains("not finite").all()


def test_the_same_pair_twice_is_scored_once_and_listed_twice(folder, model, monkeypatch):
    scored = []
    forward = batch.forward
    monkeypatch.setattr(
        batch, "forward", lambda model, samples, *rest: scored.extend(samples[0]) or forward(model, samples, *rest)
    )
    pairs = read_pairs(folder / "pairs.csv").iloc[[0, 1, 0]]
    q = score_table(pairs, root=folder, model=model, caps=CAPS_4)["q"].tolist()
    assert q[0] == q[2] != q[1]
    assert len(scored) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_many_draws_need_few_open_files(folder, model_folder):
    """A tensor that passes between processes is an open file: with one each, loading would hang at the limit."""
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from vtamiq import CAPS, VTAMIQ, score_table
from vtamiq.scoring.pairs import read_pairs
if __name__ == "__main__":
    model = VTAMIQ.from_pretrained({str(model_folder)!r})
    pairs = read_pairs({str(folder / "pairs.csv")!r}).head(4)
    table = score_table(
        pairs, root={str(folder)!r}, model=model, caps=CAPS(num_patches=4), repeats=300, batch_size=600, workers=1
    )
    print(int(table["q"].notna().sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["4"], done.stderr


def test_the_template_of_the_centre_counts_by_its_content(folder, model, tmp_path):
    path = tmp_path / "centre.npy"
    np.save(path, np.zeros((4, 4), np.float32))
    options = {"model": model, "caps": CAPS(num_patches=4, centre_map=str(path)), "root": folder}
    pairs = read_pairs(folder / "pairs.csv").head(1)
    score_table(pairs, tmp_path / "scores.csv", **options)
    np.save(path, np.eye(4, dtype=np.float32))
    with pytest.raises(ValueError, match="made with other settings"):
        score_table(pairs, tmp_path / "scores.csv", **options)


def test_the_callers_random_numbers_are_left_alone(folder, model):
    pairs = read_pairs(folder / "pairs.csv").head(2)
    before = torch.random.get_rng_state()
    score_table(pairs, root=folder, model=model, caps=CAPS_4)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_names_of_digits_are_no_numbers(tmp_path):
    (tmp_path / "pairs.csv").write_text("reference,distorted,id,level,mos\na,b,007,1,1.5\nc,d,010,2,2.25\n")
    table = read_pairs(tmp_path / "pairs.csv")
    assert table["id"].tolist() == ["007", "010"]
    assert table["level"].tolist() == [1, 2]
    assert table["mos"].tolist() == [1.5, 2.25]


def test_references_are_no_distorted_images(folder, tmp_path):
    shutil.copytree(folder / "images", tmp_path / "images")
    with pytest.raises(ValueError, match="need folders of their own"):
        pair_folders(tmp_path / "images", tmp_path / "images" / ".")
    (tmp_path / "images" / "references").mkdir()
    for path in (tmp_path / "images").glob("r?.png"):
        path.rename(tmp_path / "images" / "references" / path.name)
    pairs = pair_folders(tmp_path / "images" / "references", tmp_path / "images")
    assert len(pairs) == 20
    assert not pairs["distorted"].str.contains("/references/").any()


# -------------------------------------------------------------------------------------------------- interrupted, resumed


def test_a_bad_row_of_an_interrupted_call_is_tried_again(folder, model, tmp_path, monkeypatch):
    options = {"model": model, "caps": CAPS_4, "root": folder}
    pairs, out, late = read_pairs(folder / "pairs.csv").head(3), tmp_path / "scores.csv", tmp_path / "late.png"
    pairs.loc[pairs.index[0], "distorted"] = str(late)
    stop_after(monkeypatch, 1)
    with pytest.raises(Stopped):
        score_table(pairs, out, **options)
    late.write_bytes((folder / "images/r1_2.png").read_bytes())
    monkeypatch.undo()
    table = score_table(pairs, out, **options)
    assert (table["error"] == "").all()


def test_no_error_takes_the_place_of_a_score():
    bad, one, two = Result(None, None, "bad"), Result(1.0, None), Result(2.0, None)
    earlier, later = {"a": one, "b": bad}, {"a": bad, "b": two}
    assert merge(earlier, later) == merge(later, earlier) == {"a": one, "b": two}
    assert merge({"a": one}, {"a": two}) == {"a": two}


class Stopped(Exception):
    pass


def stop_after(monkeypatch, rows):
    """Fail when more than this many rows are being scored; returns the list of what was scored."""
    scored = []
    forward = batch.forward

    def counting(model, samples, *rest):
        if len(scored) == rows:
            raise Stopped
        scored.extend(samples[0] if samples else [])
        return forward(model, samples, *rest)

    monkeypatch.setattr(batch, "forward", counting)
    return scored


def test_interrupted_and_resumed_equals_uninterrupted(folder, model, expected, tmp_path, monkeypatch):
    out = tmp_path / "scores.csv"
    options = {"model": model, "caps": CAPS_4}
    stop_after(monkeypatch, 7)
    with pytest.raises(Stopped):
        score_table(folder / "pairs.csv", out, **options)
    assert not out.exists()
    (journal,) = (tmp_path / "scores.csv.parts").iterdir()
    assert len(journal.read_text().splitlines()) == 7
    with journal.open("a") as file:  # killed in the middle of a line, and a damaged one
        file.write('["a", "b", NaN\n["images/r0.png", "images/r0_1.p')
    monkeypatch.undo()
    scored = stop_after(monkeypatch, 1000)
    table = score_table(folder / "pairs.csv", out, **options)
    assert len(scored) == len(expected) - 7
    assert table["q"].tolist() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


def test_scored_rows_are_kept_bad_and_new_ones_scored(folder, model, tmp_path, monkeypatch):
    options = {"model": model, "caps": CAPS_4, "root": folder}
    pairs, out = read_pairs(folder / "pairs.csv").head(4), tmp_path / "scores.parquet"
    late = tmp_path / "late.png"
    pairs.loc[pairs.index[1], "distorted"] = str(late)
    first = score_table(pairs.head(3), out, **options)
    assert first["error"].str.contains("late.png").tolist() == [False, True, False]
    late.write_bytes((folder / "images/r1_2.png").read_bytes())
    scored = stop_after(monkeypatch, 1000)
    second = score_table(pairs, out, **options)
    assert len(scored) == 2
    assert (second["error"] == "").all()
    assert second["q"].tolist()[:3:2] == first["q"].tolist()[::2]
    pd.testing.assert_frame_equal(read_scores(out), second.reset_index(drop=True), check_dtype=False)
    assert len(scored) == 2
    assert score_table(pairs, out, **options)["q"].tolist() == second["q"].tolist()  # nothing left to do
    assert len(scored) == 2


def test_other_settings_are_refused_and_say_which(folder, model, tmp_path, monkeypatch):
    out = tmp_path / "scores.csv"
    options = {"model": model, "caps": CAPS_4, "root": folder}
    pairs = read_pairs(folder / "pairs.csv").head(3)
    stop_after(monkeypatch, 1)
    with pytest.raises(Stopped):
        score_table(pairs, out, **options)
    with pytest.raises(ValueError, match=r"scores\.csv\.parts: was begun with other settings"):
        score_table(pairs, out, **(options | {"seed": 1}))
    monkeypatch.undo()
    score_table(pairs, out, **options)
    before = out.read_bytes()
    other = VTAMIQ(TINY)
    for change, message in (
        ({"seed": 1}, "seed 0 instead of 1"),
        ({"model": other}, f"weights {fingerprint(model)} instead of {fingerprint(other)}"),
        ({"caps": CAPS(num_patches=4, centre=1)}, "sampling, precision, background or root"),
        ({"background": (0, 0, 0)}, "sampling, precision, background or root"),
        ({"precision": "bfloat16"}, "sampling, precision, background or root"),
        ({"root": tmp_path}, "sampling, precision, background or root"),  # other images by the same names
    ):
        with pytest.raises(ValueError, match=f"made with other settings .*{message}"):
            score_table(pairs, out, **(options | change))
    with pytest.raises(ValueError, match="has 1 rows that are not among the pairs"):
        score_table(pairs.head(2), out, **options)
    assert out.read_bytes() == before


def test_scores_by_another_rule_of_drawing_are_not_resumed(folder, model, tmp_path, monkeypatch):
    options = {"model": model, "caps": CAPS_4, "root": folder}
    pairs, out = read_pairs(folder / "pairs.csv").head(3), tmp_path / "scores.csv"
    monkeypatch.setattr(batch, "COMPUTES", 1)
    score_table(pairs, out, **options)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="made with other settings"):
        score_table(pairs, out, **options)


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "x,y\n1,2\n"), ("a.json", "{"), ("a.parquet", "no"), ("a.csv", "")]
)
def test_a_file_that_is_no_table_of_scores_is_not_overwritten(folder, model, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}: is no table of scores"):
        score_table(folder / "pairs.csv", tmp_path / name, model=model)
    assert (tmp_path / name).read_text() == content


@pytest.mark.parametrize(
    ("out", "column", "reason"),
    [
        ("file/a.csv", [1, 2], "(File exists|Not a directory)"),
        ("a.csv/b.json", [1, 2], "(File exists|Not a directory)"),
        ("new/a.json", [1, Path("x")], "Path is not JSON serializable"),
        ("new/a.parquet", [1, Path("x")], "Path"),
    ],
)
def test_a_table_that_cannot_be_written_is_refused_before_anything_is_scored(
    folder, model, tmp_path, monkeypatch, out, column, reason
):
    (tmp_path / "file").touch()
    (tmp_path / "a.csv").touch()
    monkeypatch.setattr(batch, "_score_items", lambda *_: pytest.fail("scored"))
    pairs = read_pairs(folder / "pairs.csv").head(2).assign(more=column)
    with pytest.raises(ValueError, match=rf"{out}: cannot be written \(.*{reason}"):
        score_table(pairs, tmp_path / out, model=model, root=folder)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == [tmp_path / "a.csv", tmp_path / "file"]


def test_a_folder_that_is_not_there_is_made_for_the_table(folder, model, tmp_path):
    pairs = read_pairs(folder / "pairs.csv").head(1)
    score_table(pairs, tmp_path / "new" / "deep" / "a.csv", model=model, caps=CAPS_4, root=folder)
    assert [path.name for path in (tmp_path / "new" / "deep").iterdir()] == ["a.csv"]


@pytest.mark.parametrize("finished", [True, False])
def test_rows_of_changed_images_are_scored_again(folder, model, tmp_path, monkeypatch, caplog, finished):
    shutil.copytree(folder / "images", tmp_path / "images")
    pairs, out = read_pairs(folder / "pairs.csv").head(5), tmp_path / "scores.csv"
    options = {"model": model, "caps": CAPS_4, "root": tmp_path}
    first = score_table(pairs, **options)["q"].tolist()
    if not finished:
        stop_after(monkeypatch, 3)
        with pytest.raises(Stopped):
            score_table(pairs, out, **options)
        monkeypatch.undo()
    else:
        score_table(pairs, out, **options)
    changed = tmp_path / Store(None, {}, pairs, tmp_path).pending[0][1]
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    scored = stop_after(monkeypatch, 1000)
    with caplog.at_level("INFO", "vtamiq"):
        second = score_table(pairs, out, **options)["q"].tolist()
    assert len(scored) == (1 if finished else 3)
    assert "scores.csv: 1 pairs whose images have changed are scored again" in caplog.text
    assert second == score_table(pairs, **options)["q"].tolist()
    assert sum(a != b for a, b in zip(first, second, strict=True)) == 1
    changed.write_bytes(b"damaged meanwhile")
    third = score_table(pairs, out, **options)
    assert third["error"].str.contains("cannot read").sum() == 1 == third["q"].isna().sum()
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    assert score_table(pairs, out, **options)["q"].notna().sum() == 4  # what is gone has not changed


@pytest.mark.parametrize("q", ["NaN", "1e400", "true", '"0.5"', "null", "[" * 100_000, "1" * 5000])
def test_what_is_no_score_in_a_journal_is_scored(folder, model, expected, tmp_path, monkeypatch, q):
    out, options = tmp_path / "scores.csv", {"model": model, "caps": CAPS_4}
    stop_after(monkeypatch, 3)
    with pytest.raises(Stopped):
        score_table(folder / "pairs.csv", out, **options)
    monkeypatch.undo()
    (journal,) = (tmp_path / "scores.csv.parts").iterdir()
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    bad = [f'[{json.dumps(r)}, {json.dumps(d)}, {q}, null, "", {json.dumps(state)}]\n' for r, d, *_, state in lines]
    journal.write_text("".join(bad))
    assert score_table(folder / "pairs.csv", out, **options)["q"].tolist() == expected


@pytest.mark.parametrize("q", ["NaN", "1e400", "true", '"0.5"', "null"])
def test_what_is_no_score_in_a_finished_table_is_scored(folder, model, expected, tmp_path, q):
    out, options = tmp_path / "scores.json", {"model": model, "caps": CAPS_4}
    score_table(folder / "pairs.csv", out, **options)
    text = out.read_text()
    out.write_text(text.replace(f'"q": {json.loads(text)[4]["q"]!r}', f'"q": {q}'))
    assert score_table(folder / "pairs.csv", out, **options)["q"].tolist() == expected
    out.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is no table of scores"):
        score_table(folder / "pairs.csv", out, **options)


@pytest.mark.skipif(sys.platform != "linux", reason="names are text there")
def test_a_folder_whose_name_is_not_utf_8_is_no_end(folder, model, tmp_path):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(folder / "images", root / "images")
    pairs = read_pairs(folder / "pairs.csv").head(3)
    pairs.loc[pairs.index[1], "distorted"] = "missing.png"
    for out in (tmp_path / "scores.csv", tmp_path / "scores.json", root / "scores.parquet"):
        table = score_table(pairs, out, root=root, model=model, caps=CAPS_4)
        assert table["q"].notna().tolist() == [True, False, True]
        assert "caf\\udce9/missing.png: no such file" in table["error"].iloc[1]
        assert read_scores(out)["error"].tolist() == table["error"].tolist()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_pipes_and_devices_are_refused_at_once(folder, model, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    pairs = pd.DataFrame(
        {"reference": [folder / "images/r0.png"] * 2, "distorted": [tmp_path / "pipe.png", "/dev/zero"]}
    )
    table = score_table(pairs, model=model, caps=CAPS_4)
    assert table["error"].str.endswith(": it is no regular file").all()
    with pytest.raises(ImageError, match="it is no regular file"):
        score(tmp_path / "pipe.png", folder / "images/r0.png", model=model)
    for name in ("pipe.csv", "pipe.parquet", "out.json"):
        os.mkfifo(tmp_path / name)
    for path in ("pipe.csv", "pipe.parquet"):
        with pytest.raises(ValueError, match="no regular file"):
            score_table(tmp_path / path, model=model)
    with pytest.raises(ValueError, match="no regular file"):
        score_table(pairs, tmp_path / "out.json", model=model)


# ------------------------------------------------------------------------------------------------------ several processes


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_at_the_same_time_merge_once(folder, model, expected, tmp_path, monkeypatch, world_size):
    """As threads, over and over, so that they finish in every order: one complete table, and nothing left beside it."""
    monkeypatch.setattr(batch, "SHARD", 3)
    options = {"model": model, "caps": CAPS_4, "world_size": world_size}
    for attempt in range(6):
        out = tmp_path / str(attempt) / "scores.csv"
        with ThreadPoolExecutor(world_size) as pool:
            jobs = [
                pool.submit(score_table, folder / "pairs.csv", out, rank=rank, **options) for rank in range(world_size)
            ]
        tables = [job.result() for job in jobs if job.result() is not None]
        assert tables
        assert all(table["q"].tolist() == expected for table in tables)
        assert read_scores(out)["q"].tolist() == expected
        assert [path.name for path in out.parent.iterdir()] == ["scores.csv"]


def test_shares_are_disjoint_and_the_last_one_merges(folder, model, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "SHARD", 3)
    options = {"model": model, "caps": CAPS_4}
    out = tmp_path / "scores.csv"
    assert score_table(folder / "pairs.csv", out, rank=1, world_size=3, **options) is None
    assert score_table(folder / "pairs.csv", out, rank=0, world_size=3, **options) is None
    assert not out.exists()
    scored = stop_after(monkeypatch, 1000)
    assert score_table(folder / "pairs.csv", out, rank=2, world_size=3, **options)["q"].tolist() == expected
    assert len(scored) == 6  # of 20 rows in blocks of three: blocks 2 and 5


def test_a_rank_that_comes_back_after_the_merge_finds_the_table(folder, model, expected, tmp_path, monkeypatch):
    """It had read what there was before the others merged, so it scores its rows again, and harms nothing."""
    monkeypatch.setattr(batch, "SHARD", 3)
    options = {"model": model, "caps": CAPS_4}
    out = tmp_path / "scores.csv"
    settings = batch.Settings(
        fingerprint(model), batch.caps_for(model, CAPS_4), 1, 0, "float32", (255, 255, 255), str(folder)
    )
    late = Store(out, settings.columns(), read_pairs(folder / "pairs.csv"), folder)
    for rank in range(2):
        score_table(folder / "pairs.csv", out, rank=rank, world_size=2, **options)
    with late:
        late.add({late.pending[0]: Result(expected[0], None)})
        table = late.finish()
    assert sorted(table["q"]) == sorted(read_scores(out)["q"])
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


def start(folder, model_folder, out, rank=0, world_size=1):
    command = [sys.executable, "-m", "vtamiq", "score", "--pairs", str(folder), "--out", str(out), "--workers", "0"]
    environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--model", str(model_folder), "--patches", "4"], env=environment, cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def any_row(parts):
    """Whether a journal has a row yet: it is there before its first one."""
    return any(path.stat().st_size for path in parts.glob("*.jsonl"))


def test_two_processes_one_killed_then_gone_on_with(folder, model, model_folder, tmp_path):
    """Rank 1 is killed for good while it scores; rank 0 ends well without a table; one process does what is left."""
    pairs = pd.concat([pd.read_csv(folder / "pairs.csv")] * 15, ignore_index=True)
    for name in ("reference", "distorted"):  # other spellings of the same paths: 300 rows to tell apart
        pairs[name] = [f"{folder}/{'./' * (k // 20)}{path}" for k, path in enumerate(pairs[name])]
    pairs.to_csv(tmp_path / "pairs.csv", index=False)
    out, parts = tmp_path / "scores.csv", tmp_path / "scores.csv.parts"
    killed = start(tmp_path / "pairs.csv", model_folder, out, 1, 2)
    try:
        limit = time.monotonic() + 120
        while not any_row(parts):
            assert killed.poll() is None, killed.communicate()
            assert time.monotonic() < limit
            time.sleep(0.005)
    finally:
        killed.kill()
        killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    recorded = sum(text.count("\n") for text in (path.read_text() for path in parts.iterdir()))
    assert 0 < recorded < 128
    other = start(tmp_path / "pairs.csv", model_folder, out, 0, 2)
    said, errors = other.communicate(timeout=240)
    assert other.returncode == 0, errors
    assert "process 0 of 2 is done, rows of others are still to come" in said
    assert not out.exists()
    table = score_table(tmp_path / "pairs.csv", out, model=model, caps=CAPS_4)
    assert len(table) == 300
    assert table["q"].tolist() == score_table(tmp_path / "pairs.csv", model=model, caps=CAPS_4)["q"].tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.csv", "scores.csv"]


def test_two_processes_side_by_side(folder, model, model_folder, expected, tmp_path):
    out = tmp_path / "scores.json"
    processes = [start(folder / "pairs.csv", model_folder, out, rank, 2) for rank in range(2)]
    said = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert any("20 of 20 pairs scored" in text for text, _ in said)
    assert read_scores(out)["q"].tolist() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


# ------------------------------------------------------------------------------------------------------------- folders


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(folder / name)


def test_folders_are_paired_by_name(tmp_path):
    make(tmp_path, "ref/a.png", "ref/b_1.png", "ref/sub/C.bmp")
    make(
        tmp_path,
        "dist/a.jpg",
        "dist/jpeg/A_05.jpg",
        "dist/b_1.png",
        "dist/b_1_2.png",
        "dist/c_x_y.png",
        "dist/nobody_1.png",
    )
    (tmp_path / "dist" / "notes.txt").write_text("no image")
    table = pair_folders(tmp_path / "ref", tmp_path / "dist")
    found = {Path(d).name: Path(r).name for r, d in table.itertuples(index=False)}
    assert found == {
        "a.jpg": "a.png", "A_05.jpg": "a.png", "b_1.png": "b_1.png", "b_1_2.png": "b_1.png", "c_x_y.png": "C.bmp",
        "nobody_1.png": "", "notes.txt": "",
    }  # fmt: skip
    assert table["distorted"].tolist() == sorted(table["distorted"])


@pytest.mark.parametrize(
    ("references", "distorted"),
    [(["a.png", "a.bmp"], "a_1.png"), (["a.png", "a_1.png"], "a_1_2.png"), (["x/a.png", "y/A.png"], "a.png")],
)
def test_ambiguous_names_are_an_error_by_name(tmp_path, references, distorted):
    make(tmp_path / "ref", *references)
    make(tmp_path / "dist", distorted)
    with pytest.raises(ValueError, match=f"{distorted}: its reference may be .* or "):
        pair_folders(tmp_path / "ref", tmp_path / "dist")


@pytest.mark.parametrize(
    ("references", "distorted", "expected"),
    [
        (["scene1/0001.png", "scene2/0001.png"], "scene2/0001.png", "scene2/0001.png"),
        (["scene1/0001.png", "scene2/0001.png"], "jpeg/Scene1/q10/0001_10.jpg", "scene1/0001.png"),
        (["0001.png", "scene1/0001.png"], "scene1/0001.png", "scene1/0001.png"),
        (["0001.png", "scene1/0001.png"], "scene3/0001.png", "0001.png"),
        (["a/x/1.png", "b/x/1.png", "x/1.png"], "b/x/1_2.png", "b/x/1.png"),
        (["s1/a.png", "s2/a_1.png"], "s1/a_1.png", "s1/a.png"),
        (["full/s1/1.png", "full/s2/1.png"], "s2/1.png", "full/s2/1.png"),
        (["caf\u00e9.png"], "cafe\u0301_10.png", "caf\u00e9.png"),
        (["E\u0301t\u00e9/a.png", "b/a.png"], "\u00e9te\u0301/a.png", "E\u0301t\u00e9/a.png"),
        (["a.png", "a.txt"], "a_1.png", "a.png"),
    ],
)
def test_the_folders_and_the_name_decide(tmp_path, references, distorted, expected):
    make(tmp_path / "dist", distorted)
    for name in references:
        (tmp_path / "ref" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ref" / name).touch()
    assert pair_folders(tmp_path / "ref", tmp_path / "dist")["reference"].tolist() == [str(tmp_path / "ref" / expected)]


def test_one_folder_in_the_other(tmp_path):
    make(tmp_path, "a.png", "s/b.png", "out/a_1.png", "out/s/b.jpg", "more/a.png")
    (tmp_path / "more").rename(tmp_path / "s" / "more")
    table = pair_folders(tmp_path, tmp_path / "out")
    names = [tuple(str(Path(path).relative_to(tmp_path)) for path in row) for row in table.itertuples(index=False)]
    assert names == [("a.png", "out/a_1.png"), ("s/b.png", "out/s/b.jpg")]
    (tmp_path / "out" / "copy.png").symlink_to(tmp_path / "a.png")
    assert len(pair_folders(tmp_path, tmp_path / "out")) == 3


def test_every_file_is_a_row(tmp_path, model, folder):
    make(tmp_path, "ref/a.png", "dist/a.png")
    for name in ("a.mpo", "a.jxl", "a.heic", "a.hdr", "a.exr", "a", "b.png", ".hidden.png"):
        (tmp_path / "dist" / name).write_bytes(b"no image")
    (tmp_path / "dist" / "a_gone.png").symlink_to(tmp_path / "nowhere.png")
    table = score_table(pair_folders(tmp_path / "ref", tmp_path / "dist"), model=model, caps=CAPS_4)
    errors = dict(zip((Path(path).name for path in table["distorted"]), table["error"], strict=True))
    assert sorted(errors) == ["a", "a.exr", "a.hdr", "a.heic", "a.jxl", "a.mpo", "a.png", "a_gone.png", "b.png"]
    assert [name for name, error in errors.items() if not error] == ["a.png"]
    assert "no reference" in errors["b.png"]
    assert "no such file" in errors["a_gone.png"]


def test_an_exact_name_comes_first(tmp_path):
    make(tmp_path, "ref/a.png", "ref/a_1.png", "dist/a_1.png")
    assert Path(pair_folders(tmp_path / "ref", tmp_path / "dist")["reference"][0]).name == "a_1.png"


def test_what_macos_leaves_beside_images_is_no_image(tmp_path):
    make(tmp_path, "ref/a.png", "dist/a_1.png")
    for name in ("ref/._a.png", "dist/._a_1.png", "dist/.trash/a_2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"clutter")
    hidden = tmp_path / ".hidden"  # only what is below the folders is meant
    hidden.mkdir()
    for folder in ("ref", "dist"):
        (tmp_path / folder).rename(hidden / folder)
    table = pair_folders(hidden / "ref", hidden / "dist")
    assert table.to_numpy().tolist() == [[str(hidden / "ref/a.png"), str(hidden / "dist/a_1.png")]]


@pytest.mark.skipif(sys.platform != "linux", reason="names are text there")
@pytest.mark.parametrize("where", ["ref", "dist"])
def test_a_name_that_no_table_can_keep_is_refused_before_anything_is_scored(tmp_path, model, where):
    make(tmp_path, "ref/a.png", "dist/a_1.png")
    odd = tmp_path / where / os.fsdecode(b"a_caf\xe9.png")
    shutil.copy(tmp_path / "ref/a.png", odd)
    message = r"a_caf\\udce9\.png': a name that is not UTF-8 cannot be kept in tables; rename that file"
    with pytest.raises(ValueError, match=message):
        pair_folders(tmp_path / "ref", tmp_path / "dist")
    pairs = pd.DataFrame({"reference": ["a"], "distorted": [odd]})
    with pytest.raises(ValueError, match=message):
        score_table(pairs, model=model)


def test_folders_without_images(tmp_path):
    make(tmp_path, "ref/a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: there are no images"):
        pair_folders(tmp_path / "ref", tmp_path / "empty")
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        pair_folders(tmp_path / "nowhere", tmp_path / "ref")


# ----------------------------------------------------------------------------------------------------------- bad input


def test_tables_are_read_as_people_write_them(folder, model, tmp_path):
    rows = [
        r"images\r0.png,images\r0_1.png,",
        'images/r0.png,images/r0_2.png,"two',
        'lines"',
        "images/r1.png,images/r1_1.png,",
    ]
    text = "\r".join(["Reference,Distorted,", *rows[:1]])
    (tmp_path / "PAIRS.CSV").write_text(text)
    table = score_table(tmp_path / "PAIRS.CSV", tmp_path / "scores.csv", root=folder, model=model, caps=CAPS_4)
    assert (table["error"] == "").all()
    assert read_scores(tmp_path / "scores.csv")["distorted"].tolist() == ["images/r0_1.png"]
    (tmp_path / "b.csv").write_text("\r".join(["Reference,DIST_PATH,note,", *rows]))
    table = score_table(tmp_path / "b.csv", root=folder, model=model, caps=CAPS_4)
    assert table["distorted"].tolist() == ["images/r0_1.png", "images/r0_2.png", "images/r1_1.png"]
    assert table["note"].tolist()[1] == "two\nlines"


@pytest.mark.parametrize("pairs", [{}, [], 3, {"reference": ["a"]}, [("a", "b")]])
def test_what_is_no_table_says_what_one_is(model, pairs):
    with pytest.raises(ValueError, match=r"the table of pairs: (needs one column `|give a DataFrame)"):
        score_table(pairs, model=model)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"x,distorted\na,b\n", "a.csv:1: no column reference"),
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"reference,distorted\n", "no rows below its header"),
        ("a.csv", b"reference,distorted,q\na,b,1\n", "column `q`, which is one of the result"),
        ("a.csv", b"reference,distorted,n,n\na,b,1,2\n", "more than one column n"),
        ("a.csv", b"reference,distorted\n\xff\xfe,b\n", "a.csv:2: not UTF-8"),
        ("a.parquet", b"no", "cannot be read as parquet"),
        ("a.txt", b"reference,distorted\na,b\n", r"read from \.csv or \.parquet"),
    ],
)
def test_bad_tables(tmp_path, model, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        score_table(tmp_path / name, model=model)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"repeats": 0}, ValueError, "repeats must be an integer, at least 1, got 0"),
        ({"batch_size": 1.5}, ValueError, "batch_size"),
        ({"workers": -1}, ValueError, "workers"),
        ({"rank": 2, "world_size": 2, "out": "s.csv"}, ValueError, "rank must be below world_size=2"),
        ({"world_size": 2}, ValueError, "several processes need out"),
        ({"precision": "half"}, ValueError, "precision must be one of float32, float16, bfloat16, got 'half'"),
        ({"out": "scores.xlsx"}, ValueError, r"written as \.csv"),
        ({"model": "folder"}, TypeError, "from_pretrained"),
        ({"pairs": pd.DataFrame({"reference": [1], "distorted": ["b"]})}, ValueError, "must hold paths, got 1"),
        ({"pairs": "nowhere.csv"}, FileNotFoundError, "nowhere"),
    ],
)
def test_bad_arguments(model, arguments, error, message):
    given = {"pairs": pd.DataFrame({"reference": ["a"], "distorted": ["b"]}), "model": model} | arguments
    with pytest.raises(error, match=message):
        score_table(**given)


# ------------------------------------------------------------------------------------------------------------- the shell


@pytest.fixture
def quiet_logging(monkeypatch):
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)


@pytest.mark.usefixtures("quiet_logging")
class TestShell:
    def test_a_thousand_pairs_with_three_corrupt_ones(self, model_folder, tmp_path, capsys):
        """Interrupted by SIGTERM on the way; the same command goes on, says what is wrong, and ends with status 1."""
        rng = np.random.default_rng(0)
        make(tmp_path, "ref/0.png")
        for r in range(10):
            image = rng.integers(0, 256, (18, 20, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / f"ref/{r}.png")
            (tmp_path / "dist").mkdir(exist_ok=True)
            for k in range(100):
                Image.fromarray(np.roll(image, k + 1, axis=1)).save(tmp_path / f"dist/{r}_{k}.png")
        corrupt = {"0_5.png": b"", "4_50.png": b"no image", "9_99.png": (tmp_path / "dist/9_99.png").read_bytes()[:60]}
        for name, content in corrupt.items():
            (tmp_path / "dist" / name).write_bytes(content)
        out = tmp_path / "scores.parquet"
        command = ["score", "--ref-dir", str(tmp_path / "ref"), "--dist-dir", str(tmp_path / "dist"), "--out", str(out)]
        command += ["--model", str(model_folder), "--patches", "4", "--workers", "0", "--batch-size", "50"]
        parts = tmp_path / "scores.parquet.parts"
        threading.Thread(target=terminate_when, args=(lambda: any_row(parts),), daemon=True).start()
        assert main(command) == 143
        assert "to go on: " in capsys.readouterr().err
        done = sum(path.read_text().count("\n") for path in parts.iterdir())
        assert 0 < done < 1000
        assert main(command) == 1
        said = capsys.readouterr()
        assert said.out == f"{out}: 997 of 1000 pairs scored\n"
        assert [name in line for name, line in zip(sorted(corrupt), said.err.splitlines(), strict=True)] == [True] * 3
        table = pd.read_parquet(out)
        assert len(table) == 1000
        assert table["distorted"].is_unique
        assert table["q"].notna().sum() == 997
        assert {Path(path).name for path in table.loc[table["error"] != "", "distorted"]} == set(corrupt)
        for name in corrupt:
            (tmp_path / "dist" / name).write_bytes((tmp_path / "dist/1_1.png").read_bytes())
        assert main(command) == 0
        assert pd.read_parquet(out)["q"].notna().all()

    def test_prints_csv_or_json_without_out(self, folder, model_folder, expected, capsys):
        command = ["score", "--pairs", str(folder / "pairs.csv"), "--model", str(model_folder), "--patches", "4"]
        command += ["--workers", "0", "--device", "cpu"]
        assert main(command) == 0
        said = capsys.readouterr()
        assert [float(row["q"]) for row in csv.DictReader(said.out.splitlines())] == expected
        assert said.err == "20 of 20 pairs scored\n"
        assert main([*command, "--json"]) == 0
        assert [row["q"] for row in json.loads(capsys.readouterr().out)] == expected

    def test_bad_rows_are_named_with_their_line(self, folder, model_folder, tmp_path, capsys):
        lines = [
            "reference,distorted",
            *("images/r0.png,missing.png" for _ in range(1)),
            "images/r0.png,images/r0_1.png",
        ]
        lines += [f"images/r0.png,none{k}.png" for k in range(25)]
        (tmp_path / "pairs.csv").write_text("\n".join(lines))
        command = ["score", "--pairs", str(tmp_path / "pairs.csv"), "--root", str(folder), "--model", str(model_folder)]
        assert main([*command, "--workers", "0", "--device", "cpu"]) == 1
        errors = capsys.readouterr().err.splitlines()
        missing = f"cannot read {folder / 'missing.png'}: no such file"
        assert errors[0] == f"vtamiq: {tmp_path / 'pairs.csv'}, line 2: {missing}"
        assert errors[20:] == ["vtamiq: … and 6 more bad rows, see the column `error`", "1 of 27 pairs scored"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ([], "give either REF and DIST, or --pairs, or --ref-dir and --dist-dir"),
            (["a.png", "b.png", "--pairs", "p.csv"], "give either"),
            (["--ref-dir", "a"], "--ref-dir and --dist-dir go together"),
            (["a.png", "b.png", "--out", "s.csv"], "--out is for tables of pairs"),
            (["a.png", "b.png", "--workers", "0"], "--workers is for tables"),
            (["--ref-dir", "a", "--dist-dir", "b", "--root", "c"], "--root is for --pairs"),
            (["--pairs", "p.csv", "--out", "s.csv", "--json"], "ends in .json"),
        ],
    )
    def test_options_that_do_not_go_together(self, options, message, capsys):
        with pytest.raises(SystemExit) as end:
            main(["score", *options])
        assert end.value.code == 2
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--device", "nonsense"], "there is no device 'nonsense' here"),
            (["--precision", "half"], "precision must be one of"),
            (["--pairs", "nowhere.csv"], "nowhere.csv: No such file"),
            (["--out", "scores.xlsx"], "written as .csv"),
        ],
    )
    def test_refusals_are_one_line(self, folder, model_folder, options, message, capsys, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        command = [
            "score",
            "--pairs",
            str(folder / "pairs.csv"),
            "--model",
            str(model_folder),
            "--workers",
            "0",
            *options,
        ]
        assert main(command) == 2
        errors = capsys.readouterr().err
        assert errors.startswith("vtamiq: ")
        assert errors.count("\n") == 1
        assert message in errors

    def test_names_cannot_command_the_terminal(self, model_folder, tmp_path, capsys):
        make(tmp_path, "ref/a.png", "dist/a.png")
        evil = "a_\x1b[31m\r9 of 9 pairs scored\n\x9bvtamiq: fine.png"
        (tmp_path / "dist" / evil).write_bytes(b"no image")
        shutil.copy(tmp_path / "dist/a.png", tmp_path / "dist" / f"{evil}.png")
        command = ["score", "--ref-dir", str(tmp_path / "ref"), "--dist-dir", str(tmp_path / "dist"), "--workers", "0"]
        command += ["--model", str(model_folder), "--patches", "4"]
        for more in ([], ["--out", str(tmp_path / "\x1bscores.csv")]):
            assert main(command + more) == 1
            said = capsys.readouterr()
            for text in (said.out, said.err):
                assert all(letter.isprintable() for letter in text.replace("\n", ""))
            assert [line for line in said.err.splitlines() if line.startswith("vtamiq")] == said.err.splitlines()[:1]
            assert "a_\\x1b[31m\\r9 of 9" in said.err
        assert f"{tmp_path}/dist/{evil}.png" in pd.read_csv(tmp_path / "\x1bscores.csv")["distorted"].tolist()
        assert main(["score", str(tmp_path / "ref/a.png"), str(tmp_path / "dist" / evil)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        with pytest.raises(SystemExit):
            main(["score", "a.png", "b.png", evil])
        assert "\x1b" not in capsys.readouterr().err

    def test_the_background_is_an_option(self, model_folder, tmp_path, capsys):
        Image.new("LA", (20, 20), (255, 0)).save(tmp_path / "a.png")
        Image.new("LA", (20, 20), (90, 0)).save(tmp_path / "b.png")
        pair = [str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--model", str(model_folder), "--json"]
        for text, value in (("checker", "checker"), ("1,2,3", [1, 2, 3])):
            assert main(["score", *pair, "--background", text]) == 0
            found = json.loads(capsys.readouterr().out)
            assert (found["q"], found["background"]) == (0, value)
        assert main(["score", *pair, "--background", "1,2,300"]) == 2
        assert "background must be three integers" in capsys.readouterr().err

    def test_warnings_of_libraries_are_not_shown(self, model_folder, tmp_path, capsys, monkeypatch):
        make(tmp_path, "a.png")

        def warns(*_):
            warnings.warn("of a library", stacklevel=2)
            logging.getLogger("a.library").warning("of another")
            return 1

        monkeypatch.setattr("vtamiq.__main__._report", warns)
        pairs = tmp_path / "pairs.csv"
        pairs.write_text("reference,distorted\na.png,a.png")
        with warnings.catch_warnings(record=True) as shown:
            assert main(["score", "--pairs", str(pairs), "--workers", "0", "--model", str(model_folder)]) == 1
        assert not shown

    def test_several_processes_need_a_file(self, folder, model_folder, monkeypatch, capsys):
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(SystemExit):
            main(["score", "--pairs", str(folder / "pairs.csv"), "--model", str(model_folder)])
        assert "several processes need --out" in capsys.readouterr().err

    def test_processes_share_the_cores_of_a_machine(self, monkeypatch):
        monkeypatch.setattr("vtamiq.utils.processes.count_workers", lambda _: 16)
        assert _spare_cores() == 15
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
        assert _spare_cores() == 3
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
        assert _spare_cores() == 1


def terminate_when(true):
    while not true():
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGTERM)
