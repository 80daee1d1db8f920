"""Simulated preferences: the probabilities, which pairs are drawn, their direction, and that they are called
simulated."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vtamiq.databases.schema import Database, DatabaseError, pair_table
from vtamiq.databases.simulated import simulate_preferences
from vtamiq.model.network import preference


def database(scores, *, higher_better=True, low=1.0, high=5.0, synthetic=True):
    """References r0, r1 … with these scores."""
    rows = [(f"r{r}", level, score) for r, of in enumerate(scores) for level, score in enumerate(of)]
    ref, level, score = map(list, zip(*rows, strict=True))
    pairs = pair_table(
        database="toy", subset="train", ref_id=ref, ref_path=[f"{r}.png" for r in ref],
        dist_path=[f"{r}_{n}.png" for r, n in zip(ref, level, strict=True)], score=np.array(score, float),
        score_name="toy score", higher_better=higher_better, score_lo=low, score_hi=high, label_source="toy:1",
    )  # fmt: skip
    return Database(
        name="toy", root=".", pairs=pairs, score_name="toy score", higher_better=higher_better, synthetic=synthetic
    )


def test_probability_is_the_logistic_of_the_difference():
    table = simulate_preferences(database([[5.0, 3.0]]))
    (row,) = table.itertuples()
    expected = 1 / (1 + np.exp(-6 * 0.5))  # distortions 0 and 0.5
    assert row.p_a == pytest.approx(expected if row.a_path == "r0_0.png" else 1 - expected)
    assert {row.a_path, row.b_path} == {"r0_0.png", "r0_1.png"}
    q_a, q_b = (torch.tensor({"r0_0.png": 0.0, "r0_1.png": 0.5}[path]) for path in (row.a_path, row.b_path))
    assert row.p_a == pytest.approx(float(preference(q_a, q_b, 6.0)))  # as the model counts it


@pytest.mark.parametrize("higher_better", [True, False])
def test_the_better_image_is_preferred(higher_better):
    data = database([[1, 2, 3, 4, 5]], higher_better=higher_better)
    table = simulate_preferences(data)
    score = data.pairs.set_index("dist_path")["score"]
    a, b = table["a_path"].map(score), table["b_path"].map(score)
    assert len(table) == 10
    assert ((table["p_a"] > 0.5) == ((a > b) if higher_better else (a < b))).all()


def test_equal_images_are_a_coin_toss():
    assert simulate_preferences(database([[2, 2, 2]]))["p_a"].tolist() == [0.5] * 3


def test_it_is_called_simulated_and_nobody_was_asked():
    table = simulate_preferences(database([[1, 2], [3, 4]]))
    assert (table["kind"] == "simulated").all()
    assert table["p_a_raw"].isna().all()
    assert not table["a_is_ref"].any()
    assert table["label_source"].unique().tolist() == ["simulated from toy score, w = 6"]
    assert (table["subset"] == "train").all()
    assert replace(database([[1, 2], [3, 4]]), preferences=table).preferences is table


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5).filter(lambda sizes: max(sizes) > 1),
    count=st.integers(1, 50),
    seed=st.integers(0, 2**40),
)
def test_different_pairs_within_each_reference(sizes, count, seed):
    data = database([np.linspace(1, 5, size) for size in sizes])
    table = simulate_preferences(data, per_reference=count, seed=seed)
    assert (table["a_path"] != table["b_path"]).all()
    for path in ("a_path", "b_path"):
        assert (table[path].str.split("_").str[0] == table["ref_id"]).all()
    unordered = [tuple(sorted(pair)) for pair in table[["a_path", "b_path"]].itertuples(index=False)]
    assert len(set(unordered)) == len(unordered)
    numbers = table["ref_id"].value_counts().to_dict()
    assert numbers == {f"r{r}": min(count, n * (n - 1) // 2) for r, n in enumerate(sizes) if n > 1}


def test_every_reference_has_its_own_stream():
    data = database([np.linspace(1, 5, 12)] * 3)
    table = simulate_preferences(data, per_reference=10, seed=1)
    alone = simulate_preferences(data.subset(["r1"]), per_reference=10, seed=1)
    pd.testing.assert_frame_equal(table[table["ref_id"] == "r1"].reset_index(drop=True), alone)
    levels = [table.loc[table["ref_id"] == r, "a_path"].str[3:].tolist() for r in ("r0", "r1", "r2")]
    assert levels[0] != levels[1] != levels[2]
    again = simulate_preferences(data, per_reference=10, seed=1)
    pd.testing.assert_frame_equal(table, again)
    assert not table["a_path"].equals(simulate_preferences(data, per_reference=10, seed=2)["a_path"])


def test_both_orders_are_drawn():
    table = simulate_preferences(database([np.linspace(1, 5, 40)]), per_reference=400)
    assert 150 < (table["p_a"] > 0.5).sum() < 250


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (database([[1, np.nan]]), {}, DatabaseError, "toy: row 1 has no score"),
        (database([[1, 2]], low=np.nan), {}, DatabaseError, "open scale"),
        (database([[1, 2]], low=5, high=5), {}, DatabaseError, "open scale"),
        (database([[1], [2]]), {}, DatabaseError, "no reference has two"),
        (database([[1, 2]]), {"per_reference": 0}, ValueError, "must be positive, got 0"),
    ],
)
def test_refusals(data, options, error, message):
    with pytest.raises(error, match=message):
        simulate_preferences(data, **options)
