"""A training that is interrupted anywhere, in any way, ends like one that was not."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch

from tests.small import TINY, small_database, vary
from vtamiq.caps import CAPS
from vtamiq.model import accelerate as fast
from vtamiq.model.accelerate import accelerated
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring import predictions
from vtamiq.training.module import Fitting
from vtamiq.training.run import Run, train
from vtamiq.training.stage import Optimizer, Runtime, ScoreLoss, Stage

ALWAYS = 1e-9  # minutes: a checkpoint after every step
STAGE = Stage(
    name="resume",
    caps=CAPS(num_patches=12),
    test_patches=12,
    num_draws=1,
    epochs=3,
    batch_size=4,
    optimizer=Optimizer(lr=2e-3),
    loss=ScoreLoss(mae_weight=1.0),
    runtime=Runtime(checkpoint_minutes=ALWAYS),
    seed=1,
)


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return small_database(tmp_path_factory.mktemp("pairs"), references=10).split(seed=1)


def fresh():
    torch.manual_seed(11)
    return VTAMIQ(TINY)


VARIANTS = {
    "plain": STAGE,
    "ema": replace(STAGE, ema=0.8),
    "freeze": replace(STAGE, freeze=("encoder",), freeze_epochs=2),
    "workers": vary(STAGE, workers=1),
    "sgd": vary(STAGE, optimizer="sgd", lr=1e-2),
    "muon": vary(STAGE, optimizer="muon", momentum=0.95, distorted_per_reference=2),
}


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    """Runs without an interruption, each made once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = train(fresh(), VARIANTS[name], *parts, out=tmp_path_factory.mktemp(name) / "r", progress=False)
        return made[name]

    return make


def assert_alike(run, other):
    pd.testing.assert_frame_equal(run.history, other.history)
    pd.testing.assert_frame_equal(run.predictions, other.predictions)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


def stopping_at(monkeypatch, *places):
    """Training stops before these (epoch, batch), each once; returns the batches that were trained on."""
    step, left, trained = Fitting.training_step, list(places), []

    def stop(self, batch, index):
        here = (self.current_epoch, index)
        if here in left:
            left.remove(here)
            raise Stop
        trained.append(here)
        return step(self, batch, index)

    monkeypatch.setattr(Fitting, "training_step", stop)
    return trained


@pytest.mark.parametrize("name", VARIANTS)
def test_goes_on_within_an_epoch(whole, parts, tmp_path, monkeypatch, name):
    batches = 24 // VARIANTS[name].batch_size
    trained = stopping_at(monkeypatch, (0, 2), (0, batches - 1), (1, 4), (2, 0))  # the last of an epoch, and the first
    for _ in range(4):
        with pytest.raises(Stop):
            train(fresh(), VARIANTS[name], *parts, out=tmp_path / "r", progress=False)
    run = train(fresh(), VARIANTS[name], *parts, out=tmp_path / "r", progress=False)
    assert len(trained) == len(set(trained))
    monkeypatch.undo()
    assert_alike(run, whole(name))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
def test_goes_on_with_the_products_that_it_began_with(parts, tmp_path, monkeypatch):
    """A timing may say otherwise after an interruption, on a machine that is busy: it is not asked again."""
    stage = replace(STAGE, epochs=2, onednn=True, ema=0.8)
    timed, products = [], []
    monkeypatch.setattr(fast, "_worth_it", lambda *shape: timed.append(shape[:2]) or shape[:2] != (32, 32))
    product = fast._onednn_product
    monkeypatch.setattr(fast, "_onednn_product", lambda *inputs: products.append(1) or product(*inputs))
    undisturbed = train(fresh(), stage, *parts, out=tmp_path / "whole", progress=False)
    assert timed
    assert products
    begun = list(timed)
    stopping_at(monkeypatch, (0, 2), (1, 4))
    for _ in range(2):
        model = fresh()
        with pytest.raises(Stop):
            train(model, stage, *parts, out=tmp_path / "r", progress=False)
        assert not accelerated(model)
        assert all(torch.equal(value, fresh().state_dict()[name]) for name, value in model.state_dict().items())
    run = train(model, stage, *parts, out=tmp_path / "r", progress=False)
    assert timed == 2 * begun
    assert not accelerated(model)
    assert_alike(run, undisturbed)


