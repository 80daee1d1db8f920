"""A stage of training: that it learns, what it leaves, and that an interrupted run ends like an uninterrupted one."""

import errno
import gc
import json
import os
import signal
import sys
import tempfile
import weakref
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.small import TINY, files_up_to, small_database, vary
from vtamiq.caps import CAPS
from vtamiq.databases.pairs import PairImages
from vtamiq.databases.patches import Flips, PairPatches
from vtamiq.databases.schema import Database, LabelScale
from vtamiq.model.network import VTAMIQ
from vtamiq.training.callbacks import widest_float
from vtamiq.training.module import Fitting
from vtamiq.training.run import Run, train
from vtamiq.training.stage import Optimizer, Schedule, ScoreLoss, Stage
from vtamiq.utils.configs import build

STAGE = Stage(
    name="test",
    caps=CAPS(num_patches=12),
    test_patches=12,
    num_draws=2,
    epochs=3,
    batch_size=8,
    optimizer=Optimizer(lr=2e-3),
    schedule=Schedule(name="cosine", warmup=0.1),
    loss=ScoreLoss(mae_weight=1.0),
    seed=1,
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return small_database(tmp_path_factory.mktemp("pairs"), references=10).split(seed=1)


def fresh():
    torch.manual_seed(11)
    return VTAMIQ(TINY)


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory):
    return train(fresh(), STAGE, *parts, out=tmp_path_factory.mktemp("run") / "r", progress=False)


def test_run_folder_is_complete(run, parts):
    for name in ("run.json", "stage.yaml", "history.csv", "predictions.parquet", "result.json", "model/config.json",
                 "model/model.safetensors", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):  # fmt: skip
        assert (run.folder / name).is_file(), name
    assert len(run.history) == STAGE.epochs
    columns = ["train_loss", "train_mae", "train_rank", "train_pearson", "val_srocc", "val_mae"]
    assert list(run.history) == ["epoch", "step", "rate", *columns]
    assert run.history.notna().all(axis=None)
    assert Stage.load(run.folder / "stage.yaml") == STAGE
    assert run.predictions.groupby("split").size().to_dict() == {"val": len(parts[1]), "test": len(parts[2])}
    record = json.loads((run.folder / "run.json").read_text())
    assert record["data"]["train"]["references"] == parts[0].references


def test_images_of_an_earlier_training_are_not_kept(parts, tmp_path, monkeypatch):
    """Two stages one after the other must not need the memory of both."""
    alive = weakref.WeakSet()
    begin = PairImages.__init__

    def watch(self, *args, **options):
        begin(self, *args, **options)
        alive.add(self)

    monkeypatch.setattr(PairImages, "__init__", watch)
    stage = vary(STAGE, epochs=1, in_memory=True)
    gc.disable()  # it might run by chance
    try:
        train(fresh(), stage, *parts[:2], out=tmp_path / "one", progress=False)
        earlier = weakref.WeakSet(alive)
        assert len(earlier)
        step, seen = Fitting.training_step, []
        monkeypatch.setattr(Fitting, "training_step", lambda *args: seen.append(len(earlier)) or step(*args))
        train(fresh(), replace(stage, seed=2), *parts[:2], out=tmp_path / "two", progress=False)
    finally:
        gc.enable()
    assert seen
    assert not any(seen)


def test_model_is_the_best_epoch(run):
    best = run.history.loc[run.history["val_srocc"].idxmax()]
    result = json.loads((run.folder / "result.json").read_text())
    assert (result["best_epoch"], result["val_srocc"]) == (best["epoch"], pytest.approx(best["val_srocc"]))
    assert result["epochs"] == STAGE.epochs
    assert 0 < result["seconds"] < 600
    weights = torch.load(run.folder / "checkpoints/best.ckpt", weights_only=True)
    assert weights["epoch"] == best["epoch"]
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, weights["state_dict"][f"model.{name}"])


def test_the_best_epoch_is_kept_whatever_its_place(parts, tmp_path, monkeypatch):
    from vtamiq.training.module import Fitting

    sroccs = iter([0.1, 0.9, 0.5])

    def pretend(self):
        self._validated.clear()
        self.log("val_srocc", next(sroccs), logger=False)
        self.log("val_mae", 0.0, logger=False)

    monkeypatch.setattr(Fitting, "on_validation_epoch_end", pretend)
    run = train(fresh(), STAGE, *parts, out=tmp_path / "r", progress=False)
    result = json.loads((run.folder / "result.json").read_text())
    assert (result["best_epoch"], result["val_srocc"]) == (1, pytest.approx(0.9))


