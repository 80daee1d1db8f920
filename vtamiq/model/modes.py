"""Evaluation mode that threads can share, and independence of how torch is set."""

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator

import torch
from torch import nn

_lock = threading.Lock()
_building = threading.RLock()
_users: "weakref.WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]]" = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block. Blocks of several threads may overlap: the last to leave restores the modes."""
    with _lock:
        count, training = _users.get(model, (0, []))
        if count == 0:
            training = [part for part in model.modules() if part.training]
            for part in training:
                part.training = False
        _users[model] = (count + 1, training)
    try:
        yield
    finally:
        with _lock:
            count, training = _users.pop(model)
            if count > 1:
                _users[model] = (count - 1, training)
            else:
                for part in training:
                    part.training = True


@contextlib.contextmanager
def usual_torch() -> Iterator[None]:
    """Float32 on the CPU, and no inference mode, for tensors that are made within the block by one thread at a time."""
    with _building, torch.device("cpu"), torch.inference_mode(False):
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def uncompiled(function: Callable) -> Callable:
    """Run a function as it is, also within what is compiled, or when it is itself given to `torch.compile`."""
    disabled = torch.compiler.disable(function)

    @functools.wraps(function)
    def call(*args, **kwargs):  # torch.compile would look through `disabled` alone
        return disabled(*args, **kwargs)

    return call
