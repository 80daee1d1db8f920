"""Chains of stages: what YAML may say and how it is refused, and that every stage starts where the one before ended."""

import logging
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.databases.test_schema import database, table
from tests.small import TINY, small_database, small_table, vary
from vtamiq.caps import CAPS
from vtamiq.databases.loading import load_from_text
from vtamiq.databases.schema import DatabaseError
from vtamiq.databases.splits import fold_split
from vtamiq.evaluation.correlation import correlations
from vtamiq.model.checkpoints import CheckpointError
from vtamiq.model.config import VTAMIQConfig
from vtamiq.model.initialise import start_from_scratch
from vtamiq.model.network import VTAMIQ
from vtamiq.training import chain as chain_module
from vtamiq.training.apart import launch
from vtamiq.training.chain import (
    Chain,
    Data,
    FoldSplit,
    RandomSplit,
    Step,
    check_chain,
    example,
    load_data,
    run_chain,
    start_model,
)
from vtamiq.training.stage import Optimizer, PreferenceLoss, Stage
from vtamiq.utils.configs import changed
from vtamiq.utils.digests import digest_weights

STAGE = Stage(
    caps=CAPS(num_patches=8), test_patches=8, num_draws=1, epochs=1, batch_size=8, optimizer=Optimizer(lr=1e-3)
)
DATABASE = "table:root=small:higher_better=false"


def chain_of(*steps, **changes):
    """A chain of small stages, each given as (name, Data fields)."""
    parts = [Step(Data(**{"database": DATABASE} | data), replace(STAGE, name=name)) for name, data in steps]
    return Chain(**{"model": TINY, "steps": tuple(parts), "accelerator": "cpu"} | changes)


TWO = chain_of(("first", {"split": "all"}), ("second", {"database": f"{DATABASE}:name=other"}))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    assert small_table(folder / "small", references=10, levels=2) == DATABASE
    small_table(folder / "others", references=5)
    return folder


@pytest.fixture(scope="module")
def apart():
    """Two stages of one database whose parts agree, so that nothing has to be left out."""
    return chain_of(("first", {"seed": 3}), ("second", {"seed": 3}))


