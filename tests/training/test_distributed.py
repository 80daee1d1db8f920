"""Two processes train like one on the same batches; Lightning starts the second, or torchrun starts both."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch

from tests.small import TINY, small_database, small_table
from tests.training.test_preferences import with_preferences
from vtamiq.caps import CAPS
from vtamiq.databases.patches import EpochSampler
from vtamiq.model.network import VTAMIQ
from vtamiq.training.run import Run, train
from vtamiq.training.stage import Optimizer, PreferenceLoss, ScoreLoss, Stage

# Without dropout, which no two processes share.
QUIET = replace(TINY, decoder_drop_path=0.0, head_dropout=0.0)
# Unlike Adam's, its steps show how large a gradient is.
PLAIN = Optimizer("sgd", lr=2e-2, gradient_clip=0.0)
STAGES = {
    "scores": Stage(
        name="scores",
        caps=CAPS(num_patches=12),
        test_patches=12,
        num_draws=1,
        epochs=2,
        batch_size=6,
        optimizer=Optimizer(lr=2e-3),
        loss=ScoreLoss(mae_weight=1.0),
        seed=1,
    ),
    "heads": Stage(
        name="heads",
        caps=CAPS(num_patches=12),
        test_patches=12,
        num_draws=1,
        epochs=2,
        batch_size=6,
        optimizer=PLAIN,
        loss=ScoreLoss(auxiliary=("rank_one",)),
        freeze=("encoder",),
        freeze_epochs=1,
        seed=1,
    ),
    "versions": Stage(
        name="versions",
        caps=CAPS(num_patches=12),
        test_patches=12,
        num_draws=1,
        epochs=2,
        batch_size=8,
        distorted_per_reference=2,
        optimizer=PLAIN,
        loss=ScoreLoss(auxiliary=("rank_one",)),
        seed=1,
    ),
    "preferences": Stage(
        name="preferences",
        loss=PreferenceLoss(),
        caps=CAPS(num_patches=12),
        test_patches=12,
        num_draws=1,
        epochs=2,
        batch_size=6,
        optimizer=replace(PLAIN, lr=5e-2),
        seed=1,
    ),
}


def fresh():
    torch.manual_seed(11)
    return VTAMIQ(QUIET)


def parts_in(folder):
    database = small_database(folder, references=9)  # 20 + 4 + 12 … rows that do not share out evenly
    database = replace(database, pairs=database.pairs.assign(rank_one=(5 - database.pairs["score"]) / 4))
    return with_preferences(database.subset(database.pairs.index != 17)).split(seed=1)


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
import torch
torch.set_num_threads(1)
{before}
from tests.training.test_distributed import STAGES, fresh, parts_in
from vtamiq.training.run import train
if __name__ == "__main__":
    parts = parts_in(Path({data!r}))
    for name in {names!r}:  # one after the other in the same processes, as a chain does
        run = train(
            fresh(), STAGES[name], *parts, out=Path({out!r}) / name, accelerator="cpu", devices=2, progress=False
        )
        assert run.result["epochs"] == 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def single(folder):
    parts = parts_in(folder / "pairs")
    return {
        name: train(fresh(), stage, *parts, out=folder / "one" / name, accelerator="cpu", progress=False)
        for name, stage in STAGES.items()
    }


def run_script(folder, out, launcher=(), names=tuple(STAGES), before=""):
    places = {"root": os.getcwd(), "data": str(folder / "pairs"), "out": str(folder / out)}
    return run_text(folder, SCRIPT.format(before=before, names=list(names), **places), launcher)


def run_text(folder, text, launcher=()):
    script = folder / "script.py"
    script.write_text(text)
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, *launcher, str(script)],
        cwd=folder, env=clean, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def assert_equal_runs(one, two):
    losses = [name for name in one.history if name.startswith("train_")]
    pd.testing.assert_frame_equal(one.history[losses], two.history[losses], rtol=1e-4)
    pd.testing.assert_frame_equal(one.history, two.history, rtol=1e-3)
    assert one.result["best_epoch"] == two.result["best_epoch"]
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(value, two.model.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name)
    assert len(one.predictions) == len(two.predictions)
    np.testing.assert_allclose(one.predictions["q"], two.predictions["q"], rtol=1e-2, atol=1e-4)


def test_two_processes_train_like_one(folder, single):
    """Rank and Pearson over the whole batch, with the gradients of both; SROCC over all validation rows, none twice."""
    done = run_script(folder, "two")
    assert done.returncode == 0, done.stderr[-3000:]
    for name, run in single.items():
        assert_equal_runs(run, Run.load(folder / "two" / name))


ONCE = """
from vtamiq.training import run as training
trainings = [training._fit]
training._fit = lambda *given: trainings.pop()(*given)  # a second one fails
"""


def test_torchrun_starts_both(folder, single):
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    done = run_script(folder, "torchrun", launcher, names=["scores", "scores"], before=ONCE)  # then loaded by both
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal_runs(single["scores"], Run.load(folder / "torchrun" / "scores"))


SLOW_START = """
import time
from vtamiq.scoring import predictions
predict, delays = predictions.predict, [5]