def test_without_timed_checkpoints_an_epoch_begins_anew(whole, parts, tmp_path, monkeypatch):
    stage = vary(STAGE, checkpoint_minutes=60.0)  # no part of what makes a run the same
    trained = stopping_at(monkeypatch, (1, 3))
    with pytest.raises(Stop):
        train(fresh(), stage, *parts, out=tmp_path / "r", progress=False)
    run = train(fresh(), stage, *parts, out=tmp_path / "r", progress=False)
    assert trained.count((1, 0)) == trained.count((1, 2)) == 2
    assert trained.count((1, 3)) == trained.count((0, 5)) == 1
    monkeypatch.undo()
    assert_alike(run, whole("plain"))


@pytest.mark.parametrize("damage", ["truncated", "empty", "other"])
def test_a_damaged_last_checkpoint_falls_back_loudly(whole, parts, tmp_path, monkeypatch, caplog, damage):
    stopping_at(monkeypatch, (1, 3))
    with pytest.raises(Stop):
        train(fresh(), STAGE, *parts, out=tmp_path / "r", progress=False)
    monkeypatch.undo()
    last = tmp_path / "r" / "checkpoints" / "last.ckpt"
    if damage == "other":
        torch.save({"weights": 1}, last)
    else:
        last.write_bytes(last.read_bytes()[: 5000 if damage == "truncated" else 0])
    trained = stopping_at(monkeypatch)
    run = train(fresh(), STAGE, *parts, out=tmp_path / "r", progress=False)
    assert any("last.ckpt is damaged" in message for message in caplog.messages)
    assert trained[0] == (1, 2)  # one step back, since each step had a checkpoint
    monkeypatch.undo()
    assert_alike(run, whole("plain"))


def test_with_no_readable_checkpoint_it_begins_anew_loudly(whole, parts, tmp_path, monkeypatch, caplog):
    stopping_at(monkeypatch, (1, 3))
    with pytest.raises(Stop):
        train(fresh(), STAGE, *parts, out=tmp_path / "r", progress=False)
    for path in (tmp_path / "r" / "checkpoints").glob("*.ckpt"):
        path.write_bytes(b"damaged")
    run = train(fresh(), STAGE, *parts, out=tmp_path / "r", progress=False)
    assert any("begins anew" in message for message in caplog.messages)
    assert_alike(run, whole("plain"))


