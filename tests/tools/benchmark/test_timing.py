"""Turns, medians, ranges and ratios. Nothing here depends on time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.small import TINY
from tools.benchmark import timing
from tools.benchmark.timing import (
    Benchmark,
    compare,
    curve,
    inputs,
    interleaved,
    pictures,
    product_rates,
    row,
    training_step,
    versions_of,
    wall_clock,
    without_gradient,
)
from vtamiq.model.config import VTAMIQConfig
from vtamiq.model.network import VTAMIQ


def test_calls_take_turns_after_one_to_warm_up():
    calls = []
    seconds, results = interleaved([lambda: calls.append("a") or len(calls), lambda: calls.append("b")], 3)
    assert calls == ["a", "b"] * 4
    assert seconds.shape == (3, 2)
    assert (seconds >= 0).all()
    assert results == [7, None]


def test_processor_time_is_taken(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(timing.time, "process_time", lambda: next(clock) ** 2)
    seconds, _ = interleaved([lambda: None, lambda: None], 2, warm_up=False)
    assert seconds.tolist() == [[1, 5], [9, 13]]


def test_or_any_clock():
    clock = iter(range(100))
    seconds, _ = interleaved([lambda: next(clock)], 2, clock=lambda: next(clock))
    assert seconds.tolist() == [[2], [2]]
    now = wall_clock(torch.device("cpu"))
    assert now() <= now()


def test_medians_ranges_and_ratios_of_the_same_round():
    found = row("x", np.array([1.0, 4.0, 2.0]), "y", np.array([3.0, 4.0, 4.0]), x=8.0)
    assert found == {
        "what": "x", "against": "y", "x": 8.0, "seconds": 2.0, "fastest": 1.0, "slowest": 4.0, "ratio": 2.0, "lowest": 1.0,
        "highest": 3.0,
    }  # fmt: skip
    assert "ratio" not in row("x", np.ones(2))


def test_comparisons_and_shares(monkeypatch):
    seconds = np.array([[4.0, 2.0, 1.0], [9.0, 3.0, 2.0], [4.0, 1.0, 1.0]])
    monkeypatch.setattr(timing, "interleaved", lambda functions, rounds: (seconds, [1.0, 1.25, None]))
    monkeypatch.setattr(timing, "squares", lambda: [None])
    options = {"goals": {"y": 2.5}, "flops": timing.SQUARE_FLOPS / 2, "share": 0.8}
    first, second = compare("x", ("twin", None), {"y": None}, 3, **options)
    assert [first[name] for name in ("what", "against", "ratio", "lowest", "highest", "seconds", "error", "goal")] == [
        "xy", "twin", 3.0, 2.0, 4.0, 2.0, 0.25, 2.5,
    ]  # fmt: skip
    assert [second[name] for name in ("what", "against", "ratio", "lowest", "highest", "goal")] == [
        "xy", "best float32 rate", 0.25, 1 / 6, 0.5, 0.8,
    ]  # fmt: skip


def test_costs_are_of_one_item_against_the_first_setting(monkeypatch):
    seconds = np.array([[2.0, 8.0], [4.0, 8.0]])
    monkeypatch.setattr(timing, "interleaved", lambda functions, rounds: (seconds, [None, None]))
    rows = curve("scoring", "pairs", {1: None, 4: None}, 2, per={1: 1, 4: 4})
    assert [found["x"] for found in rows] == [1.0, 4.0]
    assert [found["seconds"] for found in rows] == [3.0, 2.0]
    assert [found["ratio"] for found in rows] == [1.0, 1.5]
    assert {found["against"] for found in rows} == {"1 pairs"}
    assert [found["seconds"] for found in curve("scoring", "pairs", {1: None, 4: None}, 2, per=2)] == [1.5, 4.0]


def test_rates_are_rates():
    rates = product_rates(1)
    assert len(rates) in (1, 2)
    assert min(rates) > 1e6


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_training_step_moves_the_weights(dtype):
    torch.manual_seed(0)
    model = VTAMIQ(TINY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, uv = inputs(4, 2, 5, 16)
    training_step(model, lambda: model(images, uv)[:, 0], 4, dtype)()
    assert model.training
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert same <= {"encoder.norm.bias"}  # which no difference of class tokens has
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())


def test_inputs_are_the_same_each_time():
    first, second = inputs(2, 3, 5, 16), inputs(2, 3, 5, 16)
    assert [tuple(part.shape) for part in first] == [(2, 3, 5, 3, 16, 16), (2, 5, 2)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not without_gradient(lambda x: x * 1, first[0]).requires_grad


def test_pictures_differ_and_are_the_same_each_time():
    first, second = pictures(40, 60), pictures(40, 60)
    assert first[0].shape == (40, 60, 3)
    assert first[0].dtype == np.uint8
    assert (first[0] != first[1]).any()
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    versions = versions_of(*first, 3)
    assert len(versions) == 3
    assert np.array_equal(versions[-1], first[1])
    errors = [np.abs(version - first[0].astype(int)).sum() for version in versions]
    assert errors == sorted(errors)


class TestSettings:
    @pytest.mark.parametrize(
        "change",
        [
            {"rounds": 0}, {"batch": 1}, {"patches": 0}, {"megapixels": (0.0,)}, {"megapixels": ()}, {"blocks": 1.5},
            {"versions": 0}, {"rows": 10}, {"blocks": 3, "model": "folder"},
        ],
    )  # fmt: skip
    def test_bad_settings_are_refused(self, change):
        with pytest.raises(ValueError, match=f"Benchmark.{next(iter(change))}"):
            replace(Benchmark(), **change)

    def test_the_default_is_the_papers_network(self):
        settings, config = Benchmark(), VTAMIQConfig()
        assert (settings.backbone, settings.blocks) == (config.backbone, config.num_blocks)

    def test_the_network_is_the_same_each_time(self, tmp_path):
        settings = Benchmark(backbone="vit_tiny_patch16_384", blocks=1, width=32, num_heads=2)
        state = torch.get_rng_state()
        first, second = settings.network(), settings.network()
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
        second.head.output.bias.data += 1
        second.save_pretrained(tmp_path)
        given = Benchmark(model=str(tmp_path)).network()
        assert given.config == second.config
        assert torch.equal(given.head.output.bias, second.head.output.bias)