def test_labels_come_from_training_rows_only(parts, tmp_path):
    training, validation, _ = parts
    mild = training.subset(training.pairs["score"] < 4)  # validation has scores up to 4
    run = train(fresh(), replace(STAGE, epochs=1), mild, validation, out=tmp_path / "r", progress=False)
    assert run.labels == LabelScale(best=1, worst=3)


def test_model_card_says_what_the_labels_are(run, parts, tmp_path):
    card = (run.folder / "model" / "README.md").read_text()
    assert "Lower is better" in card
    assert f"{len(parts[0])} pairs of 6 references of the database small, with SYNTHETIC scores" in card
    run.model.save_pretrained(tmp_path)
    assert "Not stated." in (tmp_path / "README.md").read_text()


def test_one_progress_bar_from_first_to_last_step(run, parts, tmp_path, capsys):
    train(fresh(), STAGE, *parts, out=tmp_path / "r")
    bars = capsys.readouterr().err
    steps = run.history["step"].iloc[-1]
    assert f"{steps}/{steps}" in bars
    assert f"epoch=3/3, val_srocc={run.history['val_srocc'].iloc[-1]:.3f}" in bars
    assert "Validation" not in bars


def test_log_names_no_folder_of_the_machine(parts, tmp_path, caplog):
    caplog.set_level("INFO")
    for _ in range(2):
        train(fresh(), replace(STAGE, epochs=1), *parts, out=tmp_path / "r", progress=False)
    assert "r holds this run, finished; loaded, not trained again" in caplog.messages
    assert str(tmp_path) not in caplog.text


def test_training_learns_the_obvious_order(parts, tmp_path):
    stage = vary(STAGE, epochs=8, lr=1e-3)
    run = train(fresh(), stage, *parts, out=tmp_path, progress=False)
    test = run.predictions.query("split == 'test'")
    assert test["q"].corr(test["score"], method="spearman") > 0.8  # both grow with distortion
    assert run.history["train_loss"].iloc[-1] < 0.7 * run.history["train_loss"].iloc[0]


class Stop(RuntimeError):
    pass


def test_a_loaded_model_is_trained_like_a_fresh_one(run, parts, tmp_path):
    """Dropout acts, although `from_pretrained` gives a model in evaluation mode."""
    fresh().save_pretrained(tmp_path / "start")
    again = train(VTAMIQ.from_pretrained(tmp_path / "start"), STAGE, *parts, out=tmp_path / "r", progress=False)
    pd.testing.assert_frame_equal(again.history, run.history)


@pytest.mark.parametrize("interruption", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["module.Fitting.validation_step", "run.predict"])
def test_the_same_model_goes_on_after_an_interruption(run, parts, tmp_path, monkeypatch, where, interruption):
    def stop(*_, **__):
        raise interruption

    model = fresh()
    monkeypatch.setattr(f"vtamiq.training.{where}", stop)
    with pytest.raises(interruption):
        train(model, STAGE, *parts, out=tmp_path / "r", progress=False)
    monkeypatch.undo()
    resumed = train(model, STAGE, *parts, out=tmp_path / "r", progress=False)
    pd.testing.assert_frame_equal(resumed.history, run.history)
    pd.testing.assert_frame_equal(resumed.predictions, run.predictions)
    assert not model.training


def test_killed_while_a_checkpoint_is_written(run, parts, tmp_path, monkeypatch):
    write, calls = Path.write_bytes, []

    def half(self, content):
        calls.append(self)
        write(self, content[:1000] if len(calls) == 3 else content)
        if len(calls) == 3:
            raise Stop

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(Stop):
        train(fresh(), STAGE, *parts, out=tmp_path / "r", progress=False)
    monkeypatch.undo()
    assert {path.parent for path in calls} == {tmp_path / "r" / "checkpoints"}
    assert not list(tmp_path.rglob("*.tmp"))
    resumed = train(fresh(), STAGE, *parts, out=tmp_path / "r", progress=False)
    pd.testing.assert_frame_equal(resumed.history, run.history)
    pd.testing.assert_frame_equal(resumed.predictions, run.predictions)


