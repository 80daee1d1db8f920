"""Weights in and out of a model: from a ViT, from the original authors, from folders and the Hugging Face Hub."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import save

from vtamiq.model.backbone import load_vit
from vtamiq.model.checkpoints import (
    CONFIG,
    SEEN,
    SHIPPED,
    WEIGHTS,
    CheckpointError,
    find_folder,
    load_weights,
    read_seen,
)
from vtamiq.model.config import VTAMIQConfig
from vtamiq.model.modes import usual_torch
from vtamiq.model.original import convert_original, read_original
from vtamiq.utils.files import read_json, replacing, write_text

_CARD = """---
{{ card_data }}
---

# VTAMIQ

A full-reference image quality metric (Chubarau & Clark 2021, {{ paper_url }}): it compares a distorted image with its
reference. **Lower is better.** Load it with `VTAMIQ.from_pretrained(folder)` and score pairs with `vtamiq.score`.

## What it was trained on

{{ training | default("Not stated.", true) }}
"""


class Pretrained(
    PyTorchModelHubMixin,
    library_name="vtamiq",
    paper_url="https://arxiv.org/abs/2110.01655",
    model_card_template=_CARD,
    tags=["image-quality-assessment", "full-reference"],
):
    """How `VTAMIQ` is started from, loaded from and saved to files.

    Attributes:
        origin: where the weights come from, in words.
        seen: pictures that the weights were trained or validated on, as `vtamiq.databases.seen` has them; empty for
            initial values and for an ImageNet ViT, None if nobody knows. Kept by `save_pretrained`.
    """

    config: VTAMIQConfig
    origin = "initial values, not loaded from anywhere"
    seen: tuple[dict[str, Any], ...] | None = ()

    @classmethod
    @usual_torch()
    def from_vit(
        cls, config: VTAMIQConfig = VTAMIQConfig(), *, pretrained: bool | str | Path | Mapping[str, Any] = True
    ) -> Self:
        """Start a new VTAMIQ from a pre-trained ViT; all but its encoder keeps initial values.

        Args:
            config: its `backbone` names the ViT. The position table is resized to its `image_size`; None takes the ViT's.
            pretrained: True downloads timm's weights of that name, and takes over the colour normalisation that they were
                trained with unless `mean` or `std` is set; a path reads a `.npz` in the original JAX layout, such as
                `imagenet21k+imagenet2012_ViT-B_16.npz`, or a `.safetensors` of timm's; a mapping is a state dict with
                timm's names; False keeps initial values.

        Raises:
            CheckpointError: the weights are missing, damaged, of another architecture or not to be downloaded.
            ValueError: a downloaded ViT is asked to have another width, number of heads, MLP or patch size.
        """
        if pretrained is False:
            return cls(config)
        vit, config = load_vit(config, None if pretrained is True else pretrained)
        return cls(config, _vit=vit)

    @classmethod
    @usual_torch()
    def from_original(cls, source: str | Path | Mapping[str, Any], *, num_heads: int = 12, **changes: Any) -> Self:
        """Load a checkpoint of the original authors' repository (ch-andrei/VTAMIQ, states of 2021 and 2024).

        Args:
            source: checkpoint file, or its (or its network's) state dict of tensors or arrays.
            num_heads: attention heads, which the weights do not tell: with another number than they were trained with,
                they load all the same and scores are wrong.
            changes: further fields of `VTAMIQConfig`, for example `zero_anchor=True` or dropout rates.

        Returns:
            The model in evaluation mode.

        Raises:
            CheckpointError: unreadable, unsafe, or not such a checkpoint; also if weights and `changes` disagree.
        """
        base, read, state = convert_original(read_original(source))
        try:
            model = cls(replace(base, **(read | {"num_heads": num_heads} | changes)))
        except ValueError as error:
            raise CheckpointError(f"original checkpoint: {error}") from error
        load_weights(model, state)
        model.origin, model.seen = "a given state dict" if isinstance(source, Mapping) else str(source), None
        return model.eval()

    @classmethod
    @usual_torch()
    def from_pretrained(cls, folder_or_id: str | Path, *, download: bool = False, revision: str | None = None) -> Self:
        """Load a folder that `save_pretrained` wrote, a model that comes with the package ("vtamiq-tiny"), or a hub id.

        Without `download=True` a Hugging Face Hub id is looked up in the local cache only.

        Returns:
            The model in evaluation mode, in float32 on the CPU.

        Raises:
            CheckpointError: nothing there, damaged files, weights that are pickled, not finite or of another configuration.
        """
        folder = find_folder(folder_or_id, download, revision)
        try:
            model = cls(VTAMIQConfig.from_dict(read_json(folder / CONFIG, "get it anew")))
        except (ValueError, OSError, RuntimeError, MemoryError) as error:  # the latter two: sizes beyond all memory
            raise CheckpointError(f"{folder / CONFIG}: not a VTAMIQ configuration ({error})") from error
        load_weights(model, folder / WEIGHTS)
        if folder.parent == SHIPPED:
            model.origin = f"{folder.name}, which ships with vtamiq"
        else:
            from_hub = folder != Path(folder_or_id)
            model.origin = f"{folder_or_id}@{revision}" if revision and from_hub else str(folder_or_id)
        model.seen = read_seen(folder)
        return model.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        with replacing(save_directory / WEIGHTS) as temporary:
            temporary.write_bytes(save(weights, {"format": "pt"}))
        write_text(save_directory / CONFIG, json.dumps(asdict(self.config), sort_keys=True, indent=2))
        if self.seen is None:  # and not what another model left there
            (save_directory / SEEN).unlink(missing_ok=True)
        else:
            write_text(save_directory / SEEN, json.dumps(self.seen))
