"""The weights that ship, whichever they are: small, whole, sane, and used wherever no model is given."""

import json
import shlex
import subprocess
import threading
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from skimage import data

import vtamiq
from tools.weights.card import render_card
from tools.weights.recipe import TinyRecipe, changed_recipe
from vtamiq import VTAMIQ, CheckpointError, distort
from vtamiq.lab.explore import explore_attention, explore_score
from vtamiq.lab.views import attention_view, score_view
from vtamiq.model import inference
from vtamiq.model.checkpoints import SHIPPED
from vtamiq.model.inference import DEFAULT, DEFAULT_LABELS, check_model, fingerprint, load_default
from vtamiq.scoring.loss import VTAMIQLoss
from vtamiq.scoring.metric import VTAMIQMetric
from vtamiq.scoring.scores import ReferenceEmbedding, score
from vtamiq.scoring.table import score_table
from vtamiq.utils.configs import build, parse_setting

ROOT = Path(__file__).parents[2]
FOLDER = SHIPPED / DEFAULT
FEW = vtamiq.CAPS(num_patches=32)


@pytest.fixture(scope="module")
def photographs() -> dict[str, np.ndarray]:
    return {name: getattr(data, name)()[:256, :256] for name in ("astronaut", "coffee", "chelsea")}


@pytest.fixture(scope="module")
def pair(photographs) -> tuple[np.ndarray, np.ndarray]:
    return photographs["astronaut"], distort(photographs["astronaut"], "jpeg", 4)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder in place of the one with the models that ship."""
    monkeypatch.setattr(inference, "SHIPPED", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def q(pair) -> float:
    """What the default must give."""
    return score(*pair, model=VTAMIQ.from_pretrained(DEFAULT), caps=FEW)


class TestFiles:
    def test_size(self):
        assert (FOLDER / "model.safetensors").stat().st_size <= 12_000_000

    def test_weights_are_widened_to_float32(self):
        with safe_open(FOLDER / "model.safetensors", "pt") as stored:
            model = VTAMIQ.from_pretrained(FOLDER)
            assert set(stored.keys()) == set(model.state_dict())
            for name, value in model.state_dict().items():
                assert value.dtype == torch.float32
                assert torch.equal(value, stored.get_tensor(name).float())

    def test_what_they_were_trained_on_is_told_from_what_they_were_validated_on(self):
        seen = load_default().seen
        assert [(entry["role"], len(entry["contents"])) for entry in seen] == [("train", 160), ("val", 8)] * 2
        assert not set(seen[0]["contents"]) & set(seen[1]["contents"])

    def test_a_wheel_has_them(self):
        """hatchling takes every file of the package that git does not ignore."""
        built = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
        assert built == {"targets": {"wheel": {"packages": ["vtamiq"]}}}
        names = [str(path.relative_to(ROOT)) for path in FOLDER.iterdir()]
        ignored = subprocess.run(["git", "check-ignore", *names], cwd=ROOT, capture_output=True, text=True)
        assert ignored.stdout == ""
        assert {"config.json", "model.safetensors", "README.md", "seen.json"} <= {Path(name).name for name in names}


class TestCard:
    def test_is_made_from_the_files_beside_it(self):
        assert (FOLDER / "README.md").read_text(encoding="utf-8") == render_card(FOLDER)

    def test_files_are_of_these_weights_and_small(self):
        facts = json.loads((FOLDER / "facts.json").read_text(encoding="utf-8"))
        assert facts["weights"] == fingerprint(load_default())
        assert facts["half"]["stored"] == "float16"
        assert facts["half"]["largest"] < 1e-3
        assert (FOLDER / "curves.png").stat().st_size <= 100_000
        assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 13_000_000

    def test_says_what_it_must(self):
        facts = json.loads((FOLDER / "facts.json").read_text(encoding="utf-8"))
        card = (FOLDER / "README.md").read_text(encoding="utf-8")
        for said in (
            "BSDS500", "non-commercial research and education", "33(5):898-916", "The photographs are not included",
            facts["command"], "Seeds: 0", "SYNTHETIC", "not human opinion", "must not be used for", "research use",
            "Apache-2.0", facts["weights"], "### Goals", "![",
        ):  # fmt: skip
            assert said in card, said

    def test_the_recipe_is_that_of_the_command(self):
        facts = json.loads((FOLDER / "facts.json").read_text(encoding="utf-8"))
        words = shlex.split(facts["command"])
        settings = dict(parse_setting(words[at + 1]) for at, word in enumerate(words) if word == "--set")
        recipe = changed_recipe(words[words.index("--size") + 1], settings)
        assert build(TinyRecipe, facts["recipe"]) == recipe
        assert load_default().config == recipe.network

    def test_it_has_not_seen_what_it_is_measured_on(self):
        measured = pd.read_csv(FOLDER / "agreement.csv")["database"].unique()
        assert {"photos", "textures"} <= set(measured)
        known = {entry["database"] for entry in load_default().seen}
        assert not known & {"photos", "textures"}


class TestSane:
    def test_a_copy_scores_exactly_zero(self, photographs):
        for image in photographs.values():
            assert score(image, image.copy()) == 0

    @pytest.mark.parametrize("distortion", ["gblur", "noisegauss", "jpeg"])
    def test_more_distortion_scores_higher(self, photographs, distortion):
        for name, image in photographs.items():
            levels = [score(image, distort(image, distortion, level), repeats=4) for level in (1, 3, 5)]
            assert levels[0] < levels[1] < levels[2], (name, levels)


class TestDefault:
    def test_one_for_all_threads(self, monkeypatch):
        loaded, loads = [], []
        monkeypatch.setattr(inference, "load_default", lambda: loads.append(1) or load_default())
        inference._shared_default.cache_clear()
        threads = [threading.Thread(target=lambda: loaded.append(check_model(None))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(loads) == 1
        assert {id(model) for model in loaded} == {id(check_model(None))}
        assert not any(part.training for part in loaded[0].modules())

    def test_a_name_gives_one_of_your_own(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        mine = VTAMIQ.from_pretrained("vtamiq-tiny")
        assert mine is not check_model(None)
        assert mine.origin == check_model(None).origin == "vtamiq-tiny, which ships with vtamiq"
        assert fingerprint(mine) == fingerprint(check_model(None))
        with torch.no_grad():
            mine.head.output.bias.add_(1)
        mine.save_pretrained(tmp_path / "vtamiq-tiny")  # a folder of that name goes before
        assert VTAMIQ.from_pretrained("vtamiq-tiny").origin == "vtamiq-tiny"
        assert fingerprint(check_model(None)) != fingerprint(VTAMIQ.from_pretrained("vtamiq-tiny"))

    @pytest.mark.parametrize("name", ["vtamiq-huge", "../weights/vtamiq-tiny", "", "vtamiq-tiny/config.json"])
    def test_no_other_names(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(CheckpointError):
            VTAMIQ.from_pretrained(name)

    def test_it_is_said_which_model_scores(self, caplog, pair):
        inference._shared_default.cache_clear()
        with caplog.at_level("INFO", "vtamiq"):
            score(*pair, caps=FEW)
            score(*pair, caps=FEW)
        said = f"no model is given: {DEFAULT_LABELS} (weights {fingerprint(check_model(None))})"
        assert [record.getMessage() for record in caplog.records] == [said]

    def test_missing(self, elsewhere, pair):
        message = "is missing from this installation .*install it again, or pass model="
        for call in (load_default, lambda: check_model(None), lambda: score(*pair), VTAMIQLoss, VTAMIQMetric):
            with pytest.raises(CheckpointError, match=message):
                call()

    def test_damaged(self, elsewhere, pair):
        (elsewhere / DEFAULT).mkdir()
        (elsewhere / DEFAULT / "config.json").write_text("{}")
        with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
            score(*pair)

    def test_a_path_is_no_model(self, pair):
        with pytest.raises(TypeError, match="from_pretrained"):
            check_model("vtamiq-tiny")


class TestUsed:
    """Everything that takes a model scores with the default as with the same model given."""

    def test_score(self, pair, q):
        assert vtamiq.score(*pair, caps=FEW) == q

    def test_reference_embedding(self, pair, q):
        embedding = ReferenceEmbedding(pair[0], guides=[pair[1]], caps=FEW)
        assert embedding.score(pair[1]) == pytest.approx(q, abs=1e-5)

    def test_score_table(self, pair, q, tmp_path):
        for name, image in zip(("a", "b"), pair, strict=True):
            vtamiq.images.reading.write_png(tmp_path / f"{name}.png", image)
        table = score_table(pd.DataFrame({"reference": ["a.png"], "distorted": ["b.png"]}), root=tmp_path, caps=FEW)
        assert table["q"].tolist() == [q]
        assert table["weights"].tolist() == [fingerprint(load_default())]

    def test_modules(self, pair, q):
        y, x = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 for image in pair)
        assert VTAMIQLoss(caps=FEW)(x, y).item() == pytest.approx(q, abs=1e-5)
        metric = VTAMIQMetric(caps=FEW)
        metric.update(x, y)
        assert metric.compute().item() == pytest.approx(q, abs=1e-5)
        assert VTAMIQMetric(load_default(), caps=FEW).identity == metric.identity
        assert all(parameter.requires_grad for parameter in check_model(None).parameters())

    def test_maps(self, pair):
        maps = vtamiq.attention_maps(None, *pair, caps=FEW, draws=1)
        np.testing.assert_array_equal(maps, vtamiq.attention_maps(load_default(), *pair, caps=FEW, draws=1))
        heads = vtamiq.attention.maps.head_maps(None, *pair, caps=FEW, draws=1).maps
        assert heads.shape[:3] == (load_default().config.num_blocks, load_default().config.num_heads, 2)

    def test_views_and_explorers_say_which_model(self, pair):
        for view in (
            score_view(*pair, caps=FEW, repeats=1),
            attention_view(None, *pair, caps=FEW, draws=1),
            explore_score(images={"a": pair[0]}, caps=FEW, repeats=1).view,
            explore_attention(images={"a": pair[0]}, caps=FEW, draws=1).view,
        ):
            assert "one draw of 32 patches; vtamiq-tiny, trained on synthetic labels)" in view.summary
        given = score_view(*pair, model=load_default(), caps=FEW, repeats=1)
        assert "vtamiq-tiny" not in given.summary
        other = score_view(*pair, caps=FEW, repeats=1, trained="trained on my photographs")
        assert "trained on my photographs)" in other.summary

    def test_a_chain_may_start_from_it(self, tmp_path):
        config = json.loads((FOLDER / "config.json").read_text())
        chain = vtamiq.training.chain.Chain(
            start=DEFAULT,
            model={"head_dropout": 0.3},
            steps=(vtamiq.training.chain.Step(vtamiq.training.chain.Data("demo:photos")),),
        )
        started = vtamiq.training.chain.start_model(chain, tmp_path)
        assert started.config.head_dropout == 0.3
        assert started.config.width == config["width"]
        assert started.seen == load_default().seen