def test_the_folder_for_temporary_files_may_be_full(run, parts, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("mkstemp", "mkdtemp", "NamedTemporaryFile"):
        monkeypatch.setattr(tempfile, name, full)
    again = train(fresh(), STAGE, *parts, out=tmp_path / "r", progress=False)
    pd.testing.assert_frame_equal(again.predictions, run.predictions)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits there")
@pytest.mark.parametrize("allowed", [1500, 40_000, 1_000_000])
def test_a_file_that_cannot_be_written_is_named(run, parts, tmp_path, allowed):
    """Whatever it is: small files, checkpoints, weights, tables."""
    biggest = max(path.stat().st_size for path in run.folder.rglob("*.ckpt"))
    with files_up_to(min(allowed, biggest - 1)), pytest.raises(OSError, match="File too large") as error:
        train(fresh(), STAGE, *parts, out=tmp_path / "r", progress=False)
    assert Path(error.value.filename).is_relative_to(tmp_path / "r")
    assert not error.value.filename.endswith(".tmp")
    assert not list(tmp_path.rglob("*.tmp"))
    train(fresh(), STAGE, *parts, out=tmp_path / "r", progress=False)


def test_a_diverged_run_is_no_result(parts, tmp_path):
    with pytest.raises(ValueError, match="training diverged"):
        train(fresh(), vary(STAGE, lr=1e30, gradient_clip=0), *parts, out=tmp_path / "r", progress=False)
    assert not (tmp_path / "r" / "result.json").exists()
    assert not (tmp_path / "r" / "model").exists()


@pytest.mark.parametrize(("epoch", "interruption"), [(0, Stop), (2, Stop), (2, KeyboardInterrupt)])
def test_interrupted_run_ends_like_an_uninterrupted_one(run, parts, tmp_path, monkeypatch, epoch, interruption):
    from vtamiq.training.module import Fitting

    step = Fitting.training_step

    def stop_in_the_middle(self, batch, index):
        if self.current_epoch == epoch and index == 1:
            raise interruption
        return step(self, batch, index)

    epochs = []
    monkeypatch.setattr(Fitting, "on_train_epoch_start", lambda self: epochs.append(self.current_epoch))
    handler, model = signal.getsignal(signal.SIGINT), fresh()
    monkeypatch.setattr(Fitting, "training_step", stop_in_the_middle)
    with pytest.raises(interruption):
        train(model, STAGE, *parts, out=tmp_path / "r", progress=False)
    monkeypatch.setattr(Fitting, "training_step", step)
    assert signal.getsignal(signal.SIGINT) is handler
    (tmp_path / "r").rename(tmp_path / "moved")  # a folder may move in between
    resumed = train(model, STAGE, *parts, out=tmp_path / "moved", progress=False)
    assert sorted(epochs) == sorted([*range(STAGE.epochs), epoch])  # only the interrupted one twice
    pd.testing.assert_frame_equal(resumed.history, run.history)
    pd.testing.assert_frame_equal(resumed.predictions, run.predictions)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_an_interrupted_run_with_workers_ends_like_one_without(run, parts, tmp_path, monkeypatch):
    from vtamiq.training.module import Fitting

    step = Fitting.training_step

    def stop(self, batch, index):
        if self.current_epoch == 1:
            raise Stop
        return step(self, batch, index)

    stage = vary(STAGE, workers=1)
    monkeypatch.setattr(Fitting, "training_step", stop)
    with pytest.raises(Stop):
        train(fresh(), stage, *parts, out=tmp_path / "r", progress=False)
    monkeypatch.undo()
    resumed = train(fresh(), stage, *parts, out=tmp_path / "r", progress=False)
    pd.testing.assert_frame_equal(resumed.history, run.history)


def test_finished_run_is_loaded_not_trained_again(run, parts, monkeypatch):
    monkeypatch.setattr("vtamiq.training.run._fit", lambda *args: pytest.fail("trained again"))
    model = fresh()
    again = train(model, STAGE, *parts, out=run.folder, progress=False)
    pd.testing.assert_frame_equal(again.predictions, run.predictions)
    for name, value in model.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name])


