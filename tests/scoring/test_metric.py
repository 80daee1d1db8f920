"""The torchmetrics metric equals the mean of scores, however the pairs are dealt out to batches and processes."""

import pickle

import numpy as np
import pytest
import torch
import torchmetrics
from matplotlib import pyplot

import vtamiq
from tests.small import TINY
from vtamiq.caps import CAPS
from vtamiq.images.reading import ImageError
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring.metric import VTAMIQMetric
from vtamiq.scoring.scores import score

CAPS_8 = CAPS(num_patches=8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VTAMIQ(TINY).eval()


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.integers(0, 256, (3, 3, 24, 30), dtype=np.uint8))
    return target.flip(-1), target


@pytest.fixture(scope="module")
def scores(model, pairs):
    return [score(target, preds, model=model, caps=CAPS_8) for preds, target in zip(*pairs, strict=True)]


def test_mean_and_sum_over_batches_are_those_of_scores(model, pairs, scores):
    for reduction, expected in (("mean", np.mean(scores)), ("sum", np.sum(scores))):
        metric = VTAMIQMetric(model, caps=CAPS_8, reduction=reduction)
        metric.update(pairs[0][:1], pairs[1][:1])
        metric.update(pairs[0][1:] / 255, pairs[1][1:] / 255)
        assert metric.compute().item() == pytest.approx(expected, rel=1e-5)


def test_forward_gives_the_batch_and_reset_forgets(model, pairs, scores):
    metric = VTAMIQMetric(model, caps=CAPS_8)
    assert metric(pairs[0][:1], pairs[1][:1]).item() == pytest.approx(scores[0], rel=1e-5)
    assert metric(pairs[0][1:], pairs[1][1:]).item() == pytest.approx(np.mean(scores[1:]), rel=1e-5)
    assert metric.compute().item() == pytest.approx(np.mean(scores), rel=1e-5)
    metric.reset()
    metric.update(pairs[0][:1], pairs[1][:1])
    assert metric.compute().item() == pytest.approx(scores[0], rel=1e-5)


def test_works_in_a_collection_and_through_pickle(model, pairs, scores):
    collection = torchmetrics.MetricCollection({"vtamiq": VTAMIQMetric(model, caps=CAPS_8)})
    collection = pickle.loads(pickle.dumps(collection))
    collection.update(*pairs)
    assert collection.compute()["vtamiq"].item() == pytest.approx(np.mean(scores), rel=1e-5)


def test_states_of_processes_are_summed(model, pairs, scores):
    """What torchmetrics does across processes: gather each state, then reduce it as it was declared."""
    metrics = [VTAMIQMetric(model, caps=CAPS_8) for _ in range(2)]
    metrics[0].update(pairs[0][:1], pairs[1][:1])
    metrics[1].update(pairs[0][1:], pairs[1][1:])
    metrics[0].merge_state(metrics[1])
    assert metrics[0].compute().item() == pytest.approx(np.mean(scores), rel=1e-5)
    reductions = metrics[0]._reductions
    assert all(reductions[name] is torchmetrics.utilities.data.dim_zero_sum for name in ("total", "count"))


def test_different_models_of_one_collection_stay_apart(model, pairs):
    """Although their states are equal at first: a copy has the score 0 by any model."""
    torch.manual_seed(1)
    metrics = {"one": VTAMIQMetric(model, caps=CAPS_8), "other": VTAMIQMetric(VTAMIQ(TINY), caps=CAPS_8)}
    collection = torchmetrics.MetricCollection(metrics)
    alone = [VTAMIQMetric(metric.loss.model, caps=CAPS_8) for metric in metrics.values()]
    for images in ((pairs[1], pairs[1]), pairs):
        collection.update(*images)
        for metric in alone:
            metric.update(*images)
    assert [value.item() for value in collection.compute().values()] == [metric.compute().item() for metric in alone]
    assert alone[0].compute() != alone[1].compute()


def test_gradients_flow(model, pairs):
    x = (pairs[0] / 255).requires_grad_()
    VTAMIQMetric(model, caps=CAPS_8)(x, pairs[1] / 255).backward()
    assert (x.grad != 0).any()


def test_plot(model, pairs):
    metric = VTAMIQMetric(model, caps=CAPS_8)
    metric.update(*pairs)
    figure, axes = metric.plot()
    assert axes.get_lines()[0].get_ydata()[0] == pytest.approx(metric.compute().item())
    pyplot.close(figure)


def test_direction():
    assert VTAMIQMetric.higher_is_better is False
    assert VTAMIQMetric.is_differentiable is True


def test_bad_input(model):
    with pytest.raises(ValueError, match="reduction"):
        VTAMIQMetric(model, reduction="none")
    with pytest.raises(ImageError, match=r"x must lie in \[0, 1\]"):
        VTAMIQMetric(model).update(torch.full((1, 3, 20, 20), 2.0), torch.zeros(1, 3, 20, 20))


def test_is_found_in_the_package_without_being_imported_at_once():
    assert vtamiq.VTAMIQMetric is VTAMIQMetric
    assert "VTAMIQMetric" in dir(vtamiq)
    with pytest.raises(AttributeError, match="VTAMIQMetrik"):
        getattr(vtamiq, "VTAMIQMetrik")  # noqa: B009
