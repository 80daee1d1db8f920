"""The command that makes the weights that ship: all of it once on six small photographs, and what must be refused."""

import json
import operator
import shlex
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tools.weights import card as cards
from tools.weights import recipe as tiny
from tools.weights.__main__ import main
from tools.weights.card import render_card, ship
from tools.weights.recipe import (
    NAME,
    SIZES,
    TinyRecipe,
    changed_recipe,
    first_model,
    list_photographs,
    make_weights,
    pick_photographs,
)
from vtamiq import VTAMIQ
from vtamiq.databases.synthetic import read_manifest
from vtamiq.model.inference import fingerprint
from vtamiq.training.run import Run
from vtamiq.utils.configs import parse_setting

QUICK = {
    "train": 0, "val": 0, "test": 0, "size": [192, 160], "demos": [], "devices": 1,
    "types": ["gblur", "jpeg", "noisegauss"], "levels": [1, 3, 5], "metrics": ["ssim", "gmsd", "ms_ssim", "haarpsi"],
    "left_out": ["jpeg"], "network.width": 32, "network.num_heads": 2, "network.num_blocks": 1, "network.reduction": 4,
    "weak.epochs": 2, "weak.batch_size": 9, "weak.caps.num_patches": 8, "weak.test_patches": 8,
    "weak.distorted_per_reference": 3,
    "weak.loss.auxiliary": ["rank_ssim"], "finish.epochs": 1, "finish.batch_size": 6, "finish.caps.num_patches": 16,
    "finish.test_patches": 16, "finish.distorted_per_reference": 3, "finish.loss.auxiliary": ["rank_ssim"],
    "preferences.epochs": 1, "preferences.batch_size": 4, "preferences.caps.num_patches": 8, "preferences.test_patches": 8,
    "measures": {"num_patches": 16, "repeats": 1, "counts": [8, 256], "draws": 2, "photographs": 1, "bootstrap": 20},
}  # fmt: skip
OPTIONS = {"workers": 0, "progress": False}


