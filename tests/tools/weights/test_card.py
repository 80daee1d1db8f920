"""Weights in half precision, and what a model card says: `tests/test_tiny.py` makes a whole one."""

import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from tests.small import TINY, small_database
from tools.weights import card as cards
from tools.weights.card import Source, command, export_weights, render_card
from tools.weights.measures import ALL
from tools.weights.recipe import TinyRecipe
from vtamiq import VTAMIQ, score
from vtamiq.images.reading import read_image


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return small_database(tmp_path_factory.mktemp("small"), references=2, levels=2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VTAMIQ(TINY).eval()


class TestExport:
    def test_half_precision(self, model, few, tmp_path):
        said = export_weights(model, tmp_path / "new" / "model", few)
        loaded = VTAMIQ.from_pretrained(tmp_path / "new" / "model")
        assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
        pairs = [[read_image(few.path(row[name])) for name in ("ref_path", "dist_path")]
                 for row in few.pairs.to_dict("records")]  # fmt: skip
        moved = max(abs(score(*pair, model=model) - score(*pair, model=loaded)) for pair in pairs)
        assert said == {"stored": "float16", "pairs": 4, "largest": pytest.approx(moved), "bytes": said["bytes"]}
        model.save_pretrained(tmp_path / "whole")
        assert said["bytes"] < 0.6 * (tmp_path / "whole" / "model.safetensors").stat().st_size
        assert said["bytes"] == (tmp_path / "new" / "model" / "model.safetensors").stat().st_size

    @pytest.mark.parametrize("factor", [3000.0, 1e7])  # scores that move by more than 0.001, and weights beyond float16
    def test_float32_where_it_is_needed(self, model, few, tmp_path, factor, caplog):
        with torch.no_grad():
            model.head.output.weight *= factor
        said = export_weights(model, tmp_path, few)
        assert said["stored"] == "float32"
        assert (said["largest"] is None) == (factor == 1e7)
        loaded = VTAMIQ.from_pretrained(tmp_path)
        for name, value in model.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[name])
        assert "the weights are kept in float32" in caplog.text

    def test_too_large(self, model, few, tmp_path, monkeypatch):
        monkeypatch.setattr(cards, "MAX_BYTES", 1000)
        with pytest.raises(ValueError, match="more than 1,000: take a smaller network"):
            export_weights(model, tmp_path, few)


def test_command_is_quoted():
    settings = {"train": 5, "types": ["jpeg"], "source.name": "mine & yours"}
    assert command("gpu", settings) == (
        "python -m tools.weights --images FOLDER --out FOLDER --size gpu --set train=5 "
        """--set 'types=["jpeg"]' --set 'source.name="mine & yours"'"""
    )
    assert command("cpu", {}) == "python -m tools.weights --images FOLDER --out FOLDER --size cpu"


@pytest.mark.parametrize("changes", [{"name": ""}, {"terms": "  "}, {"url": None}])
def test_a_source_says_what_and_on_which_terms(changes):
    with pytest.raises(ValueError, match=r"Source\.(name|terms|url) must"):
        Source(**changes)