@pytest.fixture(scope="module")
def done(root, apart, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "chain"
    return run_chain(apart, out, root=root, progress=False), out


# ---------------------------------------------------------------------------------------------------------------- YAML


class TestYAML:
    @settings(max_examples=12, deadline=None)
    @given(
        rate=st.floats(1e-9, 1e9),
        ratios=st.sampled_from([(0.6, 0.2, 0.2), (1 / 3, 1 / 3, 1 / 3), (0.1 + 0.2, 0.3, 0.4)]),
        database=st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip),
        seed=st.integers(0, 2**40),
        model=st.sampled_from([{}, TINY, {"std": [0.1, 0.2, 0.3]}]),
    )
    def test_round_trip_is_exact(self, tmp_path_factory, rate, ratios, database, seed, model):
        steps = (
            Step(Data(database, RandomSplit(ratios=ratios), seed=seed), vary(STAGE, lr=rate)),
            Step(Data(database, FoldSplit(folds=4, fold=3), seed=seed)),
        )
        chain = Chain(model=model, seed=seed, steps=steps)
        path = tmp_path_factory.mktemp("yaml") / "a.yaml"
        chain.save(path)
        assert Chain.load(path) == chain

    def test_a_configuration_is_kept_as_what_differs_from_the_default(self):
        chain = chain_of(("a", {}))
        assert chain.model["width"] == 32
        assert "mlp_dropout" not in chain.model
        assert VTAMIQConfig(**chain.model) == TINY

    def test_defaults(self, tmp_path):
        (tmp_path / "a.yaml").write_text(
            "steps: [{data: {database: tid2013}, stage: {epochs: 3, optimizer: {lr: 1e-4}}}]"
        )
        chain = Chain.load(tmp_path / "a.yaml")
        assert chain == Chain(steps=(Step(Data("tid2013"), Stage(epochs=3, optimizer=Optimizer(lr=1e-4))),))
        assert chain.folders == ["00_fine_tuning"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("steps: [{data: {database: a}}, {data: {database: b}, stage: {schedule: {warm_up: 1}}}]",
             "steps[1].stage.schedule.warm_up: Schedule has no field `warm_up`; did you mean `warmup`?"),
            ("steps: [{data: {database: a}, stage: {learning_rate: 1e-4}}]",
             "steps[0].stage.learning_rate is now `optimizer.lr`"),
            ("steps: [{data: {database: a}, stage: {mae: 1.0}}]", "steps[0].stage.mae is now `loss.mae_weight`"),
            ("stepps: []", "stepps: Chain has no field `stepps`; did you mean `steps`?"),
            ("steps: [{data: {database: a}, stage: {epochs: many}}]", "steps[0].stage.epochs must be int, got 'many'"),
            ("steps: [{data: {database: a}, stage: {optimizer: {lr: 0}}}]", "steps[0].stage.optimizer.lr must be positive"),
            ("steps: [{data: {database: a}, stage: {loss: {kind: ranks}}}]",
             "steps[0].stage.loss.kind must be one of scores, preferences, got 'ranks'"),
            ("steps: [{data: {database: a}, stage: {loss: {kind: preferences, mae_weight: 1}}}]",
             "steps[0].stage.loss.mae_weight: PreferenceLoss has no field `mae_weight`"),
            ("steps: [{data: {database: a}, stage: {optimizer: muon}}]",
             "steps[0].stage.optimizer is now `optimizer.name`"),
            ("steps: [{data: {database: a}, stage: {loss: 3}}]",
             "steps[0].stage.loss must be ScoreLoss | PreferenceLoss, got 3"),
            ("steps: [{data: {database: a}, stage: {epochs: 0}}]", "steps[0].stage.epochs must be at least 1, got 0"),
            ("steps: [{data: {database: a}, stage: {caps: {patches: 3}}}]", "steps[0].stage.caps.patches: CAPS has no"),
            ("steps: [{data: {database: a, split: randon}}]", "steps[0].data.split must be one of random, folds, dist"),
            ("steps: [{data: {database: a, ratios: [0.8, 0.2]}}]", "steps[0].data.split.ratios must be three"),
            ("steps: [{data: {database: a, split: folds, fold: 5}}]", "steps[0].data.split.fold must be from 0 to"),
            ("steps: [{data: {database: a, fold: 3}}]",
             "steps[0].data.fold: Data has no field `fold`"),
            ("steps: [{data: {database: a, split: original, folds: 4}}]",
             "steps[0].data.folds: Data has no field `folds`"),
            ("steps: [{data: {database: a, split: folds, ratios: [0.8, 0.1, 0.1]}}]",
             "steps[0].data.ratios: Data has no field `ratios`"),
            ("steps: [{data: {database: ''}}]", "steps[0].data.database must name a database"),
            ("steps: [{stage: {epochs: 1}}]", "steps[0].data is missing: a step needs a database"),
            ("steps: [{data: {database: a}, stage: {name: a/b}}]", "steps[0].stage.name is part of a folder's name"),
            ("steps: [{data: {database: a, simulate: 3}}]", "steps[0].data.simulate is for stages with loss"),
            ("steps: [{data: {database: a}}]\nmodel: {num_group: 1}", "model.num_group: VTAMIQConfig has no field"),
            ("steps: [{data: {database: a}}]\nmodel: {num_groups: -1}", "model.num_groups must not be negative, got -1"),
            ("steps: [{data: {database: a}}]\ndevices: 0", "devices must be at least 1, or -1 for all there are, got 0"),
            ("steps: [3]", "steps must be"),
            ("steps: {}", "steps must be"),
            ("", "steps must have at least one step"),
            ("- 1", "Chain is made from named values, got [1]"),
            ("seed: 1\nseed: 2", "line 2, column 1: `seed` stands twice"),
            ("seed: [", "line 1, column 8: "),
            ("? [1, 2]\n: 3", "line 1, column 3: "),
            ("1: 2", "1: Chain has no field `1`"),
        ],
    )  # fmt: skip
    def test_errors_name_file_and_place(self, text, message, tmp_path):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"run\.yaml") as error:
            Chain.load(path)
        assert str(error.value).startswith(f"{path}: {message}")

    @pytest.mark.parametrize(
        ("text", "split"),
        [
            ("split: random, ratios: [0.5, 0.3, 0.2], folds: 5, fold: 0", RandomSplit(ratios=(0.5, 0.3, 0.2))),
            ("ratios: [0.5, 0.3, 0.2]", RandomSplit(ratios=(0.5, 0.3, 0.2))),
            ("split: folds, ratios: [0.6, 0.2, 0.2], folds: 4, fold: 3", FoldSplit(folds=4, fold=3)),
            ("split: original, ratios: [0.6, 0.2, 0.2], folds: 5, fold: 0", "original"),
            ("split: {kind: folds, fold: 2}, folds: 3", FoldSplit(folds=3, fold=2)),
        ],
    )
    def test_settings_may_stand_beside_their_split(self, text, split, tmp_path):
        """As in the files that a run folder of 2025 has, which name the settings of every split."""
        (tmp_path / "a.yaml").write_text(f"steps: [{{data: {{database: a, {text}}}}}]")
        assert Chain.load(tmp_path / "a.yaml").steps[0].data == Data("a", split)

    def test_files_that_are_no_text_or_not_there(self, tmp_path):
        (tmp_path / "a.yaml").write_bytes(b"seed: \xff\xfe")
        with pytest.raises(ValueError, match=r"a\.yaml"):
            Chain.load(tmp_path / "a.yaml")
        with pytest.raises(FileNotFoundError):
            Chain.load(tmp_path / "b.yaml")

    def test_the_example_loads(self, tmp_path):
        text = example()
        (tmp_path / "run.yaml").write_text(text)
        chain = Chain.load(tmp_path / "run.yaml")
        assert [step.data.database.partition(":")[0] for step in chain.steps] == ["kadis700k", "pieapp", "tid2013"]
        assert chain.start == "timm"
        assert chain.folders == ["00_weak_pretraining", "01_preferences", "02_fine_tuning"]


