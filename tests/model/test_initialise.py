"""The start from scratch: what the filters are, and that nothing else is touched."""

import math

import pytest
import torch

from vtamiq.model.config import VTAMIQConfig
from vtamiq.model.initialise import cosine_filters, start_from_scratch
from vtamiq.model.network import VTAMIQ

CONFIG = VTAMIQConfig(backbone="vit_tiny_patch16_384", width=96, num_heads=3, num_blocks=2, num_groups=1, image_size=64)


@pytest.mark.parametrize(("count", "patch_size"), [(96, 16), (192, 8), (768, 16), (5, 4), (1, 2)])
def test_filters_are_orthogonal(count, patch_size):
    filters = cosine_filters(count, patch_size).double()
    assert filters.shape == (count, 3 * patch_size**2)
    norms = filters.norm(dim=1)
    assert (norms > 0.1).all()
    directions = filters / norms[:, None]
    torch.testing.assert_close(directions @ directions.T, torch.eye(count).double(), atol=1e-5, rtol=0)


def test_gain_grows_with_frequency_and_is_double_for_colour():
    filters = cosine_filters(96, 16)
    assert filters[0].norm() == pytest.approx(1 / 8)  # constant luma
    assert filters[1].norm() == pytest.approx(2 / 8)  # one half period
    assert filters[71].norm() == pytest.approx((1 + 15 * math.sqrt(2)) / 8, rel=1e-5)  # the finest diagonal
    assert filters[72].norm() == pytest.approx(2 / 8)  # constant red against blue


def test_a_grey_patch_has_no_colour_and_a_flat_patch_no_frequency():
    filters = cosine_filters(96, 16)
    grey = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)).expand(3, 16, 16)
    assert (filters @ grey.reshape(-1))[72:].abs().max() < 1e-5
    flat = torch.tensor([0.3, 0.5, 0.9])[:, None, None].expand(3, 16, 16)
    response = (filters @ flat.reshape(-1)).abs()
    constant = torch.zeros(96, dtype=torch.bool)
    constant[[0, 72, 84]] = True
    assert (response[constant] > 0.1).all()
    assert response[~constant].max() < 1e-5


def test_only_projection_and_blocks_change():
    torch.manual_seed(0)
    model = VTAMIQ(CONFIG)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert start_from_scratch(model, seed=3) is model
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    linears = {
        f"encoder.blocks.{i}.{part}.weight" for i in (0, 1) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert changed == linears | {"encoder.patch_projection.weight", "encoder.patch_projection.bias"}
    fc1 = model.encoder.blocks[0].mlp.fc1.weight
    assert fc1.std().item() == pytest.approx(math.sqrt(2 / (96 + 384)), rel=0.05)
    qkv = model.encoder.blocks[1].attn.qkv.weight
    assert qkv.std().item() == pytest.approx(math.sqrt(2 / (96 + 96)), rel=0.05)


def test_adapters_stay_the_identity():
    from dataclasses import replace

    model = start_from_scratch(VTAMIQ(replace(CONFIG, adapters=True)))
    assert not model.encoder.blocks[0].ls1[0].up.weight.any()


def test_seed_decides():
    first, again, other = (
        start_from_scratch(VTAMIQ(CONFIG), seed).encoder.blocks[0].mlp.fc1.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_more_filters_than_values_are_refused():
    with pytest.raises(ValueError, match="no 13 orthogonal filters"):
        cosine_filters(13, 2)