@pytest.mark.parametrize("what", ["stage", "data", "start", "model"])
def test_folder_of_another_run_is_refused(run, parts, what):
    model, stage, data = fresh(), STAGE, parts
    if what == "stage":
        stage = vary(STAGE, lr=1e-5)
    if what == "data":
        data = (parts[0], parts[2], parts[1])
    if what == "start":
        torch.manual_seed(5)
        model = VTAMIQ(TINY)
    if what == "model":
        model = VTAMIQ(replace(TINY, head_dropout=0.2))
    before = (run.folder / "run.json").read_bytes()
    with pytest.raises(ValueError, match=f"another run.*{what}"):
        train(model, stage, *data, out=run.folder, progress=False)
    assert (run.folder / "run.json").read_bytes() == before


def test_workers_make_no_other_run(run, parts, tmp_path):
    stage = vary(STAGE, workers=1, in_memory=True)
    assert len(train(fresh(), stage, *parts, out=run.folder, progress=False).history) == 3  # the same run: loaded
    again = train(fresh(), stage, *parts, out=tmp_path / "r", progress=False)
    pd.testing.assert_frame_equal(again.history, run.history)
    pd.testing.assert_frame_equal(again.predictions, run.predictions)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1e-3}, {"weight_decay": 0.5}, {"schedule": "constant"}, {"min_lr_ratio": 0.5}, {"warmup": 0.0},
        {"mae_weight": 0.0}, {"rank_weight": 0.0}, {"pearson_weight": 0.0}, {"gradient_clip": 0.01}, {"flips": Flips()},
        {"seed": 2}, {"precision": "bf16-mixed"}, {"batch_size": 6}, {"caps": CAPS(num_patches=13)},
        {"caps": CAPS(num_patches=12, difference=0)}, {"test_patches": 13}, {"num_draws": 3},
    ],
    ids=str,
)  # fmt: skip
def test_every_setting_acts(run, parts, tmp_path, change):
    """Each setting changes the weights after one epoch, or, where it concerns scoring, the predictions."""
    stage = replace(STAGE, epochs=1)
    base, changed = (
        train(fresh(), s, *parts, out=tmp_path / name, progress=False)
        for name, s in (("base", stage), ("changed", vary(stage, **change)))
    )
    weights = [r.model.head.output.weight for r in (base, changed)]
    if change.keys() <= {"test_patches", "num_draws"}:
        assert torch.equal(*weights)
        assert (base.predictions["q"] != changed.predictions["q"]).any()
    else:
        assert not torch.equal(*weights)


def test_code_is_part_of_a_run(run, parts, monkeypatch):
    monkeypatch.setattr("vtamiq.training.run.COMPUTES", 0)
    with pytest.raises(ValueError, match=r"another run.*code"):
        train(fresh(), STAGE, *parts, out=run.folder, progress=False)


def test_run_knows_its_training_rows(run, parts):
    assert run.trained_on == "small"
    assert run.was_trained_on(parts[0])
    assert not run.was_trained_on(parts[1])


def test_parts_must_not_share_references(parts, tmp_path):
    with pytest.raises(ValueError, match="in both train and val"):
        train(fresh(), STAGE, parts[0], parts[0], out=tmp_path)


def test_unfinished_folder_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished run"):
        Run.load(tmp_path)


def test_stage_survives_yaml(tmp_path):
    stage = replace(STAGE, flips=Flips(0.1, 0.2), caps=CAPS(num_patches=7, smoothing=1.5))
    stage.save(tmp_path / "stage.yaml")
    assert Stage.load(tmp_path / "stage.yaml") == stage
    assert build(Stage, asdict(stage)) == stage


def test_yaml_numbers_are_numbers(tmp_path):
    (tmp_path / "stage.yaml").write_text("optimizer: {lr: 1e-4, weight_decay: 1}\ncaps: {num_patches: 5}\n")
    stage = Stage.load(tmp_path / "stage.yaml")
    assert (stage.optimizer, stage.caps) == (Optimizer(lr=1e-4, weight_decay=1.0), CAPS(num_patches=5))
    for text, message in (
        ("epochs: 2.5", "Stage.epochs must be int, got 2.5"),
        ("epochs: true", "Stage.epochs must be int, got True"),
        ("runtime: {in_memory: perhaps}", "Runtime.in_memory must be bool, got 'perhaps'"),
        ("caps: 5", "Stage.caps must be CAPS, got 5"),
        ("- 3", "Stage is made from named values"),
    ):
        (tmp_path / "stage.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            Stage.load(tmp_path / "stage.yaml")


def test_unknown_stage_field_is_refused_with_a_hint(tmp_path):
    (tmp_path / "stage.yaml").write_text("optimizer: {weight_deca: 1.0e-4}\n")
    with pytest.raises(ValueError, match="did you mean `weight_decay`"):
        Stage.load(tmp_path / "stage.yaml")


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}, {"mae_weight": -1.0}, {"rank_weight": 0.0, "pearson_weight": 0.0},
        {"warmup": 1.0}, {"schedule": "linear"}, {"gradient_clip": -1.0}, {"precision": "bf16-true"},
    ],
)  # fmt: skip
def test_bad_stages_are_refused(bad):
    with pytest.raises(ValueError, match=f"(?i){next(iter(bad))}"):
        vary(Stage(), **bad)