class TestChanged:
    @pytest.mark.parametrize(
        ("name", "value", "read"),
        [
            ("seed", 4, lambda c: c.seed),
            ("steps.-1.stage.caps.num_patches", 64, lambda c: c.steps[1].stage.caps.num_patches),
            ("steps[1].data.split.ratios", (0.5, 0.25, 0.25), lambda c: c.steps[1].data.split.ratios),
            ("steps.1.data.ratios", [0.5, 0.25, 0.25], lambda c: list(c.steps[1].data.split.ratios)),
            ("steps.1.data.split", "original", lambda c: c.steps[1].data.split),
            ("model.num_groups", 0, lambda c: c.model["num_groups"]),
            ("model.mlp_dropout", 0.5, lambda c: c.model["mlp_dropout"]),  # not among the fields that were given
        ],
    )
    def test_one_value(self, name, value, read):
        other = changed(TWO, {name: value})
        assert read(other) == value != read(replace(TWO, model={"mlp_dropout": 0} | TWO.model))
        assert changed(TWO, {}) == TWO

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("steps.0.stage.epoch", r"steps\[0\].stage.epoch: Stage has no field `epoch`; did you mean `epochs`"),
            ("steps.0.stag.epochs", "steps.0.stag.epochs: there is no `stag`; did you mean `stage`"),
            ("steps.2.stage.epochs", "steps.2.stage.epochs: `2` must be a number from 0 to 1"),
            ("steps.x.stage", "`x` must be a number"),
            ("seed.a", "nothing below the value before `a`"),
            ("model.group", "model.group: VTAMIQConfig has no field"),
            ("steps.0.stage.epochs", "steps.0..stage.epochs must be int"),
        ],
    )
    def test_refusals(self, name, message):
        with pytest.raises(ValueError, match=message):
            changed(TWO, {name: "text"})


# ---------------------------------------------------------------------------------------------------------------- data