def photograph(seed: int, width: int = 200, height: int = 164) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.uniform(40, 210, (height // 4, width // 4, 3)), np.ones((4, 4, 1)))
    return Image.fromarray(np.clip(coarse + rng.normal(0, 6, coarse.shape), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for number, part in enumerate(("train", "train", "val", "test", "test", "test")):
        (folder / part).mkdir(exist_ok=True)
        photograph(number).save(folder / part / f"p{5 - number}.png")
    (folder / "train" / "notes.txt").write_text("no photograph")
    return folder


@pytest.fixture(scope="module")
def made(photographs, tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    """The folder that the command leaves after an interruption just before its end, and the goals that it returns."""
    out = tmp_path_factory.mktemp("made") / "out"

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "write_card", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_weights(photographs, out, "cpu", QUICK, **OPTIONS)
    assert not (out / NAME / "facts.json").exists()
    return out, make_weights(photographs, out, "cpu", QUICK, **OPTIONS)


class TestMade:
    def test_what_is_there(self, made):
        out, goals = made
        assert {path.name for path in out.iterdir()} == {
            "recipe.yaml", "database", "weak_pretraining", "more_patches", "left_out", "measures", "times.json", NAME,
        }  # fmt: skip
        assert goals["measure"].tolist()[-1] == "left-out types"
        assert set(goals["database"]) == {"bsds"}
        shipped = {path.name for path in (out / NAME).iterdir()}
        assert shipped == {*cards.FILES, *(f"{name}.csv" for name in (*cards.TABLES, "left_out"))}
        assert (out / NAME / "curves.png").stat().st_size <= cards.MAX_CURVES

    def test_weights_are_those_of_the_training_in_half_precision(self, made):
        out, _ = made
        trained = Run.load(out / "more_patches").model.state_dict()
        model = VTAMIQ.from_pretrained(out / NAME)
        for name, value in model.state_dict().items():
            assert torch.equal(value, trained[name].half().float())
        facts = json.loads((out / NAME / "facts.json").read_text())
        assert facts["half"]["stored"] == "float16"
        assert 0 < facts["half"]["largest"] < 1e-3
        assert facts["weights"] == fingerprint(model)
        assert facts["first_weights"] is True

    def test_goals_are_those_of_the_tables(self, made):
        out, goals = made
        agreement = pd.read_csv(out / NAME / "agreement.csv")
        ours = agreement[(agreement["method"] == "VTAMIQ") & (agreement["target"] == "all")].iloc[0]
        reached = goals.set_index("measure")["reached"]
        assert reached["SROCC"] == pytest.approx(ours["srocc"])
        assert reached["within cells"] == pytest.approx(ours["within_cell"])
        compare = {"≥": operator.ge, "≤": operator.le, "=": operator.eq}
        for row in goals.itertuples():
            assert row.met == compare[row.sign](row.reached, row.goal)

    def test_photographs_are_of_their_folders(self, made):
        manifest = read_manifest(made[0] / "database" / "bsds")
        assert [(entry["source"], entry["subset"]) for entry in manifest["references"]] == [
            ("p0.png", "test"), ("p1.png", "test"), ("p2.png", "test"), ("p3.png", "val"), ("p4.png", "train"),
            ("p5.png", "train"),
        ]  # fmt: skip
        assert not manifest["skipped"]

    def test_the_left_out_type_was_not_trained_on(self, made):
        record = Run.load(made[0] / "left_out" / "weak_pretraining").record
        whole = Run.load(made[0] / "weak_pretraining").record
        assert record["data"]["train"]["pairs"] == 12
        assert whole["data"]["train"]["pairs"] == 18
        assert record["start"] == whole["start"]
        assert record["stage"] == whole["stage"]
        assert set(record["data"]) == {"train", "val"}

    def test_nothing_is_done_twice(self, made, photographs, monkeypatch):
        out, goals = made

        def refuse(*_, **__):
            raise AssertionError("done again")

        for place in (
            "vtamiq.training.run._fit", "vtamiq.databases.synthesis._render", "vtamiq.lab.candidates.predict",
            "vtamiq.lab.ablation.predict", "tools.weights.measures.predict",
        ):  # fmt: skip
            monkeypatch.setattr(place, refuse)
        before = {path.name: path.read_bytes() for path in (out / NAME).iterdir()}, (out / "times.json").read_text()
        again = make_weights(photographs, out, "cpu", QUICK, **OPTIONS)
        pd.testing.assert_frame_equal(again, goals)
        after = {path.name: path.read_bytes() for path in (out / NAME).iterdir()}, (out / "times.json").read_text()
        assert after == before

    def test_the_command_of_the_card_is_this_one(self, made):
        card = (made[0] / NAME / "README.md").read_text()
        (line,) = [line for line in card.splitlines() if line.startswith("python -m tools.weights ")]
        words = shlex.split(line)
        assert words[:8] == ["python", "-m", "tools.weights", "--images", "FOLDER", "--out", "FOLDER", "--size"]
        settings = dict(parse_setting(words[at + 1]) for at, word in enumerate(words) if word == "--set")
        assert settings == QUICK
        saved = yaml.safe_load((made[0] / "recipe.yaml").read_text())
        assert saved == json.loads(json.dumps(asdict(changed_recipe(words[8], settings))))

    def test_a_card_and_its_files_carry_no_machine_paths(self, made, photographs):
        for path in (made[0] / NAME).iterdir():
            content = path.read_bytes()
            assert str(made[0]).encode() not in content
            assert str(photographs).encode() not in content


class TestGiven:
    def test_a_database_and_a_run(self, made, tmp_path):
        out, _ = made
        settings = QUICK | {"left_out": []}
        database, run = out / "database" / "bsds", out / "weak_pretraining"
        make_weights(None, tmp_path, "cpu", settings, database=database, run=run, **OPTIONS)
        assert not (tmp_path / "weak_pretraining").exists()
        same = [VTAMIQ.from_pretrained(folder / NAME) for folder in (out, tmp_path)]
        assert fingerprint(same[0]) == fingerprint(same[1])
        card = (tmp_path / NAME / "README.md").read_text()
        assert "the database and the training had been made before by the same settings" in card
        assert "python -m tools.weights --images FOLDER --out FOLDER --size cpu --set train=0" in card
        assert "2 for training, 1 for validation, 3 for testing;" in card  # of how many is not known
        assert "seconds" not in card
        assert not (tmp_path / NAME / "left_out.csv").exists()
        assert "Types that were not trained on" not in card

    def test_preferences_come_after(self, made, tmp_path):
        out, _ = made
        settings = QUICK | {"left_out": [], "simulate": 6}
        given = {"database": out / "database" / "bsds", "run": out / "weak_pretraining"}
        make_weights(None, tmp_path, "cpu", settings, **given, **OPTIONS)
        after, finish, weak = (
            Run.load(place) for place in (tmp_path / "preferences", tmp_path / "more_patches", out / "weak_pretraining")
        )
        assert after.started_from == finish.digest
        assert finish.started_from == weak.digest
        assert after.record["data"]["train"]["preferences"] == 12
        model = VTAMIQ.from_pretrained(tmp_path / NAME)
        half = after.model.state_dict()["head.hidden.weight"].half().float()
        assert torch.equal(model.state_dict()["head.hidden.weight"], half)
        assert "Stage preferences, from preferences: 8 patches" in (tmp_path / NAME / "README.md").read_text()

    @pytest.mark.parametrize(
        ("changes", "what"),
        [
            ({"weak.optimizer.lr": 1e-4}, "stage `weak`"),
            ({"network.num_registers": 1}, "network"),
            ({"weak.epochs": 3, "network.num_registers": 1}, "stage `weak`, network"),
        ],
    )
    def test_another_run_is_refused(self, made, tmp_path, changes, what):
        given = {"database": made[0] / "database" / "bsds", "run": made[0] / "weak_pretraining"}
        with pytest.raises(ValueError, match=f"is not what the recipe would train: other {what}; say"):
            make_weights(None, tmp_path, "cpu", QUICK | changes, **given, **OPTIONS)

    def test_a_run_on_other_pairs_is_refused(self, made, tmp_path):
        given = {"database": made[0] / "database" / "bsds", "run": made[0] / "left_out" / "weak_pretraining"}
        with pytest.raises(ValueError, match="other training pairs"):
            make_weights(None, tmp_path, "cpu", QUICK, **given, **OPTIONS)

    def test_settings_of_no_matter_may_differ(self, made, tmp_path):
        given = {"database": made[0] / "database" / "bsds", "run": made[0] / "weak_pretraining"}
        changes = {"weak.runtime.in_memory": False, "left_out": []}
        assert make_weights(None, tmp_path, "cpu", QUICK | changes, **given, **OPTIONS) is not None

    def test_photographs_are_compared_with_those_of_the_database(self, made, photographs, tmp_path):
        settings = QUICK | {"left_out": []}
        given = {"database": made[0] / "database" / "bsds", "run": made[0] / "weak_pretraining"}
        make_weights(photographs, tmp_path / "out", "cpu", settings, **given, **OPTIONS)
        assert "2 of the 2 for training, 1 of the 1" in (tmp_path / "out" / NAME / "README.md").read_text()
        others = Path(shutil.copytree(photographs, tmp_path / "others"))
        photograph(99).save(others / "test" / "p0.png")
        with pytest.raises(ValueError, match="bsds is not what the recipe would make: other photographs"):
            make_weights(others, tmp_path / "out", "cpu", settings, **given, **OPTIONS)

    @pytest.mark.parametrize(
        ("changes", "what"),
        [
            ({"seed": 1}, "seed"),
            ({"size": [64, 64]}, "size"),
            ({"metrics": []}, "metrics"),
            ({"types": ["gblur", "jpeg"], "levels": [1, 3]}, "types, levels"),
            ({"test": 2}, "number of photographs for test"),
        ],
    )
    def test_another_database_is_refused(self, made, tmp_path, changes, what):
        with pytest.raises(ValueError, match=f"is not what the recipe would make: other {what}$"):
            make_weights(None, tmp_path, "cpu", QUICK | changes, database=made[0] / "database" / "bsds", **OPTIONS)

    def test_first_weights_of_another_seed_are_said(self, made, tmp_path, monkeypatch):
        given = {"database": made[0] / "database" / "bsds", "run": made[0] / "weak_pretraining"}
        monkeypatch.setattr(tiny, "first_model", lambda recipe: first_model(replace(recipe, seed=1)))
        make_weights(None, tmp_path, "cpu", QUICK | {"left_out": []}, **given, **OPTIONS)
        assert "The first weights were not those of the command's seed" in (tmp_path / NAME / "README.md").read_text()

    def test_refused(self, photographs, tmp_path):
        with pytest.raises(ValueError, match="give a folder of photographs, or a database"):
            make_weights(None, tmp_path / "out")
        with pytest.raises(ValueError, match="no size 'cpus'; did you mean `cpu`"):
            make_weights(photographs, tmp_path / "out", "cpus")
        with pytest.raises(ValueError, match="has 2 image files, train=160 are asked for"):
            make_weights(photographs, tmp_path / "out", **OPTIONS)


class TestShip:
    @pytest.fixture
    def folder(self, made, tmp_path):
        return Path(shutil.copytree(made[0] / NAME, tmp_path / NAME))

    def test_takes_the_place_of_what_ships(self, folder, tmp_path):
        (tmp_path / "package" / NAME).mkdir(parents=True)
        (tmp_path / "package" / NAME / "old.csv").write_text("old")
        (folder / "stray.txt").write_text("not of the model")
        place = ship(folder, tmp_path / "package")
        assert place == tmp_path / "package" / NAME
        assert {path.name for path in place.iterdir()} == {path.name for path in folder.iterdir()} - {"stray.txt"}
        assert render_card(place) == (place / "README.md").read_text()

    def test_refused(self, folder, tmp_path, monkeypatch):
        place = tmp_path / "package"
        card = (folder / "README.md").read_text()
        (folder / "README.md").write_text(card.replace("with seed 0", "with seed 1"))
        with pytest.raises(ValueError, match=r"README\.md is not made from the files beside it"):
            ship(folder, place)
        (folder / "README.md").write_text(card)
        monkeypatch.setattr(cards, "MAX_CURVES", 1000)
        with pytest.raises(ValueError, match=r"curves\.png has more than 1,000 bytes"):
            ship(folder, place)
        monkeypatch.undo()
        first_model(changed_recipe("cpu", QUICK)).save_pretrained(folder)
        with pytest.raises(ValueError, match=r"facts\.json is of other weights"):
            ship(folder, place)
        (folder / "history.csv").unlink()
        with pytest.raises(ValueError, match=r"has no history\.csv: let"):
            ship(folder, place)
        assert not place.exists()


class TestShell:
    def test_goes_on_and_ships(self, made, photographs, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("tools.weights.card.ship", lambda folder: tmp_path / folder.name)
        settings = [word for name, value in QUICK.items() for word in ("--set", f"{name}={json.dumps(value)}")]
        command = ["--images", str(photographs), "--out", str(made[0]), "--workers", "0", *settings, "--ship"]
        assert main(command) == 0
        said = capsys.readouterr().out
        assert "left-out types" in said
        assert f"{made[0] / NAME}: made, see README.md" in said
        assert f"{tmp_path / NAME}: ships now" in said

    def test_photographs_or_a_database(self, capsys):
        with pytest.raises(SystemExit):
            main(["--out", "out"])
        assert "give --images, or --database" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--size", "huge"], "no size 'huge'"),
            (["--set", "weak.epoch=1"], "weak.epoch: Stage has no field `epoch`; did you mean `epochs`?"),
            (["--set", "weak"], "expected NAME=VALUE, got 'weak'"),
            ([], "no folder train in "),
        ],
    )
    def test_refusals_are_one_line(self, words, message, tmp_path, capsys):
        assert main(["--images", str(tmp_path), "--out", str(tmp_path / "out"), *words]) == 2
        said = capsys.readouterr().err
        assert said.startswith("vtamiq: ")
        assert message in said
        assert said.count("\n") == 1


class TestPhotographs:
    @given(st.integers(1, 40), st.integers(0, 40))
    def test_evenly_spaced(self, number, count):
        recipe = replace(SIZES["cpu"], train=count, val=0, test=0)
        files = [Path(f"{k:03d}.jpg") for k in range(number)]
        found = {"train": files, "val": [Path("v.jpg")], "test": [Path("t.jpg")]}
        if count > number:
            with pytest.raises(ValueError, match=f"train={count} are asked for"):
                pick_photographs(found, recipe)
            return
        picked = [files.index(path) for path in pick_photographs(found, recipe).values() if path in files]
        count = count or number
        assert len(picked) == count
        assert picked[0] == 0
        steps = np.diff([*picked, number])
        assert steps.min() >= 1
        assert steps.max() - steps.min() <= 1

    def test_listed_by_name(self, photographs):
        found = list_photographs(photographs)
        assert [path.name for path in found["train"]] == ["p4.png", "p5.png"]
        assert list(pick_photographs(found, replace(SIZES["cpu"], train=0, val=0, test=2))) == [
            "p0.png", "p1.png", "p3.png", "p4.png", "p5.png",
        ]  # fmt: skip

    def test_refused(self, tmp_path):
        for part in ("train", "val", "test"):
            with pytest.raises(ValueError, match=f"no folder {part} in"):
                list_photographs(tmp_path)
            (tmp_path / part).mkdir()
        with pytest.raises(ValueError, match="train has no image files"):
            list_photographs(tmp_path)
        for part in ("train", "val", "test"):
            photograph(0).save(tmp_path / part / "same.png")
        with pytest.raises(ValueError, match=r"same\.png is in two of the folders train, val, test"):
            pick_photographs(list_photographs(tmp_path), replace(SIZES["cpu"], train=0, val=0, test=0))


class TestRecipe:
    def test_sizes(self):
        assert set(SIZES) == {"cpu", "gpu"}
        assert SIZES["cpu"] == TinyRecipe()
        assert SIZES["gpu"].weak.precision == "bf16-mixed"
        for recipe in SIZES.values():
            model = first_model(recipe)
            assert 3e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 6e6

    def test_first_weights_depend_on_the_seed_alone(self):
        recipe = changed_recipe("cpu", QUICK)
        torch.manual_seed(5)
        drawn = torch.rand(1)
        torch.manual_seed(5)
        one, other = first_model(recipe), first_model(recipe)
        assert torch.rand(1) == drawn
        assert fingerprint(one) == fingerprint(other)
        assert fingerprint(first_model(replace(recipe, seed=1))) != fingerprint(one)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"trian": 3}, "TinyRecipe has no field `trian`; did you mean `train`"),
            ({"weak.epochs": 0}, r"weak\.epochs must be at least 1, got 0"),
            ({"weak.caps.num_patchs": 3}, r"weak\.caps\.num_patchs: CAPS has no field"),
            ({"train.all": True}, r"train\.all: there is nothing below the value before `all`"),
            ({"week.epochs": 1}, r"week\.epochs: there is no `week`; did you mean `weak`"),
            ({"train": -1}, "train must not be negative"),
            ({"size": [192]}, r"size must be \(width, height\)"),
            ({"weak.labels": "preferences"}, "weak"),
            ({"preferences.name": "left_out"}, "need names of their own"),
            ({"demos": ["photoes"]}, "demos must be among photos, textures"),
            ({"database": "photos"}, "must not be called as a demo database"),
            ({"database": "../bsds"}, "must be a plain name"),
            ({"left_out": ["jpg"]}, "unknown distortion 'jpg'"),
            ({"types": ["jpeg"], "left_out": ["jpeg"]}, "must leave some of the types"),
            ({"source.terms": " "}, r"source\.terms must say something"),
            ({"measures.draws": 1}, r"measures\.draws must be at least 2"),
        ],
    )
    def test_bad_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            changed_recipe("cpu", settings)