def test_schedules():
    constant, exponential, cosine = (
        Stage(schedule=Schedule(name=name, min_lr_ratio=0.01, warmup=0.2))
        for name in ("constant", "exponential", "cosine")
    )
    for stage in (constant, exponential, cosine):
        assert stage.schedule.rate_at(0.1) == pytest.approx(0.5)
        assert stage.schedule.rate_at(0.2) == pytest.approx(1.0)
    assert constant.schedule.rate_at(1.0) == 1
    assert exponential.schedule.rate_at(0.6) == pytest.approx(0.1)
    assert cosine.schedule.rate_at(0.6) == pytest.approx((1 + 0.01) / 2)
    assert cosine.schedule.rate_at(1.0) == pytest.approx(exponential.schedule.rate_at(1.0)) == pytest.approx(0.01)


def test_higher_better_labels_train_in_the_same_direction(tmp_path):
    """The same pictures with a MOS instead of a DMOS must give the same targets."""
    dmos = small_database(tmp_path, references=3)
    pairs = dmos.pairs.assign(score=5 - dmos.pairs["score"], higher_better=True, score_name="MOS")
    mos = Database(name=dmos.name, root=dmos.root, pairs=pairs, score_name="MOS", higher_better=True, synthetic=True)
    targets = [LabelScale.fit(d).to_distortion(d.pairs["score"].to_numpy()) for d in (dmos, mos)]
    np.testing.assert_allclose(targets[0], targets[1])
    assert targets[0][0] == 0
    assert targets[0].max() == 1


# ---- auxiliary heads --------------------------------------------------------------------------------------------

HEADS = ("rank_one", "rank_two")
MULTI = vary(STAGE, auxiliary=HEADS)


@pytest.fixture(scope="module")
def rich(parts):
    """The same parts with two more labels: one that agrees with the score, and one that is its opposite."""

    def labelled(part):
        level = part.pairs["score"]
        return replace(part, pairs=part.pairs.assign(rank_one=(level - 1) / 3, rank_two=(4 - level) / 3))

    return [labelled(part) for part in parts]


@pytest.fixture(scope="module")
def multi(rich, tmp_path_factory):
    return train(fresh(), MULTI, *rich, out=tmp_path_factory.mktemp("multi") / "r", progress=False)