class TestData:
    def test_named_in_one_line(self, root):
        named = load_from_text("table:root=small:higher_better=false:name=mine", root)
        assert (named.name, len(named), named.root) == ("mine", 20, root / "small")
        assert load_from_text(DATABASE, root, name="mine").name == "mine"
        with pytest.raises(DatabaseError, match=r"unknown database 'tid213'; did you mean"):
            load_from_text("tid213", root)
        with pytest.raises(DatabaseError, match=r"table:colour=red: .*colour"):
            load_from_text("table:colour=red", root, root=root)
        with pytest.raises(DatabaseError, match="the value cannot be read"):
            load_from_text("table:a=[", root)
        with pytest.raises(DatabaseError, match="expected NAME=VALUE, got 'colour'"):
            load_from_text("table:colour", root)

    def test_demo(self):
        database = load_data(Data("demo:photos:preset=smoke", label="gmsd"))
        assert database.score_name == "synthetic score (GMSD alone)"
        assert database.preferences is not None
        parts = Data("demo:photos:preset=smoke", split="distributed").parts(database)
        assert [part.references for part in parts] == [["I01", "I02"], ["I03"], ["I04"]]
        by_folder = load_data(Data(database.root.name), database.root.parent)
        assert by_folder.pairs["dist_path"].tolist() == database.pairs["dist_path"].tolist()
        with pytest.raises(DatabaseError, match="unknown demo database 'photo'"):
            load_data(Data("demo:photo"))
        with pytest.raises(DatabaseError, match="demo:photos:colour=red"):
            load_data(Data("demo:photos:colour=red"))

    def test_preferences_are_simulated(self):
        data = Data("demo:photos:preset=smoke", simulate=3, seed=1)
        preferences = load_data(data).preferences
        assert preferences.groupby("ref_id").size().tolist() == [3, 3, 3, 3]
        assert not load_data(replace(data, seed=2)).preferences.equals(preferences)

    def test_splits(self, tmp_path):
        database = small_database(tmp_path, references=10, levels=1)
        assert [p.references for p in Data("x", seed=4).parts(database)] == [
            p.references for p in database.split(seed=4)
        ]
        training, validation, test = Data("x", split="all", validation=0.3, seed=4).parts(database)
        assert test is None
        assert [len(training), len(validation)] == [7, 3]
        with pytest.raises(DatabaseError, match="not distributed with"):
            Data("x", split="distributed").parts(database)
        with pytest.raises(DatabaseError, match="no fixed split"):
            Data("x", split="original").parts(database)
        subset = np.where(database.pairs["ref_id"] < "r7", "train", "test")
        pairs = database.pairs.assign(subset=pd.array(subset, dtype="str"))
        two = replace(database, pairs=pairs)
        training, validation, test = Data("x", split="distributed", validation=0.3).parts(two)
        assert test.references == ["r7", "r8", "r9"]
        assert len(validation) == 2
        assert sorted(training.references + validation.references) == [f"r{k}" for k in range(7)]

    @settings(max_examples=30, deadline=None)
    @given(contents=st.integers(4, 14), folds=st.integers(2, 6), seed=st.integers(0, 99), twins=st.booleans())
    def test_every_content_is_tested_in_one_fold(self, contents, folds, seed, twins):
        database = made(contents, twins)
        folds = min(folds, contents)
        tested = []
        for fold in range(folds):
            try:
                parts = fold_split(database, folds, fold, validation=0.34, seed=seed)
            except DatabaseError:
                assert contents - -(-contents // folds) < 3  # no third of fewer than three contents
                return
            names = [set(part.contents.values()) for part in parts]
            assert sum(map(len, names)) == contents == len(set.union(*names))
            assert sum(map(len, parts)) == len(database)
            tested += sorted(names[2])
            assert len(names[1]) == int(0.34 * (contents - len(names[2])) + 1e-9)
        assert sorted(tested) == sorted(set(database.contents.values()))

    def test_folds_that_cannot_be(self):
        for folds, fold in ((1, 0), (9, 0), (3, 3), (3, -1)):
            with pytest.raises(DatabaseError, match="8 contents: folds must be"):
                fold_split(made(8, False), folds, fold)


def made(contents, twins):
    """A database without files: two pairs of each reference, and two references of each content if there are twins."""
    pairs = table(contents * (2 if twins else 1), 2, database="toy")
    if twins:
        of = {ref_id: f"c{k // 2}" for k, ref_id in enumerate(pairs["ref_id"].unique())}
        pairs = pairs.assign(content=pairs["ref_id"].map(of).astype("str"))
    return database(pairs, name="toy")


# --------------------------------------------------------------------------------------------------------------- start


class TestStart:
    def test_random_weights_are_those_of_the_seed(self):
        before = torch.random.get_rng_state()
        chain = chain_of(("a", {}), seed=5)
        one, same, other = (start_model(c) for c in (chain, chain, replace(chain, seed=6)))
        assert torch.equal(torch.random.get_rng_state(), before)
        assert digest_weights(one) == digest_weights(same) != digest_weights(other)
        torch.manual_seed(5)
        assert digest_weights(one) == digest_weights(start_from_scratch(VTAMIQ(TINY), 5))

    def test_from_a_folder(self, tmp_path):
        model = VTAMIQ(TINY)
        model.seen = ({"database": "x", "contents": ["a"], "pictures": []},)
        model.save_pretrained(tmp_path / "m")
        chain = chain_of(("a", {}), start="m", model={})
        same = start_model(chain, tmp_path)
        assert (digest_weights(same), same.config) == (digest_weights(model), TINY)
        other = start_model(replace(chain, model={"head_dropout": 0.5}), tmp_path)
        assert (digest_weights(other), other.config.head_dropout) == (digest_weights(model), 0.5)
        assert other.seen == model.seen
        with pytest.raises(CheckpointError, match="m: its weights do not fit a model with other width"):
            start_model(replace(chain, model={"width": 64}), tmp_path)
        with pytest.raises(CheckpointError, match=r"^start: .*nowhere"):
            check_chain(replace(chain, start="nowhere"), root=tmp_path)
        with pytest.raises(CheckpointError, match="no such file"):
            start_model(replace(chain, start="no.npz"), tmp_path)

    def test_from_a_file_of_the_authors(self, tmp_path, monkeypatch):
        (tmp_path / "a.pth").write_bytes(b"no checkpoint")
        chain = chain_of(("a", {}), start="a.pth", model={"zero_anchor": True})
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            start_model(chain, tmp_path)
        monkeypatch.setattr(VTAMIQ, "from_original", lambda path, **changes: (path, changes))
        assert start_model(chain, tmp_path) == (tmp_path / "a.pth", {"zero_anchor": True})

    def test_from_a_vit(self, tmp_path, monkeypatch):
        monkeypatch.setattr(VTAMIQ, "from_vit", lambda config, pretrained: (config, pretrained))
        assert start_model(chain_of(("a", {}), start="timm")) == (TINY, True)
        assert start_model(chain_of(("a", {}), start="v.npz"), tmp_path) == (TINY, tmp_path / "v.npz")


# ----------------------------------------------------------------------------------------------------------------- runs


class TestRun:
    def test_every_stage_starts_from_the_best_of_the_one_before(self, done, apart):
        runs, _ = done
        assert [run.stage.name for run in runs] == ["first", "second"]
        assert runs[0].record["start"] == digest_weights(start_model(apart))
        assert runs[1].record["start"] == digest_weights(runs[0].model)
        assert digest_weights(runs[1].model) != digest_weights(runs[0].model)
        assert [entry["database"] for entry in runs[1].model.seen] == ["small"] * 4

    def test_what_is_written(self, done, apart):
        runs, out = done
        assert Chain.load(out / "chain.yaml") == apart
        table = pd.read_csv(out / "chain.csv")
        assert table["folder"].tolist() == ["00_first", "01_second"]
        assert table["start"].tolist() == ["random", "00_first"]
        assert table[["train", "val", "test", "n"]].to_numpy().tolist() == [[12, 4, 4, 4]] * 2
        for row, run in zip(table.to_dict("records"), runs, strict=True):
            test = run.predictions.query("split == 'test'")
            expected = correlations(test["q"], test["score"], higher_better=False)
            for name in ("srocc", "krocc", "plcc", "rmse", "plcc_fitted", "rmse_fitted"):
                assert row[name] == pytest.approx(expected[name], abs=1e-12, nan_ok=True)
            assert row["val_srocc"] == pytest.approx(run.history["val_srocc"].max())
        # Both stages have the same test rows and patches: the second starts with what the first ended with.
        assert table["srocc_start"][1] == pytest.approx(table["srocc"][0])
        assert table["srocc_gain"][1] == table["srocc"][1] - table["srocc_start"][1]

    def test_again_nothing_is_trained(self, done, apart, root, monkeypatch):
        runs, out = done
        before = (out / "chain.csv").read_bytes()
        monkeypatch.setattr("vtamiq.training.run._fit", None)
        again = run_chain(apart, out, root=root, progress=False)
        assert [digest_weights(run.model) for run in again] == [digest_weights(run.model) for run in runs]
        assert (out / "chain.csv").read_bytes() == before

    def test_what_is_changed_is_refused_and_what_was_added_is_trained(self, done, apart, root, tmp_path):
        out = tmp_path / "chain"
        shutil.copytree(done[1], out)
        later = changed(apart, {"steps.1.stage.optimizer.lr": 2e-3})
        with pytest.raises(ValueError, match=r"01_second holds another run .other stage"):
            run_chain(later, out, root=root, progress=False)
        assert Chain.load(out / "chain.yaml") == apart
        longer = replace(apart, steps=(*apart.steps, replace(apart.steps[1], stage=replace(STAGE, name="third"))))
        runs = run_chain(longer, out, root=root, progress=False)
        assert runs[2].record["start"] == digest_weights(done[0][1].model)
        assert Chain.load(out / "chain.yaml") == longer

    def test_interrupted_stage_goes_on(self, done, apart, root, tmp_path, monkeypatch):
        run = chain_module.train

        def train(model, stage, *parts, **options):
            if stage.name == "second":
                raise KeyboardInterrupt
            return run(model, stage, *parts, **options)

        with monkeypatch.context() as patch:
            patch.setattr(chain_module, "train", train)
            with pytest.raises(KeyboardInterrupt):
                run_chain(apart, tmp_path / "out", root=root, progress=False)
        assert pd.read_csv(tmp_path / "out/chain.csv")["name"].tolist() == ["first"]
        runs = run_chain(apart, tmp_path / "out", root=root, progress=False)
        assert digest_weights(runs[1].model) == digest_weights(done[0][1].model)

    def test_run_options_are_handed_on(self, root, tmp_path, monkeypatch, apart):
        class Called(Exception):
            pass

        def train(*_, **options):
            raise Called(options)

        monkeypatch.setattr(chain_module, "train", train)
        chain = replace(apart, devices=2, num_nodes=2, strategy="ddp")
        with pytest.raises(Called) as called:
            run_chain(chain, tmp_path / "out", root=root, progress=False)
        options = called.value.args[0]
        assert {name: options[name] for name in ("accelerator", "devices", "num_nodes", "strategy")} == {
            "accelerator": "cpu", "devices": 2, "num_nodes": 2, "strategy": "ddp"
        }  # fmt: skip

    @pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"])
    def test_only_the_first_process_writes(self, name, root, apart, done, tmp_path, monkeypatch):
        monkeypatch.setenv(name, "1")
        monkeypatch.setattr(chain_module, "train", lambda *_, out, **__: done[0][int(out.name[:2])])
        run_chain(replace(apart, devices=2), tmp_path / "out", root=root, progress=False)
        assert not (tmp_path / "out").exists()
        run_chain(apart, tmp_path / "alone", root=root, progress=False)  # one of many of its own, not one of a group
        assert (tmp_path / "alone" / "chain.csv").is_file()


class TestUnseen:
    def test_no_picture_is_tested_that_an_earlier_stage_saw(self, root, caplog):
        chain = chain_of(("first", {"seed": 1}), ("second", {"seed": 3}))
        with caplog.at_level(logging.WARNING):
            first, second = chain_module._plan(chain, start_model(chain), lambda data: load_data(data, root))
        full = Data(DATABASE, seed=3).parts(load_data(Data(DATABASE), root))
        saw = set(first.training.references) | set(first.validation.references)
        assert second.training.references == full[0].references
        assert second.test.references == [r for r in full[2].references if r not in saw]
        assert second.validation.references == [r for r in full[1].references if r not in first.training.references]
        assert 0 < second.about["left_out"] == len(full[2]) - len(second.test)
        assert f"steps[1] (second): {second.about['left_out']} of 4 test pairs of small are left out" in caplog.text

    def test_pictures_are_known_in_another_database(self, root):
        with pytest.raises(
            DatabaseError, match=r"steps\[1\] \(second\): an earlier stage has seen every picture of the"
        ):
            check_chain(TWO, root=root)

    def test_without_a_test_nothing_is_missed(self, root):
        chain = chain_of(("first", {"split": "all", "seed": 1}), ("second", {"split": "all", "seed": 1}))
        table = check_chain(chain, root=root)
        assert table[["train", "val", "test", "left_out"]].to_numpy().tolist() == [[16, 4, 0, 0]] * 2

    def test_what_the_start_has_seen_counts(self, done, root, apart, tmp_path):
        runs, _ = done
        chain = chain_of(("more", {"seed": 3}), start=str(runs[0].folder), model={})
        assert check_chain(chain, root=root)[["val", "test", "left_out"]].to_numpy().tolist() == [[4, 4, 0]]
        other = changed(chain, {"steps.0.data.seed": 10})
        assert check_chain(other, root=root)["left_out"].item() > 0

    def test_what_the_start_was_trained_on_is_not_validated_on(self, done, root, apart):
        """A chain that begins where another one ended is the second half of one chain."""
        runs, _ = done
        assert [entry["role"] for entry in runs[1].model.seen] == ["train", "val"] * 2
        chain = chain_of(("more", {"seed": 10}), start=str(runs[0].folder), model={})
        (alone,) = chain_module._plan(chain, start_model(chain), lambda data: load_data(data, root))
        whole = changed(apart, {"steps.1.data.seed": 10})
        second = chain_module._plan(whole, start_model(whole), lambda data: load_data(data, root))[1]
        full = Data(DATABASE, seed=10).parts(load_data(Data(DATABASE), root))[1]
        assert alone.validation.references == second.validation.references != full.references
        assert alone.test.references == second.test.references

    def test_an_unknown_past_and_a_common_source_are_told(self, root, caplog, tmp_path):
        model = VTAMIQ(TINY)
        model.seen = None
        model.save_pretrained(tmp_path / "m")
        chain = chain_of(("a", {"database": f"{DATABASE}:name=tid2013", "split": "all"}),
                         ("b", {"database": "table:root=others:higher_better=false:name=live"}),
                         start=str(tmp_path / "m"), model={})  # fmt: skip
        # The first five pictures are the same files in both folders, so that only a name can be tested here.
        monkey = pytest.MonkeyPatch()
        with monkey.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(chain_module, "unseen", lambda part, seen: part)
            check_chain(chain, root=root)
        assert "not known which pictures" in caplog.text
        assert "live has pictures from the same source as tid2013 (Kodak)" in caplog.text


class TestCheck:
    def test_says_what_would_be_trained(self, root, apart):
        table = check_chain(apart, root=root)
        assert table["folder"].tolist() == ["00_first", "01_second"]
        assert table[["train_references", "val_references", "test_references"]].to_numpy().tolist() == [[6, 2, 2]] * 2
        assert table["parameters"][0] == sum(p.numel() for p in VTAMIQ(TINY).parameters())

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"steps.1.data.database": "nowhere"}, r"steps\[1\] \(second\): unknown database 'nowhere'"),
            ({"steps.1.data.split": "distributed"}, r"steps\[1\] \(second\): small is not distributed"),
            ({"steps.1.data.label": "vsi"}, r"steps\[1\] \(second\): table:.*label"),
            ({"steps.1.stage.loss.auxiliary": ["rank_vsi"]}, "small has no column 'rank_vsi' to learn"),
            ({"steps.1.data.database": "table:root=small:score=null"}, "20 of|rows have no score"),
        ],
    )
    def test_what_is_wrong_at_the_end_is_found_at_the_beginning(self, settings, message, root, apart, tmp_path):
        with pytest.raises(DatabaseError, match=message):
            run_chain(changed(apart, settings), tmp_path / "out", root=root, progress=False)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"steps.1.stage.freeze": ["encoder.block"], "steps.1.stage.freeze_epochs": 1},
             "freeze: the model has no 'encoder.block' that learns; parts are names such as "),
            ({"steps.1.stage.distorted_per_reference": 4}, "distorted_per_reference=4, but images/r0.png has 2"),
            ({"steps.1.stage.caps.centre_map": "none.npy"}, "centre_map 'none.npy' cannot be read as a .npy array: "),
            ({"devices": 3, "steps.0.stage.batch_size": 9},
             "batch_size=8: 8 items cannot be shared evenly by 3 devices"),
            ({"devices": 4, "steps.1.stage.distorted_per_reference": 2, "steps.1.stage.batch_size": 4},
             "batch_size=4: 2 items of 2 distorted images each cannot be shared evenly by 4 devices"),
            ({"devices": 4, "steps.1.stage.batch_size": 16},
             "12 training and 4 validation rows are too few for batches of 16 on 4 devices"),
        ],
    )  # fmt: skip
    def test_settings_that_a_later_stage_would_stop_at(self, settings, message, root, apart, tmp_path):
        for act in (check_chain, lambda chain, root: run_chain(chain, tmp_path / "out", root=root, progress=False)):
            with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole beginning is compared
                act(changed(apart, settings), root=root)
            assert str(error.value).startswith(f"steps[1] (second): {message}")
        assert not (tmp_path / "out").exists()


