"""The loss: equal to the score, its gradient equal to numerical ones, and good for bringing an image to its reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.small import TINY
from vtamiq.caps import CAPS
from vtamiq.images.reading import ImageError
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring.loss import VTAMIQLoss, gather_patches
from vtamiq.scoring.scores import score


@pytest.fixture(scope="module")
def images():
    """(2, 2, 3, 70, 90) uint8: references, distorted."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(40, 200, (2, 3, 7, 9)))
    reference = F.interpolate(coarse, size=(70, 90), mode="bicubic").clamp(0, 255)
    distorted = (reference + 20 * torch.from_numpy(rng.standard_normal((2, 3, 70, 90)))).clamp(0, 255)
    return torch.stack([reference, distorted]).byte()


def network(**changes):
    torch.manual_seed(0)
    return VTAMIQ(replace(TINY, **changes)).eval()


@pytest.mark.parametrize(("scales", "tolerance"), [(1, 1e-6), (3, 0.05)])
def test_loss_of_8_bit_images_is_their_score(images, scales, tolerance):
    """Coarser scales are rounded to 8 bits in a score and are not in the loss, hence the second tolerance."""
    model = network(num_scales=scales).double()
    caps = CAPS(num_patches=40)
    expected = [score(r, d, model=model, caps=caps, seed=3) for r, d in zip(*images, strict=True)]
    loss = VTAMIQLoss(model, caps=caps, seed=3, reduction="none")(images[1].double() / 255, images[0].double() / 255)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=0, atol=tolerance * max(np.abs(expected)))
    assert min(np.abs(expected)) > 1e-4


def test_patches_of_every_scale_are_those_of_caps_but_for_rounding(images):
    sample = CAPS(num_patches=60, num_scales=3, shuffle=True)(
        [image.permute(1, 2, 0).numpy() for image in images[0]], 5
    )
    assert set(sample.scale.tolist()) == {0, 1}  # 70 × 90 has no room for a third
    for image, expected in zip(images[0], sample.patches, strict=True):
        gathered = gather_patches(image.double(), sample)
        fine = sample.scale == 0
        assert torch.equal(gathered[fine], expected[fine].double())
        assert (gathered - expected).abs().max() <= 0.5


@pytest.mark.parametrize("scales", [1, 2])
def test_gradients_equal_numerical_ones(images, scales):
    """In double precision, on images off the half steps of 8-bit values, so that no place changes under the probe."""
    loss = VTAMIQLoss(network(num_scales=scales).double(), caps=CAPS(num_patches=12), reduction="none")
    x, y = ((side[:1, :, :40, :44].double() + 0.1).clamp(max=255) / 255 for side in (images[1], images[0]))
    assert torch.autograd.gradcheck(loss, (x.requires_grad_(), y), eps=1e-6, atol=1e-7, rtol=1e-4, fast_mode=True)
    (gradient,) = torch.autograd.grad(loss(x, y).sum(), x)
    seen = gradient.abs().sum(dim=1)[0]
    row, column = np.unravel_index(seen.argmax().item(), seen.shape)
    for channel in range(3):  # and pixel by pixel, with ordinary differences
        step = torch.zeros_like(x)
        step[0, channel, row, column] = 1e-5
        with torch.no_grad():
            slope = (loss(x + step, y) - loss(x - step, y)) / 2e-5
        assert slope.item() == pytest.approx(gradient[0, channel, row, column].item(), rel=1e-4, abs=1e-9)


def test_only_pixels_within_patches_have_gradients(images):
    model, caps = network(), CAPS(num_patches=5)
    x, y = images[1, :1] / 255, images[0, :1] / 255
    (gradient,) = torch.autograd.grad(VTAMIQLoss(model, caps=caps)(x.requires_grad_(), y), x)
    pair = [image[0].permute(1, 2, 0).numpy() for image in images]
    seen = torch.zeros(70, 90, dtype=torch.bool)
    for row, column in next(caps.draws(pair, 0, [0])).position.tolist():
        seen[row : row + 16, column : column + 16] = True
    assert (gradient[0, :, ~seen] == 0).all()
    assert (gradient[0, :, seen] != 0).float().mean() > 0.99


