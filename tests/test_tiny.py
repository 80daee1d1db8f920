"""The command that makes the weights that ship, all of it on a few small photographs."""

import json
import operator
import shutil

import numpy as np
import pandas as pd
import pytest

from vtamiq import VTAMIQ
from vtamiq.cards import render_card, ship
from vtamiq.images import write_png
from vtamiq.inference import fingerprint
from vtamiq.synthesis import demo_photographs
from vtamiq.tiny import NAME, changed_recipe, first_model, list_photographs, make_weights, pick_photographs

SETTINGS = {
    "train": 2,
    "val": 0,
    "test": 0,
    "size": [64, 48],
    "types": ["jpeg", "noisegauss", "gblur"],
    "levels": [1, 3, 5],
    "metrics": ["ssim", "gmsd", "haarpsi"],
    "network.width": 32,
    "network.num_heads": 2,
    "network.num_blocks": 2,
    "network.num_groups": 1,
    "network.blocks_per_group": 1,
    "network.reduction": 4,
    "weak.caps.num_patches": 8,
    "weak.test_patches": 8,
    "weak.epochs": 1,
    "weak.batch_size": 4,
    "weak.auxiliary": [],
    "weak.onednn": False,
    "left_out": ["jpeg"],
    "devices": 1,
    "demos": [],
    "measures.num_patches": 8,
    "measures.repeats": 1,
    "measures.counts": [8, 16],
    "measures.draws": 2,
    "measures.photographs": 2,
    "measures.bootstrap": 20,
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder, image = tmp_path_factory.mktemp("photographs"), demo_photographs()["chelsea"]
    for part, names in {"train": "abc", "val": "d", "test": "ef"}.items():
        (folder / part).mkdir()
        for name in names:
            k = ord(name) - ord("a")
            write_png(
                folder / part / f"{name}.png", np.ascontiguousarray(image[40 * k : 40 * k + 60, 60 * k :][:, :80])
            )
    return folder


@pytest.fixture(scope="module")
def made(photographs, tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    return out, make_weights(photographs, out, settings=SETTINGS, workers=0, progress=False)


class TestMade:
    def test_goals_are_those_of_the_tables(self, made):
        out, goals = made
        agreement = pd.read_csv(out / NAME / "agreement.csv")
        ours = agreement[(agreement["method"] == "VTAMIQ") & (agreement["target"] == "all")].iloc[0]
        assert goals.set_index("measure").loc["SROCC", "reached"] == pytest.approx(ours["srocc"])
        compare = {"≥": operator.ge, "≤": operator.le, "=": operator.eq}
        for row in goals.itertuples():
            assert row.met == compare[row.sign](row.reached, row.goal)

    def test_the_weights_load_and_are_those_of_the_facts(self, made):
        folder = made[0] / NAME
        facts = json.loads((folder / "facts.json").read_text())
        assert facts["weights"] == fingerprint(VTAMIQ.from_pretrained(folder))
        assert facts["data"]["photographs"] == {"train": 2, "val": 1, "test": 2}
        assert facts["first_weights"]  # they are those of the seed that the command names
        assert facts["seconds"]["left_out"] > 0

    def test_the_card_is_made_from_the_files_beside_it(self, made):
        card = (made[0] / NAME / "README.md").read_text(encoding="utf-8")
        assert card == render_card(made[0] / NAME)
        for said in ("SYNTHETIC", "not human opinion", "must not be used", "Types that were not trained on"):
            assert said in card
        assert str(made[0]) not in card

    def test_the_same_call_makes_nothing_anew(self, made, photographs):
        out, goals = made
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*.ckpt")}
        again = make_weights(photographs, out, settings=SETTINGS, workers=0, progress=False)
        pd.testing.assert_frame_equal(again, goals)
        assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.ckpt")} != {}

    def test_ship(self, made, tmp_path):
        place = ship(made[0] / NAME, tmp_path)
        assert fingerprint(VTAMIQ.from_pretrained(place)) == fingerprint(VTAMIQ.from_pretrained(made[0] / NAME))

    def test_a_card_that_was_edited_does_not_ship(self, made, tmp_path):
        folder = shutil.copytree(made[0] / NAME, tmp_path / NAME)
        (folder / "README.md").write_text("Better than people.")
        with pytest.raises(ValueError, match=r"README\.md is not made from the files beside it"):
            ship(folder, tmp_path / "into")
        assert not (tmp_path / "into").exists()

    def test_an_unfinished_folder_does_not_ship(self, made, tmp_path):
        folder = shutil.copytree(made[0] / NAME, tmp_path / NAME)
        (folder / "curves.png").unlink()
        with pytest.raises(ValueError, match=r"has no curves\.png"):
            ship(folder, tmp_path / "into")

    def test_another_recipe_does_not_take_the_run(self, made, photographs, tmp_path):
        settings = SETTINGS | {"weak.learning_rate": 1e-4}
        database, run = made[0] / "database" / "bsds", made[0] / "weak_pretraining"
        with pytest.raises(ValueError, match="other stage `weak`"):
            make_weights(None, tmp_path, settings=settings, database=database, run=run, progress=False)


class TestRecipe:
    def test_photographs_are_evenly_spaced(self, photographs):
        recipe = changed_recipe(settings={"train": 2, "val": 1, "test": 0})
        assert list(pick_photographs(list_photographs(photographs), recipe)) == [
            "a.png",
            "b.png",
            "d.png",
            "e.png",
            "f.png",
        ]

    def test_first_weights_depend_on_the_seed_only(self):
        one, same, other = (first_model(changed_recipe(settings={"seed": seed})) for seed in (1, 1, 2))
        assert fingerprint(one) == fingerprint(same) != fingerprint(other)

    @pytest.mark.parametrize(
        ("size", "settings", "problem"),
        [
            ("cpus", {}, "no size 'cpus'.*cpu"),
            ("cpu", {"weak.epoch": 3}, "epoch"),
            ("cpu", {"seed.x": 3}, "nothing below `seed`"),
            ("cpu", {"left_out": ["nosuch"]}, "nosuch"),
            ("cpu", {"demos": ["nosuch"]}, "must be among"),
        ],
    )
    def test_bad_settings(self, size, settings, problem):
        with pytest.raises(ValueError, match=problem):
            changed_recipe(size, settings)

    def test_bad_folders(self, photographs, tmp_path):
        with pytest.raises(ValueError, match="no folder train"):
            list_photographs(tmp_path)
        with pytest.raises(ValueError, match="has 3 image files, train=160"):
            pick_photographs(list_photographs(photographs), changed_recipe())
        with pytest.raises(ValueError, match="either a folder of photographs or a database"):
            make_weights(None, tmp_path)
