"""Labels of synthetic databases: the consensus, weighted or not, one metric; and the columns of all metrics."""

import numpy as np
import pandas as pd
import pytest

from tests.databases.test_synthesis import PICTURES, QUICK
from vtamiq.databases.loading import load_database
from vtamiq.databases.schema import DatabaseError
from vtamiq.databases.synthesis import synthesize
from vtamiq.images.iqms import IQMS, QuantileTables, agreement_weights, weak_labels

METRICS = ("ssim", "vsi", "gmsd", "dss")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder, the native scores in order of rows, and the tables."""
    out = tmp_path_factory.mktemp("data") / "made"
    synthesize(PICTURES, out, **QUICK | {"metrics": METRICS}, subsets={"a": "train", "b": "test"})
    return out, pd.read_csv(out / "iqm_scores.csv"), QuantileTables.from_json((out / "quantiles.json").read_text())


def test_all_metrics_come_with_the_pairs(made):
    folder, scores, tables = made
    pairs = load_database("synthetic", folder).pairs
    ranks = tables.apply(scores)
    for name in METRICS:
        np.testing.assert_array_equal(pairs[f"native_{name}"], scores[name])
        np.testing.assert_array_equal(pairs[f"rank_{name}"], ranks[name])
        assert pairs[f"rank_{name}"].between(0, 1).all()
        worse = pairs["level"] == 5
        assert pairs.loc[worse, f"rank_{name}"].min() > pairs.loc[~worse, f"rank_{name}"].min()
    np.testing.assert_allclose(
        pairs["score"], 5 - 4 * pairs[[f"rank_{name}" for name in METRICS]].mean(axis=1), atol=1e-6
    )
    assert [name for name in pairs if name.startswith("rank_")] == [f"rank_{name}" for name in METRICS]


@pytest.mark.parametrize(
    ("label", "names", "weights", "meaning"),
    [
        ("consensus", METRICS, None, "consensus of 4 IQMs"),
        ("vsi", ("vsi",), None, "VSI alone"),
        (
            "weighted",
            ("ssim", "vsi", "gmsd"),
            {name: weight for name, weight in agreement_weights().items() if name in METRICS},
            "consensus of 3 IQMs, weighted by their published agreement with people",
        ),
    ],
    ids=str,
)
def test_scores_are_what_was_asked_for(made, label, names, weights, meaning):
    folder, scores, tables = made
    data = load_database("synthetic", folder, label=label)
    labels = weak_labels(scores, tables, names=names, weights=weights)
    np.testing.assert_allclose(data.pairs["score"], 5 - 4 * labels["consensus"], atol=1e-6)
    np.testing.assert_allclose(data.pairs["score_std"], 4 * labels["spread"], atol=1e-6)
    assert data.score_name == f"synthetic score ({meaning})"
    assert data.synthetic
    assert data.pairs["rank_ssim"].tolist() == tables.apply(scores)["ssim"].tolist()  # all metrics, whatever the label


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("vsii", "no label 'vsii'; did you mean `vsi`"),
        ("fsimc", "no label 'fsimc'"),  # not among the metrics of this database
    ],
)
def test_labels_that_do_not_exist(made, label, message):
    with pytest.raises(DatabaseError, match=message):
        load_database("synthetic", made[0], label=label)


def test_no_published_weight(tmp_path):
    made = synthesize(PICTURES, tmp_path / "made", **QUICK | {"metrics": ["dss"]})
    with pytest.raises(DatabaseError, match="no agreement with people was published for any of dss"):
        load_database("synthetic", made.root, label="weighted")


def damage(folder, tmp_path, name, change):
    """A copy of the folder with one file changed."""
    import shutil

    copy = tmp_path / "made"
    shutil.copytree(folder, copy)
    content = (copy / name).read_text()
    (copy / name).write_text(change(content))
    assert (copy / name).read_text() != content
    return copy


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("iqm_scores.csv", lambda text: text.replace("I02_11_05.png", "I02_11_04.png"), r"no row for i02_11_05\.png"),
        ("iqm_scores.csv", lambda text: text.replace("I02_11_05.png", "I02_11_01.png"), r"no row for i02_11_05\.png"),
        ("iqm_scores.csv", lambda text: text + text.splitlines()[-1], "a row twice"),
        ("iqm_scores.csv", lambda text: text[: text.rindex(",")], "a row twice or without a number"),
        ("iqm_scores.csv", lambda text: text.replace("vsi", "vsj"), "damaged"),
        ("iqm_scores.csv", lambda text: "", "damaged"),
        ("quantiles.json", lambda text: text[:100], "damaged"),
        ("quantiles.json", lambda text: text.replace("vsi", "mdsi"), "damaged"),
    ],
)
def test_damaged_scores_are_refused(made, tmp_path, name, change, message):
    with pytest.raises(DatabaseError, match=message):
        load_database("synthetic", damage(made[0], tmp_path, name, change))


@pytest.fixture
def recipes(tmp_path):
    return synthesize(PICTURES, tmp_path / "made", **QUICK, recipes_only=True).root


@pytest.mark.parametrize("seed", ["-1", "x", "18446744073709551616", "1.5", ""])
def test_recipes_with_bad_seeds_are_refused(recipes, seed):
    lines = (recipes / "dmos.csv").read_text().splitlines()
    lines[1] = ",".join([*lines[1].split(",")[:-1], seed])
    (recipes / "dmos.csv").write_text("\n".join(lines))
    with pytest.raises(DatabaseError, match=rf"dmos\.csv:2: recipe_seed must be .*found '{seed}'"):
        load_database("synthetic", recipes)
    loaded = load_database("synthetic", recipes, strict=False)
    assert len(loaded) == len(lines) - 2
    assert loaded.pairs["recipe_seed"].dtype == np.uint64


def test_recipes_lose_no_digit_of_their_seeds(recipes):
    written = [int(line.split(",")[-1]) for line in (recipes / "dmos.csv").read_text().splitlines()[1:]]
    assert [int(seed) for seed in load_database("synthetic", recipes).pairs["recipe_seed"]] == written
    assert len(set(written)) == 2
    assert max(written) > 2**53  # which a float would round


def test_every_metric_can_be_a_label():
    assert not {"consensus", "weighted"} & set(IQMS)
