"""Measures of imitation, on predictions whose worth is known, and all of it once on small photographs."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from tests.small import TINY, small_database
from tools.weights import measures
from tools.weights.measures import (
    ALL,
    Goals,
    Measures,
    agreement_table,
    consensus_targets,
    copies_table,
    goals_table,
    left_out_table,
    mean_within,
    measure,
    spread_table,
    type_table,
    without_types,
)
from vtamiq.databases.demo import demo_database
from vtamiq.databases.schema import DatabaseError
from vtamiq.databases.seen import pictures_of
from vtamiq.databases.splits import worth_testing
from vtamiq.images.iqms import IQMS
from vtamiq.model.network import VTAMIQ

QUICK = Measures(num_patches=16, repeats=1, counts=(8, 256), draws=2, photographs=1, bootstrap=20)


@pytest.fixture(scope="module")
def parts():
    """Training and test pairs: the small demo photographs (two of them), and the small textures."""
    photos = demo_database("photos", preset="smoke", workers=0, progress=False)
    textures = demo_database("textures", preset="smoke", workers=0, progress=False)
    return photos, worth_testing(textures)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VTAMIQ(TINY).eval()


def predictions(test, q, **columns):
    rows = test.pairs[["database", "ref_path", "dist_path"]]
    return rows.assign(q=q, **({"metric": "VTAMIQ", "lower_better": True} | columns))


class TestMeanWithin:
    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
    @settings(max_examples=60, deadline=None)
    def test_is_the_mean_of_scipys(self, rows):
        codes, q, t = np.array(rows).T
        codes = np.unique(codes, return_inverse=True)[1]
        expected = []
        for code in set(codes.tolist()):
            at = codes == code
            if at.sum() >= 3 and np.ptp(t[at]):
                expected.append(spearmanr(q[at], t[at]).statistic if np.ptp(q[at]) else 0.0)
        mean, count = mean_within(q, t, codes)
        assert count == len(expected)
        assert mean == pytest.approx(np.mean(expected) if expected else np.nan, nan_ok=True)

    def test_values(self):
        q, t, codes = (
            np.array([1, 2, 3, 5, 4, 3, 7, 7, 7, 1, 2.0]),
            np.arange(11.0),
            np.repeat([0, 1, 2, 3], [3, 3, 3, 2]),
        )
        assert mean_within(q, t, codes) == (0.0, 3)  # 1, -1, 0, and two rows that tell nothing


class TestTargets:
    def test_all_is_the_score(self, parts):
        for database in parts:
            targets = consensus_targets(database)
            np.testing.assert_allclose(5 - 4 * targets[ALL], database.pairs["score"], atol=1e-6)

    def test_each_metric_is_left_out_once(self, parts):
        targets, ranks = consensus_targets(parts[1]), parts[1].pairs.filter(regex="^rank_")
        assert list(targets) == [ALL, *(name.removeprefix("rank_") for name in ranks)]
        n = len(ranks.columns)
        for name in targets.columns[1:]:
            np.testing.assert_allclose((n - 1) * targets[name] + ranks[f"rank_{name}"], n * targets[ALL])

    def test_none(self, tmp_path):
        with pytest.raises(DatabaseError, match="small has no ranks of three metrics"):
            consensus_targets(small_database(tmp_path))


class TestAgreement:
    def test_what_is_known(self, parts):
        training, test = parts
        targets = consensus_targets(test)
        table = agreement_table(predictions(test, targets[ALL].to_numpy() * 3 - 1), training, test, bootstrap=0)
        assert len(table) == 2 + 3 * (len(targets.columns) - 1)
        rows = table.set_index(["target", "method"])
        perfect, lookup = rows.loc[(ALL, "VTAMIQ")], rows.loc[(ALL, "look-up")]
        assert perfect[["srocc", "within_type", "within_cell"]].tolist() == pytest.approx([1, 1, 1])
        assert lookup["within_cell"] == 0
        assert 0.5 < lookup["within_type"] <= 1
        assert rows[["srocc_low", "within_cell_high"]].isna().all(axis=None)
        for name in targets.columns[1:]:
            iqm = rows.loc[(name, IQMS[name].label)]
            distortion = IQMS[name].distortion(test.pairs[f"native_{name}"])
            assert iqm["srocc"] == pytest.approx(spearmanr(distortion, targets[name]).statistic)
            ours = rows.loc[(name, "VTAMIQ")]
            assert ours["srocc"] == pytest.approx(spearmanr(targets[ALL], targets[name]).statistic)
        assert (table["n"] == len(test)).all()
        assert table["synthetic"].all()

    def test_lookup_is_the_cell_mean_of_training(self, parts):
        training, test = parts
        cells = training.pairs.groupby(["dist_type", "level"])["score"].mean()
        known = test.pairs.join(cells.rename("mean"), on=["dist_type", "level"])["mean"]
        table = agreement_table(predictions(test, 0.0), training, test, bootstrap=0).set_index(["target", "method"])
        assert table.loc[(ALL, "look-up"), "srocc"] == pytest.approx(spearmanr(known, test.pairs["score"]).statistic)
        assert table.loc[(ALL, "VTAMIQ"), "srocc"] == 0  # a constant tells nothing

    def test_higher_better_metrics_are_turned(self, parts):
        training, test = parts
        target = consensus_targets(test)[ALL].to_numpy()
        both = pd.concat([predictions(test, target), predictions(test, -target, metric="psnr", lower_better=False)])
        table = agreement_table(both, training, test, bootstrap=0).set_index(["target", "method"])
        assert table.loc[(ALL, "PSNR"), "srocc"] == pytest.approx(1)
        assert "PSNR" not in table.loc["ssim"].index

    def test_intervals_are_of_photographs(self, parts):
        training, test = parts
        five = pd.concat([test.pairs.assign(ref_id=f"r{k}", content=f"c{k}", ref_path=f"{k}.png") for k in range(5)])
        five["dist_path"] = [f"{k}/{path}" for k, path in enumerate(five["dist_path"])]
        many = replace(test, pairs=five.reset_index(drop=True), preferences=None)
        noise = np.random.default_rng(0).standard_normal(len(many))
        table = agreement_table(predictions(many, noise), training, many, bootstrap=50, seed=3)
        again = agreement_table(predictions(many, noise), training, many, bootstrap=50, seed=3)
        pd.testing.assert_frame_equal(table, again)
        row = table.iloc[0]
        assert row["srocc_low"] < row["srocc"] < row["srocc_high"]
        assert row["photographs"] == 5
        assert table[table["target"] != ALL]["srocc_low"].isna().all()

        exact = agreement_table(
            predictions(many, consensus_targets(many)[ALL].to_numpy()), training, many, bootstrap=50
        ).iloc[0]
        assert exact[["srocc_low", "within_cell_low", "within_cell_high"]].tolist() == [1.0, 1.0, 1.0]

    def test_intervals_within_cells_are_not_lowered_by_photographs_that_are_drawn_twice(self, parts):
        training, test = parts
        several = [
            test.pairs.assign(
                ref_id=f"r{k}", content=f"c{k}", ref_path=f"{k}.png", dist_path=f"{k}/" + test.pairs["dist_path"]
            )
            for k in range(9)
        ]
        many = replace(test, pairs=pd.concat(several, ignore_index=True), preferences=None)
        rng = np.random.default_rng(0)
        changed = many.pairs.filter(regex="^rank_").columns
        many.pairs[changed] = rng.random((len(many), 1)) + rng.normal(0, 0.01, (len(many), len(changed)))
        q = consensus_targets(many)[ALL].to_numpy() + rng.normal(0, 0.1, len(many))
        row = agreement_table(predictions(many, q), training, many, bootstrap=200, seed=3).iloc[0]
        middle = (row["within_cell_low"] + row["within_cell_high"]) / 2
        assert row["within_cell"] == pytest.approx(middle, abs=0.01)

    def test_refused(self, parts):
        training, test = parts
        fine = predictions(test, 1.0)
        with pytest.raises(ValueError, match="VTAMIQ has not been measured once on each of the"):
            agreement_table(fine.iloc[1:], training, test)
        with pytest.raises(ValueError, match="VTAMIQ has not been measured once on each of the"):
            agreement_table(pd.concat([fine, fine.iloc[:1]]), training, test)
        with pytest.raises(ValueError, match="no predictions of a VTAMIQ on textures"):
            agreement_table(fine.assign(metric="psnr"), training, test)


class TestTypes:
    def test_what_is_known(self, parts):
        training, test = parts
        level = test.pairs["level"].to_numpy(dtype=float)
        table = type_table(predictions(test, level), training, test).set_index("dist_type")
        assert set(table.index) == {1, 10, 11, 25}
        assert table.loc[25, "group"] == "sharpness/contrast"
        assert table.loc[[10, 11], "monotony"].tolist() == [1, 1]
        assert np.isnan(table.loc[1, "monotony"])  # of three levels one is a copy: two tell nothing
        assert (table["within_cell"].dropna() == 0).all()  # a level is the same for all photographs
        assert table.loc[[25], "monotony"].isna().all()
        assert not table.loc[25, "ordered"]
        mine = test.pairs[test.pairs["dist_type"] == 10]
        assert table.loc[10, "srocc"] == pytest.approx(-spearmanr(mine["level"], mine["score"]).statistic)


class TestSpread:
    def test_closed_form(self, parts):
        test = parts[1]
        rows = test.pairs[["ref_path", "dist_path"]]
        base = np.linspace(0, 1, len(test))
        draws = [rows.assign(q=base + shift, draw=draw, num_patches=64) for draw, shift in enumerate((-0.1, 0.1))]
        (row,) = spread_table(pd.concat(draws), test).to_dict("records")
        assert row["std"] == pytest.approx(0.1 * np.sqrt(2))
        assert row["range"] == pytest.approx(1)
        assert row["share"] == pytest.approx(row["std"])
        assert row["srocc"] == pytest.approx(spearmanr(base, consensus_targets(test)[ALL]).statistic)
        with pytest.raises(ValueError, match="the scores of 64 patches are not of all"):
            spread_table(draws[0].iloc[1:], test)


class TestLeftOut:
    def test_parts(self, parts):
        seen, unseen = without_types(parts[0], ["jpeg", 25])
        assert set(unseen.pairs["dist_type"]) == {10, 25}
        assert len(seen) + len(unseen) == len(parts[0])
        assert not set(seen.pairs["dist_type"]) & {10, 25}
        with pytest.raises(ValueError, match="a type is named twice: jpeg, 10"):
            without_types(parts[0], ["jpeg", 10])
        with pytest.raises(ValueError, match="unknown distortion 'jpg'"):
            without_types(parts[0], ["jpg"])
        with pytest.raises(DatabaseError, match="no pairs"):
            without_types(parts[0], [2])

    def test_table(self, parts):
        test = without_types(parts[1], [10, 11])[1]
        target = consensus_targets(test)[ALL].to_numpy()
        table = left_out_table(predictions(test, -target), predictions(test, target), test)
        assert table["dist_name"].tolist() == [ALL, "JPEG", "white noise"]
        assert table["srocc"].tolist() == pytest.approx([-1] * 3)
        assert table["srocc_full"].tolist() == pytest.approx([1] * 3)
        assert table["n"].tolist() == [24, 12, 12]


def test_copies(model, parts):
    table = copies_table(model, parts, photographs=2)
    assert table["photographs"].tolist() == [2, 2]
    assert table["largest"].tolist() == [0, 0]
    other = VTAMIQ(replace(TINY, zero_anchor=False)).eval()
    assert (copies_table(other, parts[:1], 1)["largest"] > 0).all()


class TestAll:
    @pytest.fixture(scope="class")
    @classmethod
    def made(cls, parts, tmp_path_factory):
        torch.manual_seed(0)
        model = VTAMIQ(TINY).eval()
        photos = parts[0]
        train = photos.distributed_split()[0]
        model.seen = (pictures_of(train),)
        out = tmp_path_factory.mktemp("measures")
        return (
            model,
            train,
            [photos, parts[1]],
            out,
            measure(model, train, [photos, parts[1]], out, QUICK, progress=False),
        )

    def test_files_are_the_tables(self, made):
        *_, out, tables = made
        assert set(tables) == set(measures.TABLES)
        for name, table in tables.items():
            pd.testing.assert_frame_equal(pd.read_csv(out / f"{name}.csv"), table, check_dtype=False)
        facts = json.loads((out / "measures.json").read_text())
        assert facts["settings"]["num_patches"] == 16

    def test_pictures_of_the_training_are_left_out(self, made):
        _, _, (photos, _), out, tables = made
        kept = worth_testing(photos.subset(sorted({*photos.references} - {*made[1].references})))
        agreement = tables["agreement"]
        assert set(agreement[agreement["database"] == "photos"]["n"]) == {len(kept)}
        facts = json.loads((out / "measures.json").read_text())["databases"]
        assert facts["photos"]["left_out"] == len(photos) - len(kept)

    def test_nothing_is_scored_twice(self, made, monkeypatch):
        model, train, databases, out, tables = made

        def refuse(*_, **__):
            raise AssertionError("scored again")

        monkeypatch.setattr("vtamiq.lab.candidates.predict", refuse)
        monkeypatch.setattr("vtamiq.lab.ablation.predict", refuse)
        monkeypatch.setattr("vtamiq.evaluation.baselines._measure", refuse)
        again = measure(model, train, databases, out, QUICK, progress=False)
        for name, table in tables.items():
            pd.testing.assert_frame_equal(again[name], table)

    def test_goals(self, made):
        goals = made[-1]["goals"]
        assert goals["measure"].tolist() == 2 * [
            "SROCC", "within cells", "within a type", "spread of 256 patches", "score of a copy",
        ]  # fmt: skip
        assert goals.loc[0, "goal"] == 0.97
        assert goals.loc[5, "goal"] == 0.95
        tables = made[-1] | {"left_out": pd.DataFrame(
            [{"database": "photos", "dist_name": n, "srocc": 0.86, "srocc_full": 0.9} for n in (ALL, "JPEG", "jitter")]
        )}  # fmt: skip
        last = goals_table(tables, "photos", Goals(left_out=0.87)).iloc[-1]
        assert not last["met"]
        assert last["remark"] == "not trained on: JPEG, jitter; with them 0.900"
        assert goals_table(tables, "photos", Goals(left_out=0.86)).iloc[-1]["met"]

    def test_refused(self, made, tmp_path):
        model, train, databases, *_ = made
        with pytest.raises(DatabaseError, match="different databases"):
            measure(model, train, [databases[0]] * 2, tmp_path)
        with pytest.raises(DatabaseError, match="different databases"):
            measure(model, train, [], tmp_path)
        with pytest.raises(DatabaseError, match="trained or validated on all pictures of photos"):
            measure(model, train, [train], tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_patches": 0}, r"Measures\.num_patches must be at least 1, got 0"),
        ({"draws": 1}, r"Measures\.draws must be at least 2"),
        ({"counts": ()}, r"Measures\.counts must be different numbers"),
        ({"counts": (64, 64)}, r"Measures\.counts must be different numbers"),
        ({"bootstrap": -1}, r"Measures\.bootstrap must not be negative"),
        ({"repeats": "many"}, r"Measures\.repeats must be int"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        Measures(**changes)
