"""The plain twin is the same network."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.model.test_network import NETWORKS, Golden
from tests.small import TINY
from tools.benchmark.plain import TwinNetwork
from vtamiq.model.network import VTAMIQ


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_vectors(name):
    golden = Golden(name)
    twin = TwinNetwork(golden.model)
    with torch.no_grad():
        for k, key in enumerate(("out/q", "out/q_b"), start=1):
            q = twin(golden.patches[:, 0], golden.patches[:, k], golden.uv, golden.scale)
            np.testing.assert_allclose(q, golden[key], atol=1e-5, rtol=0)
        cls = twin.encode(golden.patches[:, 0], golden.uv, golden.scale)
    np.testing.assert_allclose(cls, golden["out/cls_ref"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"zero_anchor": False, "layer_scale": False, "difference_scale": False, "num_registers": 0},
        {"num_groups": 0, "class_token_position": False},
        {"difference_gate": True, "channel_attention_prelu": True, "num_scales": 3, "num_blocks": 3},
    ],
    ids=str,
)
def test_equals_the_model_in_every_configuration(change):
    torch.manual_seed(0)
    model = VTAMIQ(replace(TINY, **change)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    twin = TwinNetwork(model)
    images = torch.randint(256, (3, 2, 7, 3, 16, 16), dtype=torch.uint8)
    uv, scale = torch.rand(3, 7, 2), torch.randint(4, (3, 7))
    with torch.no_grad():
        expected = model(images, uv, scale)[:, 0]
        torch.testing.assert_close(twin(images[:, 0], images[:, 1], uv, scale), expected, atol=1e-5, rtol=1e-5)


def test_its_weights_are_its_own():
    model = VTAMIQ(TINY)
    twin = TwinNetwork(model)
    assert twin.training
    shared = {parameter.data_ptr() for parameter in model.parameters()}
    assert not shared & {parameter.data_ptr() for parameter in twin.parameters()}
    count = sum(parameter.numel() for parameter in twin.parameters())
    assert count == sum(parameter.numel() for parameter in model.parameters())


def test_training_gives_the_models_gradients():
    torch.manual_seed(0)
    model = VTAMIQ(replace(TINY, head_dropout=0.0, decoder_drop_path=0.0))
    twin = TwinNetwork(model)
    images, uv = torch.randn(3, 2, 7, 3, 16, 16), torch.rand(3, 7, 2)
    model(images, uv).sum().backward()
    twin(images[:, 0], images[:, 1], uv).sum().backward()
    pairs = [
        (twin.class_token, model.encoder.class_token),
        (twin.position_table, model.encoder.position_table),
        (twin.blocks[-1].fc1.weight, model.encoder.blocks[-1].mlp.fc1.weight),
        (twin.groups[0].expands[0].bias, model.diffnet.groups[0].blocks[0].attention.expand.bias),
        (twin.hidden.weight, model.head.hidden.weight),
    ]
    for ours, theirs in pairs:
        assert theirs.grad.abs().max() > 0
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(
    "change", [{"adapters": True}, {"mlp_dropout": 0.1}, {"embedding_dropout": 0.1}, {"encoder_drop_path": 0.1}]
)
def test_what_it_has_not_is_refused(change):
    model = VTAMIQ(replace(TINY, **change))
    with pytest.raises(ValueError, match="plain twin has neither adapters nor"):
        TwinNetwork(model)
    if "adapters" not in change:
        assert not TwinNetwork(model.eval()).training


def test_blocks_of_other_kinds_are_refused():
    model = VTAMIQ(TINY)
    model.encoder.blocks[0].attn.q_norm = torch.nn.LayerNorm(16)
    with pytest.raises(ValueError, match="usual blocks only"):
        TwinNetwork(model)
