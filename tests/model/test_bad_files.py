"""Weights files that are no weights: each gets a sentence of its own, and what can be read is read."""

import socket

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.model.test_network import Golden
from tests.small import TINY
from vtamiq.model.backbone import create_vit
from vtamiq.model.checkpoints import CheckpointError
from vtamiq.model.config import VTAMIQConfig
from vtamiq.model.network import VTAMIQ

HEADS = {"num_heads": 4}


@pytest.fixture(scope="module")
def original():
    """State dict of the original network in its 2024 state, and ours of the same weights."""
    state = {name: torch.from_numpy(value) for name, value in Golden("model_noscale").weights.items()}
    return state, VTAMIQ.from_original(state, **HEADS).state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model_state_dict": state},
        lambda state: {"state_dict": {f"model.{name}": value for name, value in state.items()}, "epoch": 3},
        lambda state: {"model": state, "optimizer": {}},
        lambda state: {name: np.asarray(value) for name, value in state.items()},
    ],
    ids=["theirs", "lightning", "timm", "arrays"],
)
def test_checkpoints_of_every_wrapping_load(original, tmp_path, wrap):
    torch.save(wrap(original[0]), tmp_path / "model.pth")
    loaded = VTAMIQ.from_original(tmp_path / "model.pth", **HEADS).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in original[1].items())


def test_safetensors_of_an_original_load(original, tmp_path):
    save_file(
        {name: torch.as_tensor(value).contiguous() for name, value in original[0].items()}, tmp_path / "m.safetensors"
    )
    assert VTAMIQ.from_original(tmp_path / "m.safetensors", **HEADS).config.num_heads == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.pth", b"", r"empty\.pth: is empty \(0 bytes\)"),
        ("page.pth", b"<!DOCTYPE html><html>", r"page\.pth: is a web page"),
        (
            "noise.pth",
            b"\x80\x02noise",
            "damaged, or holds Python objects, which are not loaded because they may run code",
        ),
        ("noise.safetensors", b"noise", r"noise\.safetensors: damaged or truncated"),
        ("missing.pth", None, "no such file"),
        ("", None, "is a folder"),
    ],
)
def test_each_bad_file_has_its_sentence(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        VTAMIQ.from_original(tmp_path / name)


def test_other_weights_are_named(tmp_path):
    torch.save({"state_dict": VTAMIQ(TINY).state_dict()}, tmp_path / "ours.pth")
    with pytest.raises(CheckpointError, match=r"it holds `\S+`, `\S+`, `\S+`; models of this package are folders"):
        VTAMIQ.from_original(tmp_path / "ours.pth")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is a file, but models are folders"):
        VTAMIQ.from_pretrained(tmp_path / "model.safetensors")


class TestViT:
    config = VTAMIQConfig(backbone="test_vit", num_blocks=2, num_groups=1, blocks_per_group=1, reduction=4)

    def test_a_given_state_dict_is_taken(self, tmp_path):
        torch.manual_seed(1)
        state = create_vit(self.config).state_dict()
        save_file(state, tmp_path / "vit.safetensors")
        for given in (state, tmp_path / "vit.safetensors"):
            model = VTAMIQ.from_vit(self.config, pretrained=given)
            assert torch.equal(model.encoder.blocks[1].mlp.fc1.weight, state["blocks.1.mlp.fc1.weight"])
            assert torch.equal(model.encoder.position_table[1:], state["pos_embed"][0, 1:])

    def test_what_is_no_vit(self, tmp_path):
        with pytest.raises(CheckpointError, match="the given state dict: has no `cls_token`"):
            VTAMIQ.from_vit(self.config, pretrained={"x": torch.zeros(1)})
        (tmp_path / "vit.pth").write_bytes(b"x")
        with pytest.raises(CheckpointError, match=r"vit\.pth: a ViT is read from \.npz"):
            VTAMIQ.from_vit(self.config, pretrained=tmp_path / "vit.pth")

    def test_no_network_is_one_sentence(self, monkeypatch):
        def refuse(*_, **__):
            raise socket.gaierror(-2, "Name or service not known")

        monkeypatch.setattr("timm.create_model", refuse)
        with pytest.raises(
            CheckpointError, match="`vit_base_patch16_384` are not in the local cache and cannot be downloaded"
        ):
            VTAMIQ.from_vit(VTAMIQConfig())


@pytest.mark.parametrize(
    "values",
    [
        {"num_groups": 10**9},
        {"blocks_per_group": 10**9},
        {"width": 10**9},
        {"image_size": 10**400},
        {"mlp_ratio": 10**400},
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_built(values):
    (name,) = values
    with pytest.raises(ValueError, match=rf"VTAMIQConfig\.{name} must be "):
        VTAMIQConfig.from_dict(values)


def test_sizes_that_are_absurd_together_are_refused():
    with pytest.raises(ValueError, match=r"VTAMIQConfig\.width and numbers of blocks ask for over 4 billion weights"):
        VTAMIQConfig(width=16_384, num_heads=1, num_blocks=200)
    assert VTAMIQConfig(width=1408, num_blocks=40).width == 1408  # ViT-g
