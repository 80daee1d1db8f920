"""Options of a stage of training: what each does, exactly where that can be said."""

from dataclasses import replace
from functools import partialmethod

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tests.small import TINY, small_database, vary
from vtamiq.caps import CAPS
from vtamiq.databases.patches import PairPatches
from vtamiq.databases.schema import LabelScale
from vtamiq.images.reading import ImageError
from vtamiq.model import accelerate as fast
from vtamiq.model.network import VTAMIQ
from vtamiq.training.module import Fitting, frozen_parameters, muon_groups
from vtamiq.training.run import train
from vtamiq.training.stage import Optimizer, PreferenceLoss, ScoreLoss, Stage

STAGE = Stage(
    name="options",
    caps=CAPS(num_patches=12),
    test_patches=12,
    num_draws=1,
    epochs=1,
    batch_size=4,
    optimizer=Optimizer(lr=1e-3),
    loss=ScoreLoss(mae_weight=1.0),
    seed=1,
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return small_database(tmp_path_factory.mktemp("pairs"), references=10).split(seed=1)


def fresh():
    torch.manual_seed(11)
    return VTAMIQ(TINY)


@pytest.fixture
def fit(parts, tmp_path):
    """Train by the changed stage in a folder of its own."""
    made = []

    def make(**change):
        made.append(change)
        stage = vary(STAGE, **change)
        return train(fresh(), stage, *parts, out=tmp_path / str(len(made)), progress=False)

    return make


def weights(run):
    return {name: value for name, value in run.model.state_dict().items() if not name.startswith("_")}


def moved(run):
    """Names of weights that training has changed."""
    before = fresh().state_dict()
    return {name for name, value in weights(run).items() if not torch.equal(value, before[name])}


# ---- optimiser --------------------------------------------------------------------------------------------------


def test_sgd_steps_are_gradient_times_rate(parts, fit, monkeypatch):
    """One step of plain SGD, by hand."""
    run = fit(optimizer="sgd", momentum=0.0, weight_decay=0.0, gradient_clip=0.0, batch_size=24, schedule="constant")
    assert run.history["step"].iloc[0] == 1
    stage = replace(STAGE, batch_size=24)
    fitting = Fitting(fresh().train(), stage)
    captured = {}

    def capture(self, batch, index):
        captured["batch"] = batch
        raise InterruptedError

    monkeypatch.setattr(Fitting, "training_step", capture)
    with pytest.raises(InterruptedError):
        fit(batch_size=24)
    torch.manual_seed(int(np.random.SeedSequence([stage.seed, 0, 0, 0]).generate_state(1)[0]))  # dropout of batch 0
    loss, _ = fitting.loss(*fitting.predict_all(captured["batch"]))
    loss.backward()
    for name, parameter in fitting.model.named_parameters():
        expected = parameter.detach() - 1e-3 * parameter.grad
        torch.testing.assert_close(weights(run)[name], expected, rtol=1e-5, atol=1e-7, msg=name)


def test_rate_of_the_encoder_is_relative(fit):
    options = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "gradient_clip": 0.0, "batch_size": 24}
    base, slow = fit(**options), fit(**options, lr_scale=0.25)
    start = fresh().state_dict()
    for name in ("encoder.class_token", "encoder.blocks.0.mlp.fc1.weight"):
        step, slow_step = (weights(run)[name] - start[name] for run in (base, slow))
        torch.testing.assert_close(slow_step, 0.25 * step, rtol=1e-2, atol=1e-7)
    assert torch.equal(weights(base)["head.hidden.weight"], weights(slow)["head.hidden.weight"])


def test_momentum_acts_from_the_second_step(fit):
    options = {"optimizer": "sgd", "lr": 1e-2, "gradient_clip": 0.0}
    one, other = (fit(**options, momentum=momentum) for momentum in (0.0, 0.9))
    assert not torch.equal(weights(one)["head.hidden.weight"], weights(other)["head.hidden.weight"])


def test_muon_makes_orthogonal_steps(fit):
    """A first step at rate r: a matrix's has singular values near 0.2 r √(longer side), a table's entries are below 2
    r."""
    rate, longest = STAGE.optimizer.lr, 32
    options = {"batch_size": 24, "weight_decay": 0.0, "schedule": "constant"}
    run, start = fit(**options, optimizer="muon", momentum=0.95), fresh().state_dict()
    steps = {name: value - start[name] for name, value in weights(run).items()}
    matrix = steps["encoder.blocks.0.attn.proj.weight"]
    assert matrix.shape == (longest, longest)
    sizes = torch.linalg.svdvals(matrix) / (0.2 * rate * longest**0.5)
    assert sizes.max() < 1.4
    assert sizes.median() > 0.6  # directions without gradient do not move
    for name in ("encoder.class_token", "head.hidden.weight"):
        assert rate < steps[name].abs().median() < 2 * rate, name  # Nesterov looks ahead: nearly twice Adam's


