"""Training on preferences: triplets, the loss, the learnt sharpness, and that it learns what people prefer."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.small import TINY, small_database, vary
from vtamiq.caps import CAPS
from vtamiq.databases.pairs import TripletImages
from vtamiq.databases.patches import Flips, PreferencePatches
from vtamiq.databases.schema import DatabaseError, preference_table
from vtamiq.databases.simulated import simulate_preferences
from vtamiq.evaluation.tables import evaluate_preferences
from vtamiq.images.reading import ImageError, read_image
from vtamiq.model.network import VTAMIQ, preference
from vtamiq.training.module import PreferenceFitting
from vtamiq.training.run import Run, train
from vtamiq.training.stage import Optimizer, PreferenceLoss, ScoreLoss, Stage

STAGE = Stage(
    name="preferences",
    loss=PreferenceLoss(),
    caps=CAPS(num_patches=12),
    test_patches=12,
    num_draws=1,
    epochs=3,
    batch_size=8,
    optimizer=Optimizer(lr=2e-3),
    seed=1,
)


def with_preferences(database):
    ranged = replace(database, pairs=database.pairs.assign(score_lo=0.0, score_hi=5.0))
    return replace(ranged, preferences=simulate_preferences(ranged, per_reference=6))


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return with_preferences(small_database(tmp_path_factory.mktemp("pairs"), references=10))


@pytest.fixture(scope="module")
def parts(database):
    return database.split(seed=1)


def fresh():
    torch.manual_seed(11)
    return VTAMIQ(TINY)


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory):
    return train(fresh(), STAGE, *parts, out=tmp_path_factory.mktemp("run") / "r", progress=False)


# ---- triplets ---------------------------------------------------------------------------------------------------


def asked(database, a, b, **columns):
    ref = database.pairs["ref_path"].iloc[0]
    return preference_table(
        database=database.name, ref_id=database.references[0], ref_path=ref, a_path=[a], b_path=[b], p_a=[0.75],
        label_source="made", **columns,
    )  # fmt: skip


def test_a_triplet_is_reference_a_b(database):
    images = TripletImages(database)
    row = database.preferences.iloc[7]
    for image, name in zip(images[7], ("ref_path", "a_path", "b_path"), strict=True):
        np.testing.assert_array_equal(image, read_image(database.root / row[name]))
    assert len(images) == len(database.preferences)


def test_the_reference_itself_may_be_asked_about(database):
    ref, first = database.pairs[["ref_path", "dist_path"]].iloc[0]
    reference, a, b = TripletImages(replace(database, preferences=asked(database, ref, first, a_is_ref=True)))[0]
    np.testing.assert_array_equal(reference, a)
    assert (reference != b).any()


def test_an_image_that_is_no_pair_is_read(database):
    kept = database.subset((database.pairs["level"] > 1).to_numpy())
    mild = database.pairs["dist_path"].iloc[0]
    triplet = TripletImages(replace(kept, preferences=asked(database, mild, kept.pairs["dist_path"].iloc[0])))[0]
    np.testing.assert_array_equal(triplet[1], read_image(database.root / mild))


def test_triplets_that_cannot_be_had(database, parts, tmp_path):
    with pytest.raises(DatabaseError, match="small has no preferences"):
        TripletImages(replace(database, preferences=None))
    lost = replace(database, preferences=asked(database, "images/none.png", database.pairs["dist_path"].iloc[0]))
    with pytest.raises(ImageError, match=r"none\.png"):
        PreferencePatches(lost, CAPS(num_patches=4))[0]
    other = small_database(tmp_path, references=1)
    (tmp_path / "images" / "r0_1.png").write_bytes((tmp_path / "images" / "r0.png").read_bytes()[:-40])
    cut = with_preferences(other)
    rows = cut.preferences["a_path"].eq("images/r0_1.png") | cut.preferences["b_path"].eq("images/r0_1.png")
    patches = PreferencePatches(cut, CAPS(num_patches=4))
    with pytest.raises(ImageError, match=r"r0_1\.png"):
        patches[int(np.flatnonzero(rows)[0])]
    assert len(patches[int(np.flatnonzero(~rows)[0])]["patches"]) == 3


def test_recipes_of_triplets(database):
    pairs = database.pairs.assign(recipe_seed=7, dist_type=10).astype({"recipe_seed": "uint64", "dist_type": "Int16"})
    made = replace(database, pairs=pairs)
    triplet = TripletImages(made)[0]
    assert triplet.shape[0] == 3
    assert (triplet[0] != triplet[1]).any()
    assert (triplet[1] != triplet[2]).any()
    with pytest.raises(DatabaseError, match="neither a recipe nor a file"):
        TripletImages(replace(made, preferences=asked(database, "images/none.png", pairs["dist_path"].iloc[0])))


def test_patches_of_a_triplet_share_their_places(database):
    patches = PreferencePatches(database, CAPS(num_patches=5), flips=Flips(1.0, 0.0), seed=3)
    item = patches[4]
    assert item["patches"].shape == (3, 5, 3, 16, 16)
    assert item["uv"].shape == (5, 2)
    assert item["target"] == np.float32(database.preferences["p_a"].iloc[4])
    again = patches[4]
    assert all(torch.equal(item[name], again[name]) for name in item)
    assert not torch.equal(item["patches"], patches[4 + len(patches)]["patches"])  # another epoch


def test_a_mask_takes_preferences_about_other_images_along(database):
    strong = database.subset((database.pairs["level"] >= 3).to_numpy())
    named = set(strong.preferences["a_path"]) | set(strong.preferences["b_path"])
    assert named == set(strong.pairs["dist_path"])
    assert len(strong.preferences) == 10  # of six pairs of four levels, one is about levels 3 and 4
    assert database.subset((database.pairs["level"] == 4).to_numpy()).preferences is None


# ---- training ---------------------------------------------------------------------------------------------------


def test_probability_is_that_of_scores(database):
    model = fresh()
    fitting = PreferenceFitting(model, STAGE).eval()
    with torch.no_grad():
        fitting.sharpness.fill_(2.5)
    patches = PreferencePatches(database, CAPS(num_patches=6))
    batch = torch.utils.data.default_collate([patches[row] for row in range(5)])
    with torch.inference_mode():
        predicted, targets = fitting.predict_all(batch)
        q = model.eval()(batch["patches"], batch["uv"], batch["scale"])
        alone = [model(batch["patches"][:, [0, k]], batch["uv"], batch["scale"])[:, 0] for k in (1, 2)]
    torch.testing.assert_close(predicted[:, 0], preference(q[:, 0], q[:, 1], 2.5))
    torch.testing.assert_close(q, torch.stack(alone, dim=1))  # A and B are scored independently of each other
    np.testing.assert_allclose(targets[:, 0], database.preferences["p_a"].head(5), rtol=1e-6)


def test_the_reference_is_encoded_once(database, monkeypatch):
    model = fresh()
    seen = []
    forward = model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", lambda x, *a, **k: seen.append(len(x)) or forward(x, *a, **k))
    patches = PreferencePatches(database, CAPS(num_patches=6))
    PreferenceFitting(model, STAGE).predict_all(torch.utils.data.default_collate([patches[0], patches[1]]))
    assert seen == [6]  # two triplets, three images each


def test_judgement_by_hand(database):
    fitting = PreferenceFitting(fresh(), STAGE)
    predicted, targets = torch.tensor([[0.9], [0.4], [0.6], [0.7]]), torch.tensor([[0.8], [0.6], [0.5], [0.7]])
    judged = fitting.judge(predicted, targets)
    assert judged["accuracy"] == pytest.approx(2 / 3)  # the undecided one does not count
    assert judged["mae"] == pytest.approx((0.1 + 0.2 + 0.1 + 0.0) / 4)
    assert judged["srocc"] == pytest.approx(0.8)
    loss, parts = fitting.loss(predicted[:, 0:1], targets)
    assert float(loss) == pytest.approx(0.1)
    assert float(parts["accuracy"]) == pytest.approx(2 / 3)


def test_it_learns_what_is_preferred_and_how_sharply(parts, tmp_path):
    stage = vary(STAGE, epochs=10, lr=3e-3)
    run = train(fresh(), stage, *parts, out=tmp_path / "r", progress=False)
    accuracy = run.history["val_accuracy"]
    assert accuracy.max() == 1.0
    assert run.history["train_loss"].iloc[-1] < 0.5 * run.history["train_loss"].iloc[0]
    rows = run.predictions.query("split == 'test'")
    agreement = evaluate_preferences(rows, parts[2], perfect=0.0)
    assert agreement["accuracy"].iloc[0] == 1.0
    learnt = run.result["preference_weight"]
    assert learnt != TINY.preference_weight
    assert run.model.config.preference_weight == pytest.approx(learnt)
    again = Run.load(run.folder)
    assert again.model.config == run.model.config
    assert again.labels is None
    best = run.history.set_index("epoch").loc[run.result["best_epoch"]]
    assert best["train_w"] == pytest.approx(learnt, rel=1e-6)


def test_run_folder_of_preferences(run, parts):
    assert list(run.history) == [
        "epoch", "step", "rate", "train_loss", "train_accuracy", "train_w", "val_srocc", "val_mae", "val_accuracy"
    ]  # fmt: skip
    record = json.loads((run.folder / "run.json").read_text())
    assert record["labels"] is None
    assert record["data"]["train"]["preferences"] == len(parts[0].preferences)
    assert run.was_trained_on(parts[0])
    assert not run.was_trained_on(replace(parts[0], preferences=parts[0].preferences.iloc[1:].reset_index(drop=True)))
    card = (run.folder / "model" / "README.md").read_text()
    assert f"{len(parts[0].preferences)} pairwise preferences" in card
    assert "SIMULATED, nobody was asked" in card


def test_the_next_stage_begins_with_the_weights_and_the_sharpness(run, parts, tmp_path):
    model = VTAMIQ.from_pretrained(run.folder / "model")
    assert PreferenceFitting(model, STAGE).sharpness.item() == pytest.approx(run.result["preference_weight"])
    fine = vary(STAGE, loss=ScoreLoss(), epochs=1)
    tuned = train(model, fine, *parts, out=tmp_path / "r", progress=False)
    assert tuned.model.config.preference_weight == run.model.config.preference_weight
    assert tuned.started_from == run.digest != tuned.digest


def test_w_is_neither_decayed_nor_clipped(parts, tmp_path):
    """With a network that cannot move, w alone learns, and by the same steps whatever decay and clipping are."""
    from vtamiq.training.module import frozen_parameters

    frozen = ("encoder", "diffnet", "head.hidden", "head.activation", "head.output.bias", "difference_scale")
    assert len(frozen_parameters(fresh(), frozen)) == sum(1 for _ in fresh().parameters()) - 1
    base = replace(STAGE, epochs=1, freeze=frozen, freeze_epochs=1)
    learnt = [
        train(fresh(), vary(base, **change), *parts, out=tmp_path / str(k), progress=False).result["preference_weight"]
        for k, change in enumerate(({}, {"weight_decay": 5.0, "lr": 2e-3}, {"gradient_clip": 1e-12}))
    ]
    assert learnt[0] != TINY.preference_weight
    assert abs(learnt[1] - learnt[0]) < 0.1  # a decay of 5 would take 3 % of 6 away
    assert abs(learnt[2] - TINY.preference_weight) > 1e-3


def test_interrupted_preferences_end_alike(run, parts, tmp_path, monkeypatch):
    step = PreferenceFitting.training_step

    def stop(self, batch, index):
        if (self.current_epoch, index) == (1, 2):
            raise RuntimeError("stop")
        return step(self, batch, index)

    stage = vary(STAGE, checkpoint_minutes=1e-9)
    with monkeypatch.context() as patch:
        patch.setattr(PreferenceFitting, "training_step", stop)
        with pytest.raises(RuntimeError, match="stop"):
            train(fresh(), stage, *parts, out=tmp_path / "r", progress=False)
    resumed = train(fresh(), stage, *parts, out=tmp_path / "r", progress=False)
    pd.testing.assert_frame_equal(resumed.history, run.history)
    pd.testing.assert_frame_equal(resumed.predictions, run.predictions)


def test_preferences_must_be_there(database, parts, tmp_path):
    without = replace(parts[1], preferences=None)
    with pytest.raises(ValueError, match="val part of small has no preferences"):
        train(fresh(), STAGE, parts[0], without, out=tmp_path / "r", progress=False)
    assert not (tmp_path / "r").exists()
