"""Ablations: variants by name, what is scored, and every number of the tables by hand."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student_t
from scipy.stats import ttest_rel

from tests.small import TINY, small_database, small_table
from vtamiq.caps import CAPS, caps_for
from vtamiq.databases.pairs import PairImages
from vtamiq.lab import ablation
from vtamiq.lab.ablation import (
    PRESET_VARIANTS,
    SAMPLINGS,
    VARIANTS,
    choose_variants,
    component_table,
    count_seconds,
    count_table,
    run_predictions,
    score_counts,
    variant_costs,
)
from vtamiq.lab.presets import PRESETS
from vtamiq.model.complexity import cost_table
from vtamiq.model.config import VTAMIQConfig
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring.predictions import predict
from vtamiq.training.chain import Chain, Data, Step, load_data
from vtamiq.training.repeats import compare, run_many
from vtamiq.training.stage import Optimizer, Stage
from vtamiq.utils.configs import changed

STAGE = Stage(
    caps=CAPS(num_patches=8), test_patches=8, num_draws=1, epochs=1, batch_size=8, optimizer=Optimizer(lr=1e-3)
)
CHAIN = Chain(model=TINY, steps=(Step(Data("table:root=small:higher_better=false"), STAGE),), accelerator="cpu")
LAST = "steps.-1.stage."


class TestVariants:
    @pytest.mark.parametrize("name", list(VARIANTS))
    def test_each_is_another_chain_whose_network_builds(self, name):
        one = changed(CHAIN, VARIANTS[name])
        assert (one == CHAIN) == (name in (ablation.BASE, "1 block"))  # the tiny network has one block
        model = VTAMIQ(VTAMIQConfig(**one.model))
        caps_for(model, one.steps[-1].stage.caps)
        if name.endswith(("block", "blocks")):
            assert len(model.encoder.blocks) == int(name.split()[0])

    def test_the_other_backbone_is_another_network(self):
        model = VTAMIQ(VTAMIQConfig(**changed(CHAIN, VARIANTS["CLIP ViT/32"]).model))
        assert (model.encoder.patch_size, VTAMIQ(TINY).encoder.patch_size) == (32, 16)

    @pytest.mark.parametrize("preset", list(PRESETS))
    def test_each_preset_has_a_list(self, preset):
        chosen = choose_variants("", preset)
        assert list(chosen) == ["base", *PRESET_VARIANTS[preset]]
        assert all(chosen[name] == VARIANTS[name] for name in chosen)

    def test_text(self):
        text = " no DiffNet, caps.num_patches=32,1 block and  no registers ,model.layer_scale=false"
        text += ", stage.loss.mae_weight=0.5,base"
        assert choose_variants(text) == {
            "base": {},
            "no DiffNet": {"model.num_groups": 0},
            "caps.num_patches=32": {LAST + "caps.num_patches": 32},
            "1 block and no registers": {"model.num_blocks": 1, "model.num_registers": 0},
            "model.layer_scale=false": {"model.layer_scale": False},
            "stage.loss.mae_weight=0.5": {LAST + "loss.mae_weight": 0.5},
        }

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("no Diffnet", "no variant 'no Diffnet'; did you mean `no DiffNet`?"),
            ("uniform,1 block,uniform", "named twice"),
            ("base,base", "named twice"),
            ("1 block and 2 blocks", "sets model.num_blocks twice"),
            ("=3", "expected NAME=VALUE"),
        ],
    )
    def test_refused(self, text, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            choose_variants(text)

    def test_costs(self):
        variants = choose_variants("no DiffNet,2 blocks,caps.num_patches=4")
        table = variant_costs(CHAIN, variants).set_index("variant")
        for name, config in {
            "base": TINY,
            "no DiffNet": replace(TINY, num_groups=0),
            "2 blocks": replace(TINY, num_blocks=2),
        }.items():
            total = cost_table(VTAMIQ(config), 8).iloc[-1]
            assert tuple(table.loc[name]) == (config.num_blocks, total["parameters"], total["gflops"])
        assert tuple(table.loc["caps.num_patches=4"]) == tuple(table.loc["base"])  # tested with as many as before


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_database(tmp_path_factory.mktemp("pairs"), references=3, levels=2)


class TestCounts:
    def test_every_pair_with_every_number_and_draw(self, small):
        model = VTAMIQ(TINY).eval()
        samplings = {name: caps_for(model, **changes) for name, changes in SAMPLINGS.items()}
        table = score_counts(model, small, samplings, [4, 8], draws=2, seed=3, progress=False)
        assert len(table) == len(small) * 3 * 2 * 2
        keys = ["sampling", "num_patches", "draw"]
        assert table.groupby(keys).size().eq(len(small)).all()
        for (name, count, draw), rows in table.groupby(keys):
            caps = replace(samplings[name], num_patches=count)
            alone = predict(model, small, caps, seed=3 + draw, progress=False)["q"]
            np.testing.assert_allclose(rows["q"], alone, atol=1e-6)  # the number of threads may round otherwise
        assert table.groupby(["ref_path", "dist_path"])["q"].nunique().gt(6).all()  # the settings differ

    def test_threads_do_not_show(self, small):
        """And are as many afterwards as before."""
        model, before = VTAMIQ(TINY).eval(), torch.get_num_threads()
        try:
            tables = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                tables.append(score_counts(model, small, {"a": caps_for(model)}, [8], progress=False))
                assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        pd.testing.assert_frame_equal(*tables, check_exact=True)

    @pytest.mark.parametrize(
        ("counts", "draws", "message"), [([], 2, "once each"), ([4, 4], 2, "once each"), ([4], 1, "at least 2")]
    )
    def test_refused(self, small, counts, draws, message):
        with pytest.raises(ValueError, match=message):
            score_counts(VTAMIQ(TINY), small, {"a": CAPS()}, counts, draws=draws)

    def test_table_by_hand(self):
        """Four pairs, two draws: one in the right order, one with the first two swapped (SROCC 0.8)."""
        first, second = np.array([1.0, 2, 3, 4]), np.array([2.0, 1, 3, 4])
        table = count_table(count_rows(first, second), VTAMIQ(TINY), bootstrap=200)
        assert len(table) == 1
        row = table.iloc[0]
        assert row["srocc"] == pytest.approx(0.9)
        assert row["srocc_std"] == pytest.approx(0.2 / np.sqrt(2))
        between = np.sqrt(np.mean([0.5, 0.5, 0, 0]))
        assert row["spread"] == pytest.approx(between / np.std([1.5, 1.5, 3, 4], ddof=1))
        assert row["gflops"] == cost_table(VTAMIQ(TINY), 8)["gflops"].iloc[-1]
        assert (row["n"], row["draws"], row["synthetic"]) == (4, 2, True)
        assert row["srocc_low"] <= row["srocc"] <= row["srocc_high"]

    def test_no_spread_where_draws_agree(self):
        q = np.array([1.0, 2, 3, 4])
        row = count_table(count_rows(q, q), VTAMIQ(TINY), bootstrap=0).iloc[0]
        assert (row["spread"], row["srocc_std"], row["srocc"]) == (0, 0, pytest.approx(1))

    def test_seconds(self, small):
        model = VTAMIQ(TINY).train()
        images = np.stack(PairImages(small)[0])
        table = count_seconds(model, images, {"a": caps_for(model), "b": caps_for(model)}, [4, 8], repeats=2)
        assert table[["sampling", "num_patches"]].to_numpy().tolist() == [["a", 4], ["a", 8], ["b", 4], ["b", 8]]
        assert (table[["sampling_seconds", "network_seconds"]] > 0).all(axis=None)
        assert (table["seconds"] == table["sampling_seconds"] + table["network_seconds"]).all()
        assert set(table["device"]) == {"cpu"}
        assert model.training


def count_rows(*draws: np.ndarray) -> pd.DataFrame:
    tables = [result_rows(q).assign(sampling="as trained", num_patches=8, draw=d) for d, q in enumerate(draws)]
    return pd.concat(tables, ignore_index=True)


def result_rows(q: np.ndarray, **columns: object) -> pd.DataFrame:
    """A prediction for each of as many pairs, whose DMOS rises from row to row."""
    names = [f"{i}.png" for i in range(len(q))]
    table = {"database": "d", "score_name": "DMOS", "ref_id": names, "content": None, "ref_path": names}
    table |= {"dist_path": names, "score": np.arange(len(q), dtype=float), "higher_better": False}
    return pd.DataFrame(table | {"q": q, "synthetic": True, "lower_better": True} | columns)


SWAPPED = np.array([1.0, 0, 2, 3, 4, 5, 6, 7])  # SROCC 1 - 6·2/(8·63)
LEFT = 1 - 12 / 504


class TestComponents:
    def test_trained_once(self):
        order = np.arange(8.0)
        rows = [result_rows(q, variant=v, run=0) for v, q in {"a": SWAPPED, "base": order, "b": -order}.items()]
        table = component_table(pd.concat(rows), bootstrap=300).set_index("variant")
        assert table["srocc"].to_dict() == pytest.approx({"a": LEFT, "base": 1, "b": -1})
        assert table["difference"].to_dict() == pytest.approx({"a": LEFT - 1, "base": 0, "b": -2})
        assert table.loc["base", ["difference_low", "difference_high", "p", "p_holm"]].isna().all()
        assert table.loc["b", "difference_high"] < 0
        assert table.loc["b", "p"] == pytest.approx(2 / 301)  # no resample puts it above the base
        assert table.loc["b", "p_holm"] == pytest.approx(4 / 301)
        assert table.loc["a", "p_holm"] == table.loc["a", "p"] > 0.05
        assert table["runs"].eq(1).all()

    def test_trained_three_times(self):
        order = np.arange(8.0)
        tried = {"base": [order, SWAPPED, order], "b": [-order, order, SWAPPED]}
        rows = [result_rows(q, variant=v, run=k) for v, runs in tried.items() for k, q in enumerate(runs)]
        table = component_table(pd.concat(rows)).set_index("variant")
        base, other = [1, LEFT, 1], [-1, 1, LEFT]
        assert table["srocc"].to_dict() == pytest.approx({"base": np.mean(base), "b": np.mean(other)})
        differences = np.subtract(other, base)
        half = student_t.ppf(0.975, 2) * differences.std(ddof=1) / np.sqrt(3)
        expected = [differences.mean(), differences.mean() - half, differences.mean() + half]
        assert table.loc["b", ["difference", "difference_low", "difference_high"]].tolist() == pytest.approx(expected)
        assert table.loc["b", "p"] == pytest.approx(ttest_rel(other, base).pvalue)
        assert table.loc["b", "p_holm"] == table.loc["b", "p"]
        assert table.loc["base", ["difference_low", "difference_high", "p", "p_holm"]].isna().all()
        half = student_t.ppf(0.975, 2) * np.std(base, ddof=1) / np.sqrt(3)
        assert table.loc["base", "srocc_high"] == pytest.approx(np.mean(base) + half)
        assert table["runs"].eq(3).all()

    def test_references_are_resampled(self):
        """Fewer than five of them give no interval."""
        rows = pd.concat(result_rows(q, variant=v, run=0) for v, q in {"base": np.arange(8.0), "a": SWAPPED}.items())
        few = rows.assign(content=rows["ref_id"].str[0].astype(int).mod(4).astype(str))
        table = component_table(few, resample="references", bootstrap=50)
        assert table[["srocc_low", "difference_low", "p", "p_holm"]].isna().all(axis=None)
        table = component_table(rows, resample="references", bootstrap=50)
        assert table["srocc_low"].notna().all()
        assert table["p"].notna().tolist() == [False, True]
        without = component_table(rows.drop(columns="content"), resample="references", bootstrap=50)  # as of KADID-10k
        pd.testing.assert_frame_equal(without, table)

    def test_refused(self):
        base, other = (result_rows(np.arange(8.0), variant=name, run=0) for name in ("base", "a"))
        for rows in (other.assign(run=1), other.iloc[:5]):
            with pytest.raises(ValueError, match=r"run . of 'a' was not tested once on each of the pairs of 'base'"):
                component_table(pd.concat([base, rows]), bootstrap=10)

    @given(st.lists(st.floats(0, 1) | st.just(np.nan), max_size=8))
    def test_holm(self, values):
        """Against its definition: the least of all bounds at which the step-down procedure still rejects."""
        p = pd.Series(values, dtype=float)
        known = sorted(value for value in values if value == value)
        for value, corrected in zip(values, ablation._holm(p), strict=True):
            if value != value:
                assert np.isnan(corrected)
            else:
                steps = [(len(known) - k) * each for k, each in enumerate(known) if each <= value]
                assert corrected == pytest.approx(min(1, max(steps)))


def test_variants_are_trained_tested_and_compared(tmp_path):
    text = small_table_in(tmp_path)
    chain = replace(CHAIN, steps=(Step(Data(text), STAGE),))
    plan = compare(chain, choose_variants("no DiffNet"), num_runs=2)
    runs = run_many(plan, tmp_path / "out", root=tmp_path, progress=False)
    assert runs.table[["variant", "run"]].to_numpy().tolist() == [
        [v, k] for v in ("base", "no DiffNet") for k in (0, 1)
    ]
    assert (tmp_path / "out" / "no_DiffNet" / "run_01" / "00_fine_tuning" / "result.json").is_file()
    rows = run_predictions(runs, load_data(chain.steps[-1].data, tmp_path))
    assert rows.groupby(["variant", "run"]).size().tolist() == runs.table["n"].tolist()
    table = component_table(rows).set_index("variant")
    means = runs.table.groupby("variant")["srocc"].mean()
    assert table["srocc"].to_dict() == pytest.approx(means.to_dict())
    assert table["runs"].eq(2).all()


def small_table_in(folder):
    (folder / "small").mkdir()
    return small_table(folder / "small", references=10, levels=2)
