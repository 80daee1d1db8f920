"""The command `train` where the system makes it hard: signals, locales, and a check that writes nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.small import small_table
from vtamiq.__main__ import main

no_windows = pytest.mark.skipif(sys.platform == "win32", reason="no such signals and locales there")

CHAIN = """
model: {{backbone: vit_tiny_patch16_384, image_size: 64, width: 32, num_heads: 2, num_blocks: 1, num_registers: 1,
  num_groups: 1, blocks_per_group: 1, reduction: 4, zero_anchor: true}}
accelerator: cpu
steps:
  - data: {{database: {table!r}, seed: 3}}
    stage: {{name: one, caps: {{num_patches: 6}}, test_patches: 6, num_draws: 1, epochs: 2, batch_size: 4}}
"""
PLACES = {
    "loading": "vtamiq.training.chain.load_data",
    "checking": "vtamiq.training.chain.check_stage",
    "setting up": "vtamiq.training.module.Fitting.configure_optimizers",
    "training": "vtamiq.training.module.Fitting.training_step",
    "validating": "vtamiq.training.module.Fitting.validation_step",
    "between epochs": "vtamiq.training.module.Fitting.on_validation_epoch_end",
    "writing": "vtamiq.training.callbacks.AtomicCheckpointIO.save_checkpoint",
    "keeping the best": "vtamiq.training.run.pictures_of",
    "scoring": "vtamiq.scoring.predictions.forward",
}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yaml"
    (tmp_path / "data").mkdir()
    path.write_text(CHAIN.format(table=small_table(tmp_path / "data", references=10)))
    return path


@no_windows
@pytest.mark.parametrize("place", PLACES)
def test_sigterm_at_any_moment(file, monkeypatch, capsys, place):
    def ended(*_, **__):
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("went on")

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(PLACES[place], ended)
        assert main(["train", str(file), "--out", "r"]) == 143
    told = capsys.readouterr().err
    assert "stopped; to go on: " in told
    assert " -m vtamiq train " in told
    assert signal.getsignal(signal.SIGTERM) is before
    assert main(["train", str(file), "--out", "r"]) == 0


@no_windows
@pytest.mark.parametrize("options", [["--devices", "2"], ["--runs", "2"], ["--runs", "2", "--workers", "2"]], ids=str)
def test_sigterm_with_several_processes(file, options):
    command = [sys.executable, "-m", "vtamiq", "train", str(file), "--out", "r", "--set", "steps.0.stage.epochs=9999"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=environment) as process:
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until and not list(Path("r").rglob("last.ckpt")):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=60)[1]
    assert process.returncode == 143, told
    assert told.count("stopped; to go on: ") == 1
    assert "Traceback" not in told
    time.sleep(1)
    state = {path: path.stat().st_mtime_ns for path in Path("r").rglob("last.ckpt")}
    time.sleep(2)
    assert state == {path: path.stat().st_mtime_ns for path in Path("r").rglob("last.ckpt")}  # nobody trains any more


@no_windows
@pytest.mark.parametrize("command", [["train", "müde.yaml", "--check"], ["databases", "--data", "Bücher", "--fast"]])
def test_names_are_not_ascii_in_any_locale(tmp_path, command):
    (tmp_path / "Bücher").mkdir()
    table = small_table(tmp_path / "Bücher", references=10)
    (tmp_path / "müde.yaml").write_text(CHAIN.format(table=table), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "vtamiq", *command], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_a_check_writes_nothing(tmp_path, monkeypatch, capsys):
    """Also where a demo database is not in the cache yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VTAMIQ_CACHE", str(tmp_path / "cache"))
    Path("run.yaml").write_text(CHAIN.format(table="demo:photos:preset=smoke").replace("seed: 3", "split: distributed"))
    assert main(["train", "run.yaml", "--check"]) == 0
    assert "photos" in capsys.readouterr().out
    assert main(["train", "run.yaml", "--check", "--runs", "2"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