def slow(*given, **named):
    time.sleep(delays.pop() if delays and "stage" not in named else 0)
    return predict(*given, **named)

predictions.predict = slow
from vtamiq.training import run as training
assert training.predict is slow
training.PATIENCE = 3
"""


def test_nobody_loses_patience_while_a_start_is_scored(folder):
    """A chain's stages have the test rows of their start scored by one process: the others wait, however long it
    takes."""
    script = CHAIN.format(
        before=SLOW_START, root=os.getcwd(), table=small_table(folder / "small", 10, 2), out="patient"
    )
    done = run_text(folder, script)
    assert done.returncode == 0, done.stderr[-3000:]
    assert pd.read_csv(folder / "patient" / "chain.csv")["srocc_start"].notna().tolist() == [True, True]


DAMAGED = """
from vtamiq.training import run as training
from vtamiq.images.reading import ImageError
predict = training.predict

def damaged(*given, **named):
    if named["split"] == "test":
        raise ImageError("test.png is damaged")
    return predict(*given, **named)

training.predict = damaged
"""


def test_what_stops_the_main_process_stops_the_others(folder):
    script = CHAIN.format(before=DAMAGED, root=os.getcwd(), table=small_table(folder / "small", 10, 2), out="damaged")
    done = run_text(folder, script)
    assert done.returncode == 1
    errors = [line.removeprefix("[rank1]: ").removeprefix("[rank0]: ") for line in done.stderr.splitlines()]
    assert "vtamiq.images.reading.ImageError: test.png is damaged" in errors
    assert "ValueError: the main process failed: ImageError: test.png is damaged" in errors


CHAIN = """
import os, sys
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
{before}
from dataclasses import replace
from tests.small import TINY
from tests.training.test_distributed import STAGES
from vtamiq.training.chain import Chain, Data, Step, run_chain
if __name__ == "__main__":
    stage = replace(STAGES["scores"], epochs=1)
    steps = [Step(Data({table!r}, seed=3), replace(stage, name=name)) for name in ("first", "second")]
    run_chain(Chain(model=TINY, steps=tuple(steps), accelerator="cpu", devices=2), {out!r}, progress=False)
"""


TERMINATED = """
import os, signal, time
from vtamiq.training.module import Fitting
step = Fitting.training_step

def terminated(self, batch, index):
    if self.global_rank == 0 and (self.current_epoch, index) == (0, 1):
        time.sleep(1)  # until the other one waits for this batch
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, batch, index)

Fitting.training_step = terminated
"""


def test_a_terminated_process_ends_though_another_one_waits_for_it(folder):
    done = run_script(folder, "terminated", names=["scores"], before=TERMINATED)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr[-3000:]
    assert not (folder / "terminated" / "scores" / "result.json").exists()


def test_a_batch_must_share_out_evenly(tmp_path):
    with pytest.raises(ValueError, match="a batch of 5 rows cannot be shared evenly by 2"):
        EpochSampler(20, batch=5, world_size=2)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("start", [0, 1])
def test_processes_share_every_batch(world_size, start):
    n, batch = 26, 6

    def batches(sampler, size):
        rows = list(sampler)
        return [rows[k : k + size] for k in range(0, len(rows), size)]

    whole = EpochSampler(n, shuffle=True, seed=3, batch=batch, drop_last=True)
    shares = [
        EpochSampler(n, shuffle=True, seed=3, batch=batch, drop_last=True, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for sampler in (whole, *shares):
        sampler.set_epoch(2)
        sampler.start = start
    expected = batches(whole, batch)
    assert len(expected) == 4 - start
    joined = zip(*(batches(share, batch // world_size) for share in shares), strict=True)
    assert [list(chain(*parts)) for parts in joined] == expected
    assert sum(map(len, shares)) == len(whole) == 24
    assert min(min(part) for part in expected) >= 2 * n


def test_an_incomplete_batch_is_shared_as_well_as_it_can_be():
    shares = [EpochSampler(11, batch=4, rank=rank, world_size=2) for rank in range(2)]
    assert sorted(row for share in shares for row in share) == list(range(11))
    assert [len(share) for share in shares] == [len(list(share)) for share in shares] == [6, 5]
