"""The model that scores where none is given, and what runs any trained model: device, half precision, fingerprint."""

import contextlib
import functools
import hashlib
import logging
import os
import threading
from pathlib import Path

import torch

from vtamiq.model.checkpoints import SHIPPED, CheckpointError
from vtamiq.model.network import VTAMIQ

log = logging.getLogger(__name__)

DEFAULT = "vtamiq-tiny"
DEFAULT_LABELS = f"{DEFAULT}, trained on synthetic labels"  # to be said beside its scores

NOT_FINITE = "the score is not finite: are the weights damaged, or is half precision too coarse for them?"
HALF = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}

_loading = threading.Lock()


def check_model(model: VTAMIQ | None) -> VTAMIQ:
    """The model itself; for None the one that ships, shared by all callers, so it must not be changed.

    Raises:
        CheckpointError: none is given, and the one that ships is missing or damaged.
        TypeError: it is something else, a path for example.
    """
    if model is None:
        with _loading:  # or two threads would load it at once
            return _shared_default(SHIPPED / DEFAULT)
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if not isinstance(model, VTAMIQ):
        hint = "; load it with VTAMIQ.from_pretrained" if isinstance(model, str) else ""
        raise TypeError(f"model must be a VTAMIQ, got {type(model).__name__}{hint}")
    return model


def load_default() -> VTAMIQ:
    """Load the model that ships with the package, in evaluation mode on the CPU.

    It imitates a consensus of conventional metrics, not human opinion; see its model card, `README.md` beside its weights.

    Raises:
        CheckpointError: its files are missing from this installation, or damaged.
    """
    folder = SHIPPED / DEFAULT
    if not folder.is_dir():
        raise CheckpointError(
            f"{DEFAULT}, which ships with vtamiq, is missing from this installation (no {folder.name} in {folder.parent}): "
            "install it again, or pass model=VTAMIQ.from_pretrained(folder), in the shell --model FOLDER"
        )
    model = VTAMIQ.from_pretrained(folder)
    log.info("no model is given: %s (weights %s)", DEFAULT_LABELS, fingerprint(model))
    return model


@functools.cache
def _shared_default(folder: Path) -> VTAMIQ:
    return load_default()


def half_precision(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Autocast of a device: "float32" turns off any that is on, "float16" or "bfloat16"; ValueError for others."""
    if precision not in HALF:
        raise ValueError(f"precision must be one of {', '.join(HALF)}, got {precision!r}")
    dtype = HALF[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def choose_device(name: str | None) -> torch.device:
    """A device by name; None: the GPU of this process (torchrun's LOCAL_RANK), else the CPU. ValueError if absent."""
    if name is None:
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:  # each kind of device has its own way of being absent
        here = ", ".join(["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))])
        raise ValueError(f"there is no device {name!r} here; there is {here}") from error
    return device


def fingerprint(model: VTAMIQ) -> str:
    """Twelve hexadecimal digits that tell one set of weights and configuration from any other."""
    digest = hashlib.sha256(repr(model.config).encode())  # kept by prediction files and model cards: do not change
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]
