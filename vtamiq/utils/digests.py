"""Short SHA-256 digests of what decides a result: text, plain values, files, tables and weights."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

LENGTH = 16  # hexadecimal digits: 64 bits


def digest(value: Any, length: int = LENGTH) -> str:
    """Digest bytes, text (as UTF-8), or any other plain value (as JSON)."""
    if not isinstance(value, bytes):
        value = (value if isinstance(value, str) else json.dumps(value)).encode()
    return hashlib.sha256(value).hexdigest()[:length]


def digest_number(text: str) -> int:
    """A number below 2**64 that depends on the text alone, on every machine: a seed."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def digest_file(path: str | Path) -> str:
    """Digest the contents of a file; OSError if it cannot be read."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:LENGTH]


def digest_table(table: "pd.DataFrame") -> str:
    """Digest the columns and rows of a table, in their order; its index does not count."""
    return digest(table.to_csv(index=False))


def digest_weights(model: "nn.Module") -> str:
    """Digest names and values of all parameters and buffers, wherever the model is."""
    import torch

    hashed = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        hashed.update(name.encode())
        hashed.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()[:LENGTH]
