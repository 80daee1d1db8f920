"""Damaged run folders are refused with the name of the file and what to do, and can be mended that way."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.small import TINY, small_database
from vtamiq.caps import CAPS
from vtamiq.model.checkpoints import CheckpointError
from vtamiq.model.network import VTAMIQ
from vtamiq.training.run import Run, train
from vtamiq.training.stage import Stage

STAGE = Stage(name="damage", caps=CAPS(num_patches=6), test_patches=6, num_draws=1, epochs=1, batch_size=8)
OLD = Path(__file__).parents[1] / "data" / "905340d" / "run"  # without digests
FILES = (
    "run.json",
    "result.json",
    "history.csv",
    "predictions.parquet",
    "model/config.json",
    "model/model.safetensors",
)


def fresh():
    torch.manual_seed(11)
    return VTAMIQ(TINY)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return small_database(tmp_path_factory.mktemp("pairs"), references=10).split(seed=1)


@pytest.fixture(scope="module")
def finished(parts, tmp_path_factory):
    options = {"out": tmp_path_factory.mktemp("run") / "r", "progress": False, "score_start": True}
    return train(fresh(), STAGE, *parts, **options)


@pytest.fixture
def folder(finished, tmp_path):
    return Path(shutil.copytree(finished.folder, tmp_path / "r"))


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


DAMAGES = {
    "cut off": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "flipped": lambda content: flip(content, len(content) // 2),
    "flipped at the end": lambda content: flip(content, len(content) - 2),
    "zeros": lambda content: bytes(len(content)),
    "no text": lambda content: b"\xff\xfe" + content,
    "other": lambda content: b"[1, 2]",
    "nothing in it": lambda content: b"{}",
    "deep": lambda content: 100_000 * b'{"a":',
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_what_is_damaged_is_named(folder, parts, name, damage):
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(DAMAGES[damage](content))
    if name == "result.json" and damage.startswith("flipped"):
        path.write_bytes(content.replace(b'"epochs"', b'"epoch3"'))
    for use in (lambda: Run.load(folder), lambda: train(fresh(), STAGE, *parts, out=folder, progress=False)):
        with pytest.raises(ValueError, match=rf"{name} is damaged.*(remove|another run)"):
            use()


@pytest.mark.parametrize(
    "result", ["{}", "[]", "NaN", "finished", '{"best_epoch": 0, "val_srocc": NaN, "epochs": 1, "seconds": 1}',
               '{"best_epoch": 0, "val_srocc": 1e400, "epochs": 1, "seconds": 1}',
               '{"best_epoch": true, "val_srocc": 0.5, "epochs": 1, "seconds": 1}',
               '{"best_epoch": 0, "val_srocc": 0.5, "epochs": 1, "seconds": 1, "files": ["run.json"]}',
               '{"best_epoch": 0, "val_srocc": "high", "epochs": 1, "seconds": 1}']
)  # fmt: skip
def test_a_result_must_be_one(folder, parts, result):
    (folder / "result.json").write_text(result)
    with pytest.raises(ValueError, match=r"result.json is damaged .*; remove it and run again"):
        train(fresh(), STAGE, *parts, out=folder, progress=False)


@pytest.mark.parametrize("name", ["history.csv", "predictions.parquet", "model/model.safetensors", "model/config.json"])
def test_a_run_is_mended_as_the_message_says(folder, finished, parts, name):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:40])
    (folder / "result.json").unlink()
    run = train(fresh(), STAGE, *parts, out=folder, progress=False)
    assert (folder / name).read_bytes() == whole
    assert run.digest == finished.digest


@pytest.mark.parametrize("name", ["run.json", "result.json", "history.csv", "predictions.parquet"])
@pytest.mark.parametrize("damage", ["cut off", "empty", "zeros", "no text", "other", "nothing in it", "deep"])
def test_folders_without_digests_are_read_with_care(tmp_path, name, damage):
    folder = Path(shutil.copytree(OLD, tmp_path / "r"))
    if (name, damage) == ("history.csv", "cut off"):
        pytest.skip("this is a history as well")
    (folder / name).write_bytes(DAMAGES[damage]((folder / name).read_bytes()))
    with pytest.raises(ValueError, match=f"{name} is damaged .*remove"):
        Run.load(folder)


def test_weights_that_were_exchanged_are_refused(folder):
    """They load, and score: but they are not those of the run."""
    other = fresh()
    other.save_pretrained(folder / "model")
    with pytest.raises(
        ValueError, match=r"model/(config.json|model.safetensors) is damaged: it is not what the run left"
    ):
        Run.load(folder)


def test_a_damaged_table_of_the_start_is_named(folder):
    run = Run.load(folder)
    assert len(run.start_predictions()) == 8
    (folder / "start_predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"start_predictions.parquet is damaged .*; remove it and run again"):
        run.start_predictions()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"width": NaN}', "[]", '{"width": 1e999}'])
def test_a_damaged_configuration_is_a_checkpoint_error(folder, text):
    (folder / "model" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.json"):
        VTAMIQ.from_pretrained(folder / "model")


def test_deep_yaml_is_refused(tmp_path):
    path = tmp_path / "stage.yaml"
    path.write_text("[" * 5000)
    with pytest.raises(ValueError, match=r"stage.yaml.*nested too deeply"):
        Stage.load(path)
    path.write_text("epochs: [1")
    with pytest.raises(ValueError, match=r"stage.yaml"):
        Stage.load(path)
    replace(STAGE, epochs=7).save(path)
    assert Stage.load(path).epochs == 7


def test_results_know_their_files(folder):
    files = json.loads((folder / "result.json").read_text())["files"]
    assert set(FILES) - {"result.json"} <= set(files)
