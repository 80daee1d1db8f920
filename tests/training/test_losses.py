"""Losses against the original implementation's values and gradients, and by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vtamiq.training.losses import combined_loss, mae_loss, pearson_loss, rank_loss

GOLDEN = np.load(Path(__file__).parents[1] / "data/losses.npz")
CASES = sorted({name.split("/")[0] for name in GOLDEN.files})


def total_2024(d, y):
    return combined_loss(d, y)[0]


def total_2021(d, y):
    return combined_loss(d, y, mae=1 / 2.2, rank=1 / 2.2, pearson=0.2 / 2.2)[0]


LOSSES = {
    "mae": mae_loss,
    "rank": rank_loss,
    "pearson": pearson_loss,
    "total_2024": total_2024,
    "total_2021": total_2021,
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_equal_the_original(case, loss):
    d = torch.from_numpy(GOLDEN[f"{case}/d"]).clone().requires_grad_()
    y = torch.from_numpy(GOLDEN[f"{case}/y"])
    value = LOSSES[loss](d, y)
    value.backward()
    gradient = GOLDEN[f"{case}/grad_{loss}"]
    assert value.item() == pytest.approx(float(GOLDEN[f"{case}/{loss}"]), abs=1e-6)
    np.testing.assert_allclose(d.grad.numpy(), gradient, rtol=0, atol=1e-4 * np.abs(gradient).max())


def test_rank_by_hand():
    # pairs (0,1): ordered; (0,2): |0.2-0.1|/0.2 = 0.5 wrong way; (1,2): |0.4-0.1|/0.4 = 0.75 wrong way
    loss = rank_loss(torch.tensor([0.2, 0.4, 0.1]), torch.tensor([0.0, 1.0, 2.0]))
    assert loss.item() == pytest.approx((0.5 + 0.75) / 3, abs=1e-6)


def test_rank_of_two_zero_predictions_is_finite():
    d = torch.zeros(2, requires_grad=True)
    loss = rank_loss(d, torch.tensor([0.0, 1.0]))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(d.grad).all()


def test_rank_of_one_prediction_is_zero_and_differentiable():
    d = torch.tensor([0.3], requires_grad=True)
    rank_loss(d, torch.tensor([0.5])).backward()
    assert d.grad.item() == 0


def test_losses_keep_their_precision_under_autocast():
    d, y = torch.rand(8, generator=torch.Generator().manual_seed(1)), torch.linspace(0, 1, 8)
    expected = combined_loss(d, y, mae=1.0)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(combined_loss(d, y, mae=1.0)[0], expected)


def test_every_weight_acts():
    torch.manual_seed(0)
    d, y = torch.rand(8), torch.rand(8)
    total, parts = combined_loss(d, y, mae=0.3, rank=2.0, pearson=0.7)
    by_hand = 0.3 * parts["mae"] + 2.0 * parts["rank"] + 0.7 * parts["pearson"]
    assert total.item() == pytest.approx(by_hand.item(), rel=1e-6)
    for name in ("mae", "rank", "pearson"):
        alone, parts = combined_loss(d, y, **({"mae": 0.0, "rank": 0.0, "pearson": 0.0} | {name: 2.0}))
        assert alone.item() == pytest.approx(2 * parts[name].item(), rel=1e-6)


@pytest.mark.parametrize("weights", [{"mae": -1.0}, {"mae": float("nan")}, {"mae": 0.0, "rank": 0.0, "pearson": 0.0}])
def test_bad_weights_are_refused(weights):
    with pytest.raises(ValueError, match="loss weights"):
        combined_loss(torch.rand(3), torch.rand(3), **weights)


@pytest.mark.parametrize("loss", [mae_loss, rank_loss, pearson_loss, combined_loss])
def test_shapes_must_agree(loss):
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        loss(torch.rand(3), torch.rand(4))
    with pytest.raises(ValueError, match=r"\(3,\) and \(3, 1\)"):
        loss(torch.rand(3), torch.rand(3, 1))
