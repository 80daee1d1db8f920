"""Evaluation mode that threads share, devices, half precision and the fingerprint of a model."""

import gc
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from tests.small import TINY
from vtamiq.model import modes
from vtamiq.model.inference import choose_device, fingerprint, half_precision
from vtamiq.model.modes import evaluation
from vtamiq.model.network import VTAMIQ


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VTAMIQ(TINY)


def test_overlapping_blocks_restore_the_mode_once():
    model = VTAMIQ(TINY).train()
    model.head.eval()
    first, second = evaluation(model), evaluation(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(part.training for part in model.modules())
    second.__exit__(None, None, None)
    assert model.training
    assert model.encoder.training
    assert not model.head.training


def test_mode_is_restored_after_an_error():
    model = VTAMIQ(TINY).train()
    with pytest.raises(KeyError), evaluation(model):
        raise KeyError
    assert model.training


def test_models_are_not_kept_alive():
    before = len(modes._users)
    model = VTAMIQ(TINY)
    with evaluation(model):
        assert len(modes._users) == before + 1
    del model
    gc.collect()
    assert len(modes._users) == before


def test_fingerprint_tells_weights_and_configurations_apart(model, tmp_path):
    digits = fingerprint(model)
    assert len(digits) == 12
    model.save_pretrained(tmp_path)
    assert fingerprint(VTAMIQ.from_pretrained(tmp_path)) == digits
    changed = deepcopy(model)
    with torch.no_grad():
        changed.head.output.bias.add_(1e-7)
    assert fingerprint(changed) != digits
    other = VTAMIQ(replace(TINY, zero_anchor=False))
    other.load_state_dict(model.state_dict())
    assert fingerprint(other) != digits
    assert fingerprint(deepcopy(model).half()) != digits
    assert fingerprint(model.train()) == fingerprint(model.eval()) == digits


def test_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(None) == torch.device("cpu")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="there is no device 'nonsense' here"):
        choose_device("nonsense")


def test_each_process_of_torchrun_takes_its_own_gpu(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda size, device: asked.append(device))
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device(None) == torch.device("cuda", 3)
    assert asked == [torch.device("cuda", 3)]


def test_half_precision():
    x = torch.ones(2, 2)
    for name in ("float32", "float16", "bfloat16"):
        with half_precision(x.device, name):
            assert (x @ x).dtype == getattr(torch, name)
    with pytest.raises(ValueError, match="precision must be one of float32, float16, bfloat16, got 'int8'"):
        half_precision(x.device, "int8")
