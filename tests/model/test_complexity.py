"""Costs against hand counts."""

import pytest

from vtamiq.model.complexity import cost_table
from vtamiq.model.config import VTAMIQConfig
from vtamiq.model.network import VTAMIQ

CONFIG = VTAMIQConfig(
    backbone="vit_tiny_patch16_384", image_size=64, width=32, num_heads=2, mlp_ratio=2.0, num_blocks=2, num_registers=3,
    num_groups=1, blocks_per_group=1, reduction=4, difference_gate=True,
)  # fmt: skip


def test_counts_by_hand():
    model = VTAMIQ(CONFIG)
    table = cost_table(model, num_patches=10).set_index("part")
    D, T, N, images = 32, 1 + 3 + 10, 10, 2
    projection = images * 2 * N * (3 * 16 * 16) * D
    per_block = images * (2 * T * D * (3 * D + D + 2 * 2 * D) + 2 * 2 * T * T * D)
    assert table.loc["patch projection", "gflops"] * 1e9 == pytest.approx(projection)
    last = images * (
        2 * T * D * 2 * D + 2 * 2 * T * D + 2 * D * (D + D + 2 * 2 * D)
    )  # but for keys and values, one token
    assert table.loc["transformer blocks", "gflops"] * 1e9 == pytest.approx(per_block + last)
    block = D * D + D + 1 + D * 8 + 8 + 8 * D + D  # linear, PReLU, squeeze, expand
    assert table.loc["DiffNet", "parameters"] == block + 2 * (D * D + D)
    assert table.loc["difference scale and gate", "parameters"] == D + block + D * D + D
    assert table.loc["position, scale and class token tables", "parameters"] == (1 + 16) * D + D + 3 * D
    assert table.loc["total", "parameters"] == sum(p.numel() for p in model.parameters())
    assert table["parameters"].iloc[:-1].sum() == table["parameters"].iloc[-1]
    assert table["gflops"].iloc[:-1].sum() == pytest.approx(table["gflops"].iloc[-1])


def test_cost_grows_with_patches_and_leaves_the_model_alone():
    model = VTAMIQ(CONFIG).train()
    small, large = (cost_table(model, num_patches=n)["gflops"].iloc[-1] for n in (16, 64))
    assert 3.5 < large / small < 5
    assert model.training
    assert next(model.parameters()).device.type == "cpu"
