"""Trained models as folders: found on the disk, in the package or on the Hugging Face Hub, and read with every check."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SEEN = "seen.json"  # beside the weights of a trained model
SHIPPED = Path(__file__).parents[1] / "weights"  # models that come with the package, each in a folder of its name


class CheckpointError(ValueError):
    """A weights file is missing, damaged, unsafe or made for another configuration; the message says which and where."""


def find_folder(folder_or_id: str | Path, download: bool, revision: str | None) -> Path:
    """The folder of a model: as given, by the name of one that ships, or of a hub id; CheckpointError if incomplete."""
    folder = Path(folder_or_id)
    if os.path.isfile(folder):
        readers = "from_original reads checkpoints of the authors, from_vit a ViT"
        raise CheckpointError(f"{folder}: is a file, but models are folders written by `save_pretrained`; {readers}")
    if not os.path.isdir(folder):  # Path.is_dir raises where a name is too long
        shipped = {path.name: path for path in SHIPPED.glob("*")}
        folder = shipped.get(str(folder_or_id)) or _fetch(str(folder_or_id), download, revision)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            pickled = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pth", ".pt", ".ckpt"))
            hint = f"; pickled weights ({pickled[0]}) are not read, they may run code" if pickled else ""
            raise CheckpointError(f"{folder}: has no {name}; expected a folder written by `save_pretrained`{hint}")
    return folder


def _fetch(hub_id: str, download: bool, revision: str | None) -> Path:
    files = [CONFIG, WEIGHTS, SEEN]
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=files, local_files_only=not download))
    except LocalEntryNotFoundError as error:
        failure = f", and cannot be fetched ({error.__cause__ or error})"
        cause = failure if download else "; pass download=True to fetch it"
        raise CheckpointError(f"`{hub_id}` is neither a folder nor in the local Hugging Face cache{cause}") from error
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        message = f"`{hub_id}` is neither a folder nor to be had from the Hugging Face Hub ({error})"
        raise CheckpointError(message) from error


def first_bytes(path: Path) -> bytes:
    """The first 256 bytes of a file; CheckpointError if it is missing, empty or no regular file."""
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder, not a file; folders of models are for from_pretrained")
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is no regular file' if path.exists() else 'no such file'}")
    with path.open("rb") as file:
        head = file.read(256)
    if not head:
        raise CheckpointError(f"{path}: is empty (0 bytes); was its download or copy cut off?")
    return head


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; CheckpointError if it is damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({error})") from error


def load_weights(model: nn.Module, source: Path | Mapping[str, Tensor]) -> None:
    """Copy a safetensors file, or the state dict of an original checkpoint, into a model.

    CheckpointError if the file is damaged, a name or shape differs, or a value is not finite.
    """
    where = source if isinstance(source, Path) else "original checkpoint"
    state = read_safetensors(source) if isinstance(source, Path) else source
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{where}: weights do not fit the configuration: {error}") from error
    for name, value in state.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{where}: `{name}` holds NaN or infinite values")


def read_seen(folder: Path) -> tuple[dict[str, Any], ...] | None:
    """What a model has seen, as `save_pretrained` wrote it; None if there is no such file, or a damaged one."""
    try:
        seen = json.loads((folder / SEEN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    fields = {"database", "contents", "pictures"}
    whole = isinstance(seen, list) and all(isinstance(entry, dict) and fields <= entry.keys() for entry in seen)
    return tuple(seen) if whole else None