@pytest.fixture
def folder(tmp_path):
    """A folder with files as `write_card` leaves them, of invented numbers, each of them another one."""
    recipe = json.loads(json.dumps(asdict(TinyRecipe())))
    stage = {
        "name": "weak_pretraining", "labels": "scores",
        "result": {"best_epoch": 7, "epochs": 12, "val_srocc": 0.9471, "seconds": 5},
        "settings": recipe["weak"], "versions": {"vtamiq": "0", "torch": "2.77"}, "code": "abc",
    }  # fmt: skip
    facts = {
        "command": "python -m tools.weights --size cpu", "first_weights": True, "recipe": recipe, "stages": [stage],
        "made_before": {"database": False, "run": False},
        "half": {"stored": "float16", "pairs": 19, "largest": 0.00031, "bytes": 6_543_210},
        "seconds": {"database": 61, "weak_pretraining": 7260}, "machine": {"cores": 23, "gpus": [], "python": "3"},
        "vtamiq": "0.1", "weights": "f1a9", "parameters": 3_456_789,
        "data": {
            "database": "bsds", "photographs": {"train": 160, "val": 8, "test": 24}, "seed": 41, "device": "cpu",
            "pairs": {"train": 20_000, "val": 1_000, "test": 3_000}, "size": [256, 192],
            "available": {"train": 200, "val": 100, "test": 200}, "levels": [1, 2, 3, 4, 5], "metrics": ["ssim", "vsi"],
            "types": {str(k): "x" for k in range(1, 26)},
        },
    }  # fmt: skip
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    value = iter(np.arange(0.111, 0.999, 0.0037))

    def row(**known):
        names = [f"{name}{end}" for name in cards.TITLES for end in ("", "_low", "_high")]
        about = {"n": 2904, "photographs": 24, "types": 25, "cells": 121, "synthetic": True}
        return {"database": "bsds"} | known | {name: next(value) for name in names} | about

    agreement = pd.DataFrame([
        row(target=ALL, method="VTAMIQ"), row(target=ALL, method="look-up"),
        row(target="vsi", method="VTAMIQ"), row(target="vsi", method="VSI"),
    ])  # fmt: skip
    agreement.loc[2:, [f"{name}{end}" for name in cards.TITLES for end in ("_low", "_high")]] = np.nan
    known = {"database": "bsds", "synthetic": True}
    tables = {
        "agreement": agreement,
        "types": pd.DataFrame([
            known | {"dist_type": 18, "dist_name": "mean shift", "srocc": 0.2221, "lookup_srocc": 0.2331,
                     "within_cell": 0.5, "monotony": np.nan, "ordered": False},
            known | {"dist_type": 23, "dist_name": "colour block", "srocc": 0.8999, "lookup_srocc": 0.2332,
                     "within_cell": 0.5551, "monotony": 0.9791, "ordered": True},
            known | {"dist_type": 24, "dist_name": "high sharpen", "srocc": 0.9, "lookup_srocc": 0.2333,
                     "within_cell": 0.5552, "monotony": 0.9792, "ordered": True},
        ]),
        "spread": pd.DataFrame([known | {"num_patches": 256, "n": 968, "draws": 4, "std": 0.0123, "range": 1.02,
                                         "share": 0.0121, "srocc": 0.9191}]),
        "copies": pd.DataFrame([{"database": "bsds", "photographs": 8, "largest": 0.0}]),
        "goals": pd.DataFrame([
            known | {"measure": "SROCC", "reached": 0.9543, "sign": "≥", "goal": 0.97, "met": False, "remark": "of a"},
            known | {"measure": "copy", "reached": 0.0, "sign": "=", "goal": 0.0, "met": True, "remark": "of b"},
        ]),
    }  # fmt: skip
    for name, table in tables.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


