"""Run folders and models of commit 905340d, whose stage had all settings side by side, still load."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from vtamiq.caps import CAPS
from vtamiq.databases.patches import Flips
from vtamiq.databases.schema import LabelScale
from vtamiq.model.network import VTAMIQ
from vtamiq.training.run import Run
from vtamiq.training.stage import Optimizer, PreferenceLoss, Runtime, Schedule, ScoreLoss, Stage
from vtamiq.utils.configs import build

FOLDER = Path(__file__).parents[1] / "data" / "905340d"
SCORES = {  # computed by the code of that commit for `inputs`
    "run/model": [-0.004776298999786377, -0.01588660478591919, -0.02458307147026062, -0.011429250240325928],
    "preferences/model": [-0.0031751394271850586, -0.01456385850906372, -0.024771511554718018, -0.011600703001022339],
    "saved": [-0.0031751394271850586, -0.01456385850906372, -0.024771511554718018, -0.011600703001022339],
}


def inputs():
    generator = torch.Generator().manual_seed(3)
    patches = torch.randint(0, 256, (2, 3, 8, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return patches, torch.rand(2, 8, 2, generator=generator)


@pytest.mark.parametrize("name", SCORES)
def test_models_give_the_same_scores(name):
    model = VTAMIQ.from_pretrained(FOLDER / name)
    with torch.inference_mode():
        q = model(*inputs()).flatten()
    torch.testing.assert_close(q, torch.tensor(SCORES[name]), rtol=1e-5, atol=1e-6)


def test_a_run_that_learnt_scores():
    run = Run.load(FOLDER / "run")
    assert run.stage == Stage(
        name="old",
        loss=ScoreLoss(mae_weight=0.5, rank_weight=0.25),
        optimizer=Optimizer("muon", lr=1e-3, lr_scale=0.5, momentum=0.95),
        schedule=Schedule("cosine", warmup=0.1, min_lr_ratio=0.1),
        caps=CAPS(num_patches=8, centre=0.25),
        test_patches=8,
        num_draws=2,
        epochs=2,
        batch_size=4,
        distorted_per_reference=2,
        freeze=("encoder.blocks.0",),
        freeze_epochs=1,
        ema=0.5,
        flips=Flips(horizontal=0.5, vertical=0.0),
        runtime=Runtime(),
        seed=3,
    )
    assert Stage.load(FOLDER / "run" / "stage.yaml") == run.stage
    assert isinstance(run.labels, LabelScale)
    assert run.result == json.loads((FOLDER / "run" / "result.json").read_text())
    assert len(run.history) == 2
    pd.testing.assert_frame_equal(run.predictions, pd.read_parquet(FOLDER / "run" / "predictions.parquet"))


def test_a_run_that_learnt_preferences():
    run = Run.load(FOLDER / "preferences")
    assert run.stage.loss == PreferenceLoss()
    assert run.labels is None
    assert run.model.config.preference_weight == pytest.approx(run.result["preference_weight"])


def test_settings_that_have_left_do_not_stop_it():
    flat = json.loads((FOLDER / "run" / "run.json").read_text())["stage"]
    stage = build(Stage, flat | {"linearise": True, "squared": True, "schedule": "multistep"})
    assert stage.schedule == Schedule("constant", warmup=0.1, min_lr_ratio=0.1)
