"""SIGTERM ends `train` with status 143 and the command to go on with, wherever it comes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.small import small_table
from vtamiq.__main__ import main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")

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


@pytest.mark.parametrize("place", PLACES)
def test_at_any_moment(file, monkeypatch, capsys, place):
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


@pytest.mark.parametrize("options", [["--devices", "2"], ["--runs", "2"], ["--runs", "2", "--workers", "2"]], ids=str)
def test_with_several_processes(file, options):
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