class TestCard:
    def test_says_what_it_must(self, folder):
        card = render_card(folder)
        for said in (
            "imitates a consensus of 2 conventional metrics, not human opinion", "must not be used for",
            "Berkeley, free for non-commercial research and education", "The photographs are not included",
            "33(5):898-916", "160 of the 200 for training, 8 of the 100 for validation, 24 of the 200 for testing",
            "python -m tools.weights --size cpu", "with seed 41", "23 CPU cores, no GPU", "weak pretraining 121 min",
            "float16, 6.5 MB, which moved no score of 19 pairs by more than 3.1e-04", "Apache-2.0", "research use",
            "of 12 epochs, counted from 0, 7 was", "0.947", "![Losses", "SSIM, VSI", "torch 2.77", "3.5 million",
            "| bsds | SROCC | 0.954 | ≥ 0.97 | **no** | of a |", "It falls short of 1 of the goals",
            "| bsds | copy | 0.000 | = 0 | yes | of b |", "18 mean shift (V) | brightness | 0.222 | 0.233 | – |",
            "| bsds | 968 | 4 | 256 | 0.012 | 1.020 | 1.2% | 0.919 |", "2,904 pairs of 24 photographs, 25 types, 121 cells",
            "256 patches a pair in the mean of 4 draws",
            "Types below 0.9: colour block on bsds (0.900; levels of a photograph 0.979, photographs of a level 0.555).",
            "On bsds the look-up, which opens no image, orders all pairs better (0.144) than this model does (0.111).",
            "On bsds 1 of 1 metrics agree better with the consensus of the others than this model does: VSI.",
            "| VTAMIQ | 0.111 [0.115, 0.118] |",
        ):  # fmt: skip
            assert said in card.replace("\n  ", " "), said
        assert "It reaches all goals" not in card
        assert "More patches are not better" not in card
        assert "types of distortion that it was not trained on was not measured" in card
        assert "Types that were not trained on" not in card

    def test_header_is_of_hugging_face(self, folder):
        header = yaml.safe_load(render_card(folder).split("---\n")[1])
        assert header["library_name"] == "vtamiq"
        assert header["license_name"] == "research-use"
        (result,) = header["model-index"][0]["results"]
        assert [metric["value"] for metric in result["metrics"]] == pytest.approx([0.111, 0.1221, 0.1332])

    def test_each_metric_stands_beside_the_model_on_its_own_target(self, folder):
        agreement = pd.read_csv(folder / "agreement.csv").set_index(["target", "method"])
        numbers = [
            f"{agreement.loc[('vsi', method), value]:.3f}" for method in ("VSI", "VTAMIQ") for value in cards.TITLES
        ]
        assert f"| VSI | {' | '.join(numbers)} |" in render_card(folder)

    def test_other_cases(self, folder):
        facts = json.loads((folder / "facts.json").read_text())
        facts["machine"]["gpus"], facts["first_weights"] = ["NVIDIA X"], False
        facts["half"] = {"stored": "float32", "pairs": 2, "largest": None, "bytes": 1_000_000}
        facts["data"]["available"], facts["data"]["device"] = {}, "cuda"
        facts["recipe"]["source"] |= {"url": "", "citation": ""}
        facts["made_before"], facts["recipe"]["measures"]["repeats"] = {"database": False, "run": True}, 1
        (folder / "facts.json").write_text(json.dumps(facts))
        types = pd.read_csv(folder / "types.csv")
        types.assign(srocc=0.95).to_csv(folder / "types.csv", index=False)
        goals = pd.read_csv(folder / "goals.csv").assign(met=True)
        goals.to_csv(folder / "goals.csv", index=False)
        agreement = pd.read_csv(folder / "agreement.csv")
        agreement.loc[agreement["method"] == "VTAMIQ", "srocc"] = 0.99
        agreement.to_csv(folder / "agreement.csv", index=False)
        values = {"srocc": -0.5, "srocc_full": 0.9, "within_cell": 0.1, "within_cell_full": 0.2}
        left_out = pd.DataFrame(
            [{"database": "bsds", "dist_type": 0, "dist_name": ALL, "group": ALL, "n": 600} | values]
        )
        left_out.to_csv(folder / "left_out.csv", index=False)
        spread = pd.read_csv(folder / "spread.csv")
        more = [spread.assign(num_patches=512, srocc=0.8), spread.assign(database="photos"), spread]
        pd.concat(more).to_csv(folder / "spread.csv", index=False)
        card = render_card(folder)
        assert (
            "the SROCC of a draw is 0.919 with 256 and 0.800 with 512 on bsds. Training ended with 32 patches" in card
        )
        for said in (
            "CPU cores, NVIDIA X.", "not those of the command's seed", "It reaches all goals",
            "stored as float32, 1.0 MB; loaded", "160 for training, 8 for validation", "computed on the GPU",
            "one by one: the training had been made before", "256 patches a pair in one draw",
            "| all | all | 600 | −0.500 | 0.900 | 0.100 | 0.200 |",
        ):  # fmt: skip
            assert said in card, said
        assert "Please cite" not in card
        assert "falls short" not in card
        assert "Types below" not in card
        assert "was not measured" not in card
        assert "look-up, which opens no image, orders" not in card
        assert "agree better" not in card

    @pytest.mark.parametrize("name", ["facts.json", "goals.csv", "spread.csv"])
    def test_a_missing_file_is_named(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            render_card(folder)


def test_zero_anchor_is_not_needed_to_export(few, tmp_path):
    torch.manual_seed(1)
    assert export_weights(VTAMIQ(replace(TINY, zero_anchor=False)).eval(), tmp_path, few)["stored"] == "float16"
