"""Presets build, and a workspace finds its folders from either place that notebooks run in."""

import numpy as np
import pytest

from vtamiq.model import VTAMIQ
from vtamiq.presets import PRESETS, workspace
from vtamiq.synthesis import synthesize


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


def test_no_machine_path_is_shown(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    space = workspace("demo")
    assert space.path("data/mine") == tmp_path / "data/mine"
    assert space.show(space.out / "a.csv") == "runs/demo/a.csv"
    assert str(tmp_path) not in space.show(tmp_path.parent / "b.csv")


def test_parts_of_the_demo_and_of_a_database_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    space = workspace("smoke")
    assert [part.references for part in space.parts()] == [["I01", "I02"], ["I03"], ["I04"]]
    images = {f"p{k}": np.full((16, 16, 3), 40 * k, np.uint8) for k in range(5)}
    options = {"types": [11], "levels": [5], "metrics": ["gmsd"], "workers": 0, "progress": False}
    made = synthesize(images, tmp_path / "data/mine", **options)
    for seed in (0, 1):
        expected = [part.references for part in made.split(seed=seed)]
        assert [part.references for part in space.parts("data/mine", seed)] == expected
    for database in ("", "data/mine"):
        part, *_ = space.parts(database, label="gmsd")
        assert part.score_name == "synthetic MOS (GMSD alone)"


def test_parts_of_recipes_with_a_cache(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    images = {f"p{k}": np.full((16, 16, 3), 40 * k, np.uint8) for k in range(5)}
    options = {"types": [11], "levels": [5], "metrics": ["gmsd"], "workers": 0, "progress": False}
    synthesize(images, tmp_path / "data/mine", **options, recipes_only=True)
    part, *_ = workspace("smoke").parts("data/mine", cache="kept")
    assert part.cache.parent == tmp_path / "kept"
    assert workspace("smoke").parts("data/mine")[0].cache is None


def test_any_other_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="run from the repository"):
        workspace("demo")


def test_versions_name_what_results_depend_on():
    versions = workspace("smoke").versions()
    assert {"python", "torch", "timm", "vtamiq"} <= set(versions)


def test_unknown_preset_is_refused_with_a_hint():
    with pytest.raises(ValueError, match="did you mean `demo`"):
        workspace("dmo")