class TestPreferences:
    def preferring(self, *, before=False, **data):
        photos = Data(**{"database": "demo:photos:preset=smoke", "split": "distributed", "simulate": 6} | data)
        last = Step(photos, vary(STAGE, name="preferences", loss=PreferenceLoss()))
        first = Step(replace(photos, simulate=0), replace(STAGE, name="weak"))
        return Chain(model=TINY, steps=(first, last) if before else (last,), accelerator="cpu")

    def test_from_scores_to_preferences(self, tmp_path):
        weak, run = run_chain(self.preferring(before=True), tmp_path / "out", progress=False)
        assert run.record["start"] == digest_weights(weak.model)
        assert run.model.config.preference_weight != weak.model.config.preference_weight
        table = pd.read_csv(tmp_path / "out" / "chain.csv")
        assert table["labels"].tolist() == ["scores", "preferences"]
        assert table["preferences"].tolist() == [0, 12]  # six for each of two references
        assert table["n"].gt(0).all()
        assert table["synthetic"].all()

    def test_a_database_without_any_is_refused(self, root, tmp_path):
        with pytest.raises(
            DatabaseError, match=r"steps\[0\] \(preferences\): small has no preferences; `simulate: 200`"
        ):
            check_chain(self.preferring(database=DATABASE, split="random", simulate=0), root=root)


# -------------------------------------------------------------------------------------------- a process of its own


class TestLaunch:
    def test_two_devices_from_a_process_that_cannot_be_started_again(self, root, apart, tmp_path):
        """As a notebook does: the stages are trained elsewhere, and their runs are read here."""
        lines = []
        runs = launch(changed(apart, {"devices": 2}), tmp_path / "chain", root=root, report=lines.append)
        assert [run.stage.name for run in runs] == ["first", "second"]
        assert all(len(run.history) == 1 for run in runs)
        assert runs[1].record["start"] == digest_weights(runs[0].model)
        assert lines == (tmp_path / "chain" / "log.txt").read_text().splitlines()
        assert len(pd.read_csv(tmp_path / "chain" / "chain.csv")) == 2

    def test_what_went_wrong_there_is_said_here(self, root, tmp_path):
        broken = chain_of(("first", {"database": "table:root=nowhere:higher_better=false"}))
        with pytest.raises(RuntimeError, match="nowhere"):
            launch(broken, tmp_path / "chain", root=root)
