"""Presets build, and a workspace finds its folders from either place that notebooks run in."""

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.layouts import build_live
from tests.small import TINY, small_database
from vtamiq.databases.schema import DatabaseError
from vtamiq.databases.seen import pictures_of
from vtamiq.databases.synthesis import synthesize
from vtamiq.lab.presets import PRESETS, Workspace, workspace
from vtamiq.model.network import VTAMIQ
from vtamiq.plots.charts import learning_curves


@pytest.fixture
def space(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    return workspace("smoke")


@pytest.mark.parametrize("name", ["smoke", "demo"])
def test_presets_build(name):
    model = VTAMIQ(PRESETS[name].model)
    assert model.config.zero_anchor
    assert PRESETS[name].weak.caps.num_patches > 0


def test_workspace_is_the_same_from_root_and_from_notebooks(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    from_root = workspace("demo")
    monkeypatch.chdir(tmp_path / "notebooks")
    assert workspace("demo") == from_root
    assert from_root.out == tmp_path / "runs/demo"
    assert from_root.figures == tmp_path / "figures"
    assert workspace("smoke").figures == tmp_path / "runs/smoke/figures"
    assert workspace("smoke", "elsewhere/x").folder("03") == tmp_path / "elsewhere/x/03"
    assert (tmp_path / "elsewhere/x/03").is_dir()
    assert workspace("demo", "mine/demo").figures == tmp_path / "mine/demo/figures"  # own runs leave the gallery alone


def test_figures_lie_in_the_gallery_or_the_run(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    history = pd.DataFrame({"epoch": [0, 1], "val_srocc": [0.1, 0.2]})
    for space, folder in ((workspace("demo"), "figures"), (workspace("smoke"), "runs/smoke/figures")):
        paths = space.save_figure(learning_curves(history), "curves", history)
        expected = [tmp_path / folder / f"curves.{kind}" for kind in ("svg", "png", "csv")]
        assert paths == expected == sorted((tmp_path / folder).iterdir(), key=expected.index)
    own = workspace("demo").save_figure(learning_curves(history), "of_this_machine", gallery=False)
    assert {path.parent for path in own} == {tmp_path / "runs/demo/figures"}


def test_no_machine_path_is_shown(space):
    assert space.path("data/mine") == space.root / "data/mine"
    with pytest.raises(FileNotFoundError, match=r"^03_weak_pretraining/run holds no finished run: run notebook 03"):
        space.stages()


def test_parts_of_the_demo_and_of_a_database_of_ones_own(space):
    assert [part.references for part in space.parts()] == [["I01", "I02"], ["I03"], ["I04"]]
    images = {f"p{k}": np.full((16, 16, 3), 40 * k, np.uint8) for k in range(5)}
    options = {"types": [11], "levels": [5], "metrics": ["gmsd"], "workers": 0, "progress": False}
    made = synthesize(images, space.root / "data/mine", **options)
    for seed in (0, 1):
        expected = [part.references for part in made.split(seed=seed)]
        assert [part.references for part in space.parts("data/mine", seed)] == expected
    for database in ("", "data/mine"):
        part, *_ = space.parts(database, label="gmsd")
        assert part.score_name == "synthetic score (GMSD alone)"


def test_parts_of_recipes_with_a_cache(space):
    images = {f"p{k}": np.full((16, 16, 3), 40 * k, np.uint8) for k in range(5)}
    options = {"types": [11], "levels": [5], "metrics": ["gmsd"], "workers": 0, "progress": False}
    synthesize(images, space.root / "data/mine", **options, recipes_only=True)
    part, *_ = space.parts("data/mine", cache="kept")
    assert part.cache.parent == space.root / "kept"
    assert space.parts("data/mine")[0].cache is None


def test_only_pairs_that_changed_nothing_are_left_out_of_tests(space, monkeypatch):
    """Whatever one metric thinks of them: VIFp takes some gains in contrast for perfect."""
    textures = space.demo("textures")
    pairs = textures.pairs.copy()
    ranks = [name for name in pairs if name.startswith("rank_")]
    pairs.loc[:2, ranks] = 0.0
    pairs.loc[3, "score"] = 5.0
    monkeypatch.setattr(Workspace, "demo", lambda self, name, label=None: replace(textures, pairs=pairs))
    _, tested = space.databases(database="", seed=0)
    unchanged = (pairs[ranks] == 0).all(axis=1)
    assert set(tested.pairs["dist_path"]) == set(pairs.loc[~unchanged, "dist_path"])
    assert pairs.loc[3, "dist_path"] in set(tested.pairs["dist_path"])


@pytest.mark.parametrize("higher_better", ["true", "false"])
def test_synthetic_scores_of_other_origin_are_tested_too(space, higher_better):
    """Scores of an open scale, such as the metrics of KADIS, have no best value that could tell a copy."""
    root = small_database(space.root / "mine").root
    rows = [f"images/r{r}.png,images/r{r}_{level}.png,{level}" for r in range(5) for level in (1, 2)]
    (root / "pairs.csv").write_text("\n".join(["reference,distorted,score", *rows]))
    (data,) = space.databases(f"table:root=mine:synthetic=true:higher_better={higher_better}")
    assert len(data) == 10


def test_databases_are_named_with_options(space, monkeypatch):
    monkeypatch.setenv("VTAMIQ_DATA", "data")
    build_live(space.root / "data" / "LIVE")
    root = small_database(space.root / "mine").root
    rows = [f"images/r{r}.png,images/r{r}_{level}.png,{level}" for r in range(5) for level in (1, 2)]
    (root / "pairs.csv").write_text("\n".join(["reference,distorted,score", *rows]))
    old, mine = space.databases("live:realigned=false, table:root=mine:higher_better=false")
    assert (old.score_name, len(old)) == ("DMOS", 779)
    assert (mine.name, mine.higher_better, len(mine)) == ("mine", False, 10)
    with pytest.raises(DatabaseError, match=r"live:colour=1: .*colour"):
        space.databases("live:colour=1")
    with pytest.raises(DatabaseError, match="has no scores to compare with"):
        space.databases("table:root=mine:score=null")


def test_what_a_model_has_not_seen(space):
    database, model = small_database(space.root / "small"), VTAMIQ(TINY)
    model.seen = (pictures_of(database.subset(["r0", "r1"])),)
    assert space.unseen(database, model).references == ["r2", "r3", "r4"]
    model.seen = (pictures_of(database),)
    with pytest.raises(DatabaseError, match="has seen all pictures"):
        space.unseen(database, model)


def test_tables_are_published_whole_and_as_columns(space):
    table = pd.DataFrame({"method": ["a_b"], "n": [3], "srocc": [0.51234]})
    folder = space.folder("06")
    space.publish(table, "results", folder, ["method", "srocc"])
    pd.testing.assert_frame_equal(pd.read_csv(folder / "results.csv"), table)
    assert (space.figures / "results.csv").read_bytes() == (folder / "results.csv").read_bytes()
    assert r"a\_b & 0.512 \\" in (folder / "results.tex").read_text()


def test_any_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = workspace("demo")
    assert (space.root, space.out) == (tmp_path, tmp_path / "runs/demo")
    assert space.figures == tmp_path / "runs/demo/figures"  # there is no gallery here


def test_versions_name_what_results_depend_on():
    versions = workspace("smoke").versions()
    assert {"python", "torch", "timm", "vtamiq"} <= set(versions)


def test_unknown_preset_is_refused_with_a_hint():
    with pytest.raises(ValueError, match="did you mean `demo`"):
        workspace("dmo")


def test_a_folder_of_runs_is_emptied_for_other_settings(tmp_path, caplog):
    space = Workspace("smoke", tmp_path, tmp_path / "runs")
    start, folder = tmp_path / "start", tmp_path / "run"
    weights = start / "model" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"first")

    def kept(*settings):
        (folder / "result.json").write_text("{}")
        space.fresh(folder, *settings)
        return (folder / "result.json").is_file()

    stage = space.settings.weak
    space.fresh(folder, stage, start)
    with caplog.at_level(logging.INFO, logger="vtamiq"):
        assert kept(stage, start)
        assert not caplog.messages
        assert not kept(replace(stage, epochs=7), start)
    assert caplog.messages == [f"{folder} held runs of other settings: emptied"]
    assert kept(replace(stage, epochs=7), start)
    weights.write_bytes(b"other")
    assert not kept(replace(stage, epochs=7), start)