def test_gradient_is_the_same_each_time(images):
    loss = VTAMIQLoss(network(), caps=CAPS(num_patches=200))
    x, y = (images[1] / 255).requires_grad_(), images[0] / 255
    first, second = (torch.autograd.grad(loss(x, y), x)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_new_places_are_the_draws_of_a_score(images):
    model, caps = network(), CAPS(num_patches=8)
    loss = VTAMIQLoss(model, caps=caps, new_places=True)
    x, y = images[1, :1] / 255, images[0, :1] / 255
    values = [loss(x, y).item() for _ in range(3)]
    assert len(set(values)) == 3
    assert np.mean(values) == pytest.approx(score(y[0], x[0], model=model, caps=caps, repeats=3), rel=1e-5)
    fixed = VTAMIQLoss(model, caps=caps)
    assert fixed(x, y).item() == fixed(x, y).item() == values[0]


def test_reductions(images):
    x, y = images[1] / 255, images[0] / 255
    each, mean, total = (
        VTAMIQLoss(network(), caps=CAPS(num_patches=8), reduction=r)(x, y) for r in ("none", "mean", "sum")
    )
    assert each.shape == (2,)
    torch.testing.assert_close(mean, each.mean())
    torch.testing.assert_close(total, each.sum())


def test_the_users_model_is_left_alone(images):
    model = network().train()
    loss = VTAMIQLoss(model, caps=CAPS(num_patches=8)).train()
    x = (images[1] / 255).requires_grad_()
    loss(x, images[0] / 255).backward()
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert loss.training
    assert not any(part.training for part in loss.model.modules())
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_a_copy_has_loss_and_gradient_zero(images):
    y = images[0] / 255
    x = y.clone().requires_grad_()
    loss = VTAMIQLoss(network(), caps=CAPS(num_patches=8))(x, y)
    loss.backward()
    assert loss.item() == 0
    assert (x.grad == 0).all()


def test_an_image_is_optimised_towards_its_reference(images):
    """Even under random weights, whose score of a zero difference is 0: |q| falls, and the image comes nearer."""
    loss = VTAMIQLoss(network(), caps=CAPS(num_patches=64), new_places=True, reduction="sum")
    y, x = (side[:1, :, :40, :44] / 255 for side in images)
    x.requires_grad_()
    optimiser = torch.optim.Adam([x], lr=3e-3)
    before = None
    for _ in range(30):
        optimiser.zero_grad()
        q = loss(x, y)
        before = q.item() if before is None else before
        q.abs().backward()
        optimiser.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    after = loss(x.detach(), y).item()
    assert abs(after) < 0.5 * abs(before)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(1, 3, 20, 20), torch.zeros(1, 3, 20, 21), "one shape"),
        (torch.zeros(1, 3, 20, 20), torch.full((1, 3, 20, 20), 1.01), r"y must lie in \[0, 1\], found 1.01 to 1.01"),
        (torch.full((1, 3, 20, 20), -0.1), torch.zeros(1, 3, 20, 20), "x must lie in .* clamp"),
        (torch.full((1, 3, 20, 20), torch.nan), torch.zeros(1, 3, 20, 20), "x must lie in .* nan"),
        (torch.zeros(1, 3, 20, 20, dtype=torch.uint8), torch.zeros(1, 3, 20, 20), "x must be floats .* divide"),
        (torch.zeros(3, 20, 20), torch.zeros(3, 20, 20), r"got shape \(3, 20, 20\)"),
        (torch.zeros(1, 1, 20, 20), torch.zeros(1, 1, 20, 20), r"got shape \(1, 1, 20, 20\)"),
        (torch.zeros(0, 3, 20, 20), torch.zeros(0, 3, 20, 20), r"got shape \(0, 3, 20, 20\)"),
        (torch.zeros(1, 3, 15, 20), torch.zeros(1, 3, 15, 20), "smaller than a patch"),
        (np.zeros((1, 3, 20, 20)), torch.zeros(1, 3, 20, 20), "got ndarray"),
    ],
)
def test_bad_images(x, y, message):
    with pytest.raises(ImageError, match=message):
        VTAMIQLoss(network())(x, y)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"reduction": "avg"}, ValueError, "reduction must be one of mean, sum, none, got 'avg'"),
        ({"seed": -1}, ValueError, "seed"),
        ({"caps": CAPS(aligned=False)}, ValueError, "aligned"),
        ({"model": "folder"}, TypeError, "from_pretrained"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        VTAMIQLoss(**({"model": network()} | arguments))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images(images, dtype):
    x, y = (images[1] / 255).to(dtype).requires_grad_(), (images[0] / 255).to(dtype)
    loss = VTAMIQLoss(network(), caps=CAPS(num_patches=8))(x, y)
    loss.backward()
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()
    assert (x.grad != 0).any()


def test_compiled_in_a_training_step(images):
    """The network is compiled, the choice of places runs as it is: the same losses and gradients, call by call."""
    plain, loss = (VTAMIQLoss(network(), caps=CAPS(num_patches=8), new_places=True) for _ in range(2))
    compiled = torch.compile(loss, backend="aot_eager")
    weight = torch.tensor(0.9, requires_grad=True)
    y, x = (side / 255 for side in images)

    @torch.compile(backend="aot_eager")
    def step(criterion):
        return criterion(x * weight, y)

    for call in (compiled, lambda x, y: step(loss), compiled):
        for _ in range(3):
            expected, found = plain(x * weight, y), call(x * weight, y)
            assert found.item() == pytest.approx(expected.item(), abs=1e-6)
            gradients = [torch.autograd.grad(value, weight)[0] for value in (expected, found)]
            torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