def test_what_muon_moves(parts):
    model = VTAMIQ(replace(TINY, difference_gate=True))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    fitting = Fitting(model, vary(STAGE, optimizer="muon", auxiliary=("rank_vsi",)))
    groups = muon_groups(model, [{"params": list(fitting.parameters()), "lr": 0.5}])
    by_muon, by_adam = ([names.get(id(p), "auxiliary") for p in group["params"]] for group in groups)
    assert [group.get("use_fallback", False) for group in groups] == [False, True]
    assert {group["lr"] for group in groups} == {0.5}
    assert {"encoder.patch_projection.weight", "encoder.blocks.0.mlp.fc1.weight", "diffnet.linear.weight"} < set(
        by_muon
    )
    assert any(name.startswith("difference_gate.") for name in by_muon)
    assert all(name.endswith(".weight") and model.get_parameter(name).ndim == 2 for name in by_muon)
    assert {"encoder.position_table", "encoder.class_token", "head.hidden.weight", "diffnet.linear.bias"} < set(by_adam)
    assert by_adam.count("auxiliary") == 2  # their weight and bias
    assert len(by_muon) + len(by_adam) == len(list(fitting.parameters()))


def test_freezing_by_part(fit):
    assert {name.split(".")[0] for name in moved(fit(freeze=("encoder",), freeze_epochs=1))} == {
        "diffnet", "head", "difference_scale"
    }  # fmt: skip
    some = moved(fit(freeze=("encoder.blocks.0.mlp", "encoder.position_table", "head"), freeze_epochs=1))
    assert not [name for name in some if name.startswith(("encoder.blocks.0.mlp", "encoder.position_table", "head"))]
    assert "encoder.blocks.0.attn.qkv.weight" in some
    thawed = fit(freeze=("encoder",), freeze_epochs=1, epochs=2, schedule="constant")
    last = torch.load(thawed.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not torch.equal(last["model.encoder.class_token"], fresh().encoder.class_token)
    assert all(parameter.requires_grad for parameter in thawed.model.parameters())


def test_what_cannot_be_frozen():
    model = fresh()
    with pytest.raises(ValueError, match=r"freeze: the model has no 'encoder\.block' that learns; ") as error:
        frozen_parameters(model, ("encoder.block",))
    parts = str(error.value).partition("names such as ")[2].split(", ")
    assert {"encoder", "encoder.patch_projection", "encoder.blocks", "encoder.class_token", "head"} < set(parts)
    assert all(frozen_parameters(model, [part]) for part in parts)
    with pytest.raises(ValueError, match="nothing would be left to learn"):
        frozen_parameters(model, ("encoder", "diffnet", "head", "difference_scale"))
    model.encoder.class_token.requires_grad_(False)  # by the user, who keeps it so
    assert not any(parameter is model.encoder.class_token for parameter in frozen_parameters(model, ("encoder",)))
    with pytest.raises(ValueError, match="freeze_epochs must be from 1"):
        Stage(freeze=("encoder",))
    with pytest.raises(ValueError, match="freeze_epochs must be from 1"):
        Stage(freeze_epochs=2)


def test_moving_average_of_the_weights(parts, tmp_path, monkeypatch):
    """The kept weights are e ← d e + (1 − d) θ after every step, from the first one's weights on."""
    decay, seen = 0.7, []
    end = Fitting.on_train_batch_end
    monkeypatch.setattr(
        Fitting,
        "on_train_batch_end",
        lambda self, *a: seen.append(self.model.head.hidden.weight.detach().clone()) or end(self, *a),
    )
    run = train(fresh(), replace(STAGE, ema=decay), *parts, out=tmp_path / "r", progress=False)
    average = seen[0]
    for value in seen[1:]:
        average = decay * average + (1 - decay) * value
    torch.testing.assert_close(weights(run)["head.hidden.weight"], average)
    assert not torch.equal(weights(run)["head.hidden.weight"], seen[-1])


def test_rates_are_in_the_history(fit):
    run = fit(schedule="constant", epochs=2)
    assert run.history["rate"].tolist() == [1e-3, 1e-3]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
def test_onednn_trains_to_the_same_weights_but_for_rounding(fit, monkeypatch):
    monkeypatch.setattr(fast, "_worth_it", lambda *_: True)
    options = {"optimizer": "sgd", "momentum": 0.0, "epochs": 2}
    plain, ours = fit(**options), fit(**options, onednn=True)
    assert list(ours.model.state_dict()) == list(plain.model.state_dict())
    state = torch.load(ours.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["state_dict"].keys() == {f"model.{name}" for name in plain.model.state_dict()}
    assert (96, 32) in map(tuple, state["callbacks"]["OneDNN"]["shapes"])
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(ours)[name], value, atol=1e-5, rtol=1e-4, msg=name)
    np.testing.assert_allclose(ours.predictions["q"], plain.predictions["q"], atol=1e-5, rtol=0)


def test_onednn_that_pays_nowhere_changes_nothing(fit, monkeypatch):
    monkeypatch.setattr(fast, "_worth_it", lambda *_: False)
    plain, ours = fit(), fit(onednn=True)
    assert all(torch.equal(weights(ours)[name], value) for name, value in weights(plain).items())
    pd.testing.assert_frame_equal(ours.history, plain.history)


def test_blocks_computed_anew_give_the_same_run(parts, tmp_path, monkeypatch):
    """All of it to the last bit, also where memory ran out, and the training goes on with the option."""
    config = replace(TINY, num_blocks=3, mlp_dropout=0.1, embedding_dropout=0.1, encoder_drop_path=0.2)
    seen = []

    def fit(folder, anew, stop=None):
        torch.manual_seed(11)
        model = VTAMIQ(config)
        step = Fitting.training_step

        def watched(self, batch, index):
            seen.append(self.model.encoder.recompute)
            if (self.current_epoch, index) == stop:
                raise MemoryError
            return step(self, batch, index)

        stage = vary(STAGE, epochs=2, gradient_checkpointing=anew, checkpoint_minutes=1e-9)
        with monkeypatch.context() as patch:
            patch.setattr(Fitting, "training_step", watched)
            run = train(model, stage, *parts, out=tmp_path / folder, progress=False)
        assert model.encoder.recompute is False
        return run

    plain, anew = fit("plain", False), fit("anew", True)
    assert seen == 12 * [False] + 12 * [True]
    with pytest.raises(MemoryError):
        fit("both", False, stop=(1, 2))
    both = fit("both", True)
    assert seen[24:] == 9 * [False] + 4 * [True]
    for run in (anew, both):
        pd.testing.assert_frame_equal(run.history, plain.history)
        pd.testing.assert_frame_equal(run.predictions, plain.predictions)
        assert all(torch.equal(weights(run)[name], value) for name, value in weights(plain).items())


@pytest.mark.parametrize("works", [True, False])
def test_compiled_blocks_train_to_the_same_weights(parts, tmp_path, monkeypatch, caplog, works):
    compiled, run = [], []

    def backend(graph, inputs):
        compiled.append(graph)
        if not works:
            raise RuntimeError("no compiler")
        return lambda *inputs: run.append(1) or graph.forward(*inputs)

    def fit(compile):
        torch.manual_seed(11)
        model = VTAMIQ(replace(TINY, num_blocks=2))  # the last one is not called as a whole
        return train(model, replace(STAGE, compile=compile), *parts, out=tmp_path / str(compile), progress=False)

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    torch._dynamo.reset()
    plain, ours = fit(False), fit(True)
    assert compiled
    assert (len(run) > 6) is works  # steps and validation
    assert ("no block is compiled" in caplog.text) is not works
    assert ours.model.encoder.blocks[0]._compiled_call_impl is None
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(ours)[name], value, atol=1e-5, rtol=1e-4, msg=name)
    state = torch.load(ours.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state.keys() == {f"model.{name}" for name in plain.model.state_dict()}


# ---- data -------------------------------------------------------------------------------------------------------


def test_pairs_without_an_error(parts):
    pairs = PairPatches(parts[0], CAPS(num_patches=5), labels=None, zero_error=1.0)
    assert torch.equal(*pairs[3]["patches"])
    labelled = parts[0].pairs.assign(rank_one=0.5)
    scale = LabelScale.fit(parts[0])
    half = PairPatches(
        replace(parts[0], pairs=labelled), CAPS(num_patches=5), labels=scale, auxiliary=("rank_one",), zero_error=0.5
    )
    items = [half[index] for index in range(20 * len(half))]
    copies = [bool((item["patches"][0] == item["patches"][1]).all()) for item in items]
    assert 0.4 < np.mean(copies) < 0.6
    for item, copy in zip(items, copies, strict=True):
        assert item["auxiliary"].item() == (0.0 if copy else 0.5)
        assert item["target"].item() == 0.0 or not copy


def test_versions_share_their_reference(parts, fit, monkeypatch):
    """Two versions in an item score as the two pairs do, and a batch of 8 pairs is 4 references with 2 versions each."""
    rich = replace(parts[0], pairs=parts[0].pairs.assign(rank_one=np.linspace(0, 1, len(parts[0]))))
    options = {"labels": LabelScale.fit(rich), "auxiliary": ["rank_one"], "distorted_per_reference": 2}
    data = PairPatches(rich, CAPS(num_patches=6), **options)
    batch = torch.utils.data.default_collate([data[k] for k in range(4)])
    fitting = Fitting(fresh().eval(), vary(STAGE, distorted_per_reference=2, auxiliary=("rank_one",)))
    with torch.no_grad():
        predicted, targets = fitting.predict_all(batch)
        for k, row in enumerate(batch["row"].flatten().tolist()):
            item, version = divmod(k, 2)
            pair = {name: batch[name][[item]] for name in ("patches", "uv", "scale")}
            pair |= {name: batch[name][[item], version] for name in ("target", "auxiliary")}
            pair["patches"] = pair["patches"][:, [0, 1 + version]]
            one, target = fitting.predict_all(pair)
            torch.testing.assert_close(predicted[[k]], one, rtol=1e-5, atol=1e-6)
            assert torch.equal(targets[[k]], target)
            assert target[0, 1] == pytest.approx(rich.pairs["rank_one"].iloc[row])

    seen = []
    step = Fitting.training_step
    monkeypatch.setattr(Fitting, "training_step", lambda self, batch, k: seen.append(batch) or step(self, batch, k))
    run = fit(distorted_per_reference=2, batch_size=8)
    assert [tuple(batch["patches"].shape[:2]) for batch in seen] == [(4, 3)] * 3
    assert run.history["step"].tolist() == [3]
    assert len(moved(run)) > 10


@pytest.fixture
def damaged(parts, tmp_path):
    """The same pairs, one training image cut off."""
    database = small_database(tmp_path / "damaged", references=10)
    training, validation, test = database.split(seed=1)
    path = database.root / training.pairs["dist_path"].iloc[5]
    path.write_bytes(path.read_bytes()[:200])
    return (training, validation, test), training.pairs["dist_path"].iloc[5]


def test_a_bad_image_stops_with_its_name(damaged, tmp_path):
    bad, path = damaged
    with pytest.raises(ImageError, match=path.replace(".", r"\.")):
        train(fresh(), STAGE, *bad, out=tmp_path / "r", progress=False)


def test_a_missing_reference_is_a_bad_image(damaged, tmp_path):
    (training, *others), cut_off = damaged
    reference = training.pairs["ref_path"].iloc[-1]
    (training.root / reference).unlink()
    with pytest.raises(ImageError, match=f"{reference}|{cut_off}"):
        train(fresh(), STAGE, training, *others, out=tmp_path / "r", progress=False)


def test_a_validation_without_an_order_is_told(parts, tmp_path, caplog):
    one = parts[1].subset(np.arange(len(parts[1])) == 2)
    run = train(fresh(), replace(STAGE, epochs=2), parts[0], one, parts[2], out=tmp_path / "r", progress=False)
    assert run.result["val_srocc"] is None
    assert run.result["best_epoch"] == 0
    assert any("no epoch could be told from another" in message for message in caplog.messages)


# ---- what is left -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adam"}, {"momentum": 1.0}, {"lr_scale": 0.0}, {"ema": 1.0},
        {"zero_error": 1.5}, {"kind": "ranks"}, {"checkpoint_minutes": 0.0},
        {"onednn": True, "compile": True}, {"distorted_per_reference": 0}, {"distorted_per_reference": 3},
        {"precision": "bf16-mixed", "onednn": True},
        {"loss": PreferenceLoss(), "distorted_per_reference": 2},
    ],
    ids=str,
)  # fmt: skip
def test_bad_options_are_refused(change):
    with pytest.raises(ValueError, match=f"(?i){list(change)[-1]}"):
        vary(Stage(), **change)