def test_a_damaged_best_checkpoint_is_named(parts, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("vtamiq.training.run._score_parts", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            train(fresh(), STAGE, *parts, out=tmp_path / "r", progress=False)
    (tmp_path / "r" / "checkpoints" / "best.ckpt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"r/checkpoints/best.ckpt is damaged .* remove the folder checkpoints"):
        train(fresh(), STAGE, *parts, out=tmp_path / "r", progress=False)


def test_curves_survive_a_power_cut(whole, parts, tmp_path, monkeypatch):
    """The checkpoint is on the disk, but the history is not; the epochs are known to the checkpoint."""
    stopping_at(monkeypatch, (1, 3))
    with pytest.raises(Stop):
        train(fresh(), STAGE, *parts, out=tmp_path / "r", progress=False)
    (tmp_path / "r" / "history.csv").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr("vtamiq.training.run._score_parts", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            train(fresh(), STAGE, *parts, out=tmp_path / "r", progress=False)
    (tmp_path / "r" / "history.csv").unlink()
    run = train(fresh(), STAGE, *parts, out=tmp_path / "r", progress=False)
    pd.testing.assert_frame_equal(run.history, whole("plain").history)


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_one_process_at_a_time(whole, parts, tmp_path, monkeypatch):
    """A second process is kept out while the first one trains, also one that would rename the folder."""
    step, refusals = Fitting.training_step, []
    code = f"""
from pathlib import Path
from vtamiq.training.run import _alone
with _alone(Path({str(tmp_path / "r")!r})):
    pass
"""

    def second_process(self, batch, index):
        if (self.current_epoch, index) == (1, 3):
            second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            refusals.append(second.stderr)
        return step(self, batch, index)

    left = tmp_path / "r" / "checkpoints" / f".last.ckpt-{'0' * 32}.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a checkpoint")
    monkeypatch.setattr(Fitting, "training_step", second_process)
    run = train(fresh(), STAGE, *parts, out=tmp_path / "r", progress=False)
    assert len(refusals) == 1
    assert "ValueError: " in refusals[0]
    assert "another process is training there" in refusals[0]
    assert not left.exists()
    assert_alike(run, whole("plain"))


def test_a_terminated_epoch_is_not_kept_as_a_whole_one(whole, parts, tmp_path, monkeypatch):
    """SIGTERM in the middle of an epoch, at a known place, with the exit status of a process that it ended."""
    step = Fitting.training_step

    def terminated(self, batch, index):
        if (self.current_epoch, index) == (1, 3):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, index)

    stage, before = vary(STAGE, checkpoint_minutes=60.0), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Fitting, "training_step", terminated)
        with pytest.raises(SystemExit) as exit:
            train(fresh(), stage, *parts, out=tmp_path / "r", progress=False)
    assert exit.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(pd.read_csv(tmp_path / "r" / "history.csv")) == 1
    assert_alike(train(fresh(), stage, *parts, out=tmp_path / "r", progress=False), whole("plain"))


def test_scoring_resumes_where_it_was_interrupted(parts, tmp_path, monkeypatch):
    """Validation, test and start, however often they are interrupted: every pair is scored once."""
    stage, options = vary(STAGE, epochs=1, num_draws=2), {"score_start": True, "progress": False}
    tables = "predictions.parquet", "start_predictions.parquet"
    whole = train(fresh(), stage, *parts, out=tmp_path / "whole", **options)
    forward, scored, stops = predictions.forward, [], [2, 6, 9]

    def forward_that_stops(model, inputs, *rest):
        if len(scored) in stops:
            stops.remove(len(scored))
            raise Stop
        scored.append(len(inputs[0]))
        return forward(model, inputs, *rest)

    monkeypatch.setattr(predictions, "forward", forward_that_stops)
    monkeypatch.setattr(predictions, "BLOCK", 1)
    while stops:
        with pytest.raises(Stop):
            train(fresh(), stage, *parts, out=tmp_path / "r", **options)
    run = train(fresh(), stage, *parts, out=tmp_path / "r", **options)
    assert sum(scored) == 2 * (len(parts[1]) + 2 * len(parts[2]))
    assert not (run.folder / "scoring").exists()
    assert [(run.folder / name).read_bytes() for name in tables] == [
        (whole.folder / name).read_bytes() for name in tables
    ]


def test_a_start_is_scored_of_a_finished_run_as_well(parts, tmp_path, monkeypatch):
    stage, options = replace(STAGE, epochs=1), {"out": tmp_path / "r", "progress": False}
    run = train(fresh(), stage, *parts, **options)
    assert not (run.folder / "start_predictions.parquet").exists()
    monkeypatch.setattr("vtamiq.training.run._fit", None)
    train(fresh(), stage, *parts, **options, score_start=True)
    start = pd.read_parquet(run.folder / "start_predictions.parquet")
    caps = predictions.caps_for(fresh(), stage.caps)
    expected = predictions.predict(fresh(), parts[2], caps, seed=1, batch_size=4, progress=False, split="test")
    pd.testing.assert_frame_equal(start, expected)
    assert not (run.folder / "scoring").exists()


def train_elsewhere(data, out, threads, start_method):
    """What each process of the next test does; its loader starts as everywhere else."""
    multiprocessing.set_start_method(start_method, force=True)
    torch.set_num_threads(threads)
    parts = small_database(data, references=10).split(seed=1)
    train(fresh(), vary(STAGE, workers=1), *parts, out=out, progress=False)


@pytest.fixture(scope="module")
def processes():
    """Makes processes that have torch and Lightning imported when they start, which takes longer than the training."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vtamiq.training.run"])
    return context


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")
@pytest.mark.parametrize(("how", "times"), [(signal.SIGKILL, 3), (signal.SIGTERM, 1)])
def test_killed_at_random_moments(whole, processes, tmp_path, how, times):
    """Whatever the moments are: reading, training, validating, writing."""
    out = tmp_path / "r"
    steps = out / "checkpoints" / "last.ckpt"

    def start():
        settings = torch.get_num_threads(), multiprocessing.get_start_method()
        process = processes.Process(target=train_elsewhere, args=(tmp_path / "pairs", out, *settings))
        process.start()
        return process

    waits, killed = random.Random(how), 0
    for _ in range(times):
        before = steps.stat().st_mtime_ns if steps.exists() else None
        process = start()
        while process.is_alive() and (steps.stat().st_mtime_ns if steps.exists() else None) == before:
            time.sleep(0.02)  # until it trains
        time.sleep(waits.uniform(0, 0.25))  # of the 0.8 s from there to the end
        if process.is_alive():
            os.kill(process.pid, how)
        process.join()
        killed += process.exitcode in (-how, 128 + how)
    assert killed >= 1
    process = start()
    process.join()
    assert process.exitcode == 0
    assert_alike(Run.load(out), whole("plain"))