def test_auxiliary_heads_learn_in_training_only(multi, run):
    heads = {"train_auxiliary", "val_auxiliary_srocc"}
    assert heads <= set(multi.history)
    assert multi.history.notna().all(axis=None)
    assert not heads & set(run.history)
    assert multi.model.config == run.model.config
    assert set(multi.model.state_dict()) == set(run.model.state_dict())  # no head is left in the model
    assert "auxiliary heads learnt rank_one, rank_two" in (multi.folder / "model" / "README.md").read_text()
    heads = torch.load(multi.folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert heads["heads.weight"].shape == (2, TINY.width)
    assert not torch.equal(multi.model.head.output.weight, run.model.head.output.weight)


def test_auxiliary_heads_each_learn_their_own_label(rich, tmp_path):
    from vtamiq.training.module import Fitting

    stage = vary(MULTI, epochs=8, lr=1e-3, mae_weight=1.0)
    run = train(fresh(), stage, *rich[:2], out=tmp_path / "r", progress=False)
    assert run.history["val_auxiliary_srocc"].iloc[-1] > 0.8  # the mean of two that are opposites: both must be learnt
    assert run.history["train_auxiliary"].iloc[-1] < 0.7 * run.history["train_auxiliary"].iloc[0]
    fitting = Fitting(run.model, stage)
    state = torch.load(tmp_path / "r/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    fitting.load_state_dict(state)
    pairs = PairPatches(rich[1], CAPS(num_patches=12), auxiliary=HEADS)
    batch = torch.utils.data.default_collate([pairs[row] for row in range(len(pairs))])
    with torch.inference_mode():
        predicted, targets = fitting.eval().predict_all(batch | {"target": torch.zeros(len(pairs))})
        alone = fitting.model(batch["patches"], batch["uv"], batch["scale"])
    assert targets.shape == predicted.shape
    torch.testing.assert_close(predicted[:, :1], alone)  # q is what the model gives without any head
    assert predicted[:, 1:].T.corrcoef()[0, 1] < -0.5


def test_losses_of_heads_are_weighted(rich, tmp_path):
    light, heavy = (
        train(fresh(), vary(MULTI, epochs=1, auxiliary_weight=w), *rich, out=tmp_path / str(w), progress=False)
        for w in (0.01, 1.0)
    )
    weights = [run.model.difference_scale for run in (light, heavy)]
    assert not torch.equal(*weights)


def test_interrupted_run_with_heads_ends_like_an_uninterrupted_one(rich, multi, tmp_path, monkeypatch):
    from vtamiq.training.module import Fitting

    step = Fitting.training_step

    def stop(self, batch, index):
        if self.current_epoch == 2 and index == 1:
            raise Stop
        return step(self, batch, index)

    monkeypatch.setattr(Fitting, "training_step", stop)
    with pytest.raises(Stop):
        train(fresh(), MULTI, *rich, out=tmp_path / "r", progress=False)
    monkeypatch.undo()
    resumed = train(fresh(), MULTI, *rich, out=tmp_path / "r", progress=False)
    pd.testing.assert_frame_equal(resumed.history, multi.history)
    pd.testing.assert_frame_equal(resumed.predictions, multi.predictions)


def test_auxiliary_labels_are_part_of_a_run(rich, multi):
    with pytest.raises(ValueError, match=r"another run.*stage"):
        train(fresh(), vary(MULTI, auxiliary=HEADS[:1]), *rich, out=multi.folder, progress=False)
    other = [replace(part, pairs=part.pairs.assign(rank_two=part.pairs["rank_one"])) for part in rich]
    with pytest.raises(ValueError, match=r"another run.*data"):
        train(fresh(), MULTI, *other, out=multi.folder, progress=False)
    assert multi.was_trained_on(rich[0])
    assert not multi.was_trained_on(other[0])


def test_auxiliary_labels_must_be_there(rich, parts, tmp_path):
    with pytest.raises(ValueError, match="small has no columns rank_one, rank_two; it has none of metrics"):
        train(fresh(), MULTI, *parts, out=tmp_path / "r", progress=False)
    with pytest.raises(ValueError, match="small has no columns rank_three; it has rank_one, rank_two"):
        train(fresh(), vary(MULTI, auxiliary=("rank_three",)), *rich, out=tmp_path / "s", progress=False)
    with pytest.raises(ValueError, match="auxiliary names a column twice"):
        vary(STAGE, auxiliary=("rank_one", "rank_one"))
    with pytest.raises(ValueError, match="auxiliary_weight must be positive"):
        vary(STAGE, auxiliary_weight=0)


@pytest.mark.parametrize(
    "change",
    [{"distorted_per_reference": 8}, {"freeze": ("heads",), "freeze_epochs": 1}, {"caps": CAPS(centre_map="none.npy")},
     {"auxiliary": ("rank_none",)}],
)  # fmt: skip
def test_what_is_refused_leaves_no_folder(run, parts, tmp_path, change):
    """So that the same folder can be used with the setting put right."""
    with pytest.raises(ValueError, match=r"distorted_per_reference|freeze|centre_map|rank_none"):
        train(fresh(), vary(STAGE, **change), *parts, out=tmp_path / "r", progress=False)
    assert not (tmp_path / "r").exists()


def test_auxiliary_survives_yaml(tmp_path):
    MULTI.save(tmp_path / "stage.yaml")
    assert Stage.load(tmp_path / "stage.yaml") == MULTI


def test_sums_are_as_wide_as_the_device_allows():
    assert widest_float(torch.device("mps")) is torch.float32
    assert widest_float(torch.device("cuda", 1)) is widest_float(torch.device("cpu")) is torch.float64
