"""Torch datasets over a database: rows in, uint8 patch batches out.

Workers decode the images, cut the patches as uint8 and ship only those; normalisation happens on the model's device. An
item depends on nothing but (seed, epoch, row): neither on the number of workers nor on what was drawn before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vtamiq.caps import CAPS
from vtamiq.databases import Database, LabelScale, Linearisation
from vtamiq.images import ImageError
from vtamiq.pairs import PairImages

__all__ = ["EpochSampler", "Flips", "PairPatches", "patch_loader"]


@dataclass(frozen=True)
class Flips:
    """Augmentation: probabilities that both images of a pair are mirrored, before patches are sampled."""

    horizontal: float = 0.0
    vertical: float = 0.0

    def __post_init__(self):
        for name in ("horizontal", "vertical"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Flips.{name} must be a probability, got {getattr(self, name)!r}")


class PairPatches(Dataset):
    """Patches of (reference, distorted) pairs, one item per row of `database.pairs`.

    An index is epoch · len + row, so that one dataset serves every epoch (or every draw of a test) with new patches and
    needs no state in its workers; `EpochSampler` makes such indices.

    Items are dicts: `patches` (2, N, 3, P, P) uint8 with the reference first, `uv` (N, 2) float32, `scale` (N,) int64
    (with a leading 2 if `caps.aligned` is off), `row` int64, and, given a label scale, `target` float32: the score as a
    distortion, 0 best and 1 worst of the rows that the scale was fitted on; and, for `auxiliary` columns of the pairs,
    their values `auxiliary` (A,) float32.

    With `in_memory`, every pair is decoded once per worker and kept: for databases that fit, 6 bytes a pixel and pair.

    Raises (from an item):
        ImageError: an image of the pair is missing, damaged or smaller than a patch, or the two differ in size.
    """

    def __init__(
        self,
        database: Database,
        caps: CAPS,
        *,
        labels: LabelScale | Linearisation | None = None,
        auxiliary: Sequence[str] = (),
        flips: Flips = Flips(),
        in_memory: bool = False,
        seed: int = 0,
    ):
        self.images = PairImages(database, keep=in_memory)
        self.targets = None if labels is None else _targets(database, labels)
        self.auxiliary = _auxiliary(database, auxiliary) if auxiliary else None
        self.caps, self.flips, self.seed = caps, flips, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, row = divmod(int(index), len(self))
        rng = np.random.default_rng([self.seed, epoch, row])
        images = self.images[row]
        if rng.random() < self.flips.horizontal:
            images = images[:, :, ::-1]
        if rng.random() < self.flips.vertical:
            images = images[:, ::-1]
        try:
            sample = self.caps(images, rng)
        except ImageError as error:  # CAPS does not know where its images come from
            raise ImageError(f"{self.images.distorted_paths[row]}: {error}") from error
        item = {"patches": sample.patches, "uv": sample.uv, "scale": sample.scale, "row": torch.tensor(row)}
        if self.targets is not None:
            item["target"] = torch.tensor(self.targets[row])
        if self.auxiliary is not None:
            item["auxiliary"] = torch.from_numpy(self.auxiliary[row])
        return item


class EpochSampler(Sampler[int]):
    """Indices epoch · n + row of one epoch, shuffled by (seed, epoch); Lightning sets the epoch before it iterates."""

    def __init__(self, n: int, *, shuffle: bool = False, seed: int = 0):
        self.n, self.shuffle, self.seed, self.epoch = n, shuffle, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        rows = np.random.default_rng([self.seed, self.epoch]).permutation(self.n) if self.shuffle else np.arange(self.n)
        yield from (self.epoch * self.n + rows).tolist()


def patch_loader(
    dataset: PairPatches, *, batch_size: int, workers: int = 0, shuffle: bool = False, drop_last: bool = False
) -> DataLoader:
    """Loader of patch batches; call `loader.sampler.set_epoch` for new patches (and a new order, if shuffled)."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(len(dataset), shuffle=shuffle, seed=dataset.seed),
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
    )


def _targets(database: Database, labels: LabelScale | Linearisation) -> np.ndarray:
    scores = database.pairs["score"].to_numpy(dtype=np.float64)
    missing = np.flatnonzero(~np.isfinite(scores))
    if len(missing):
        raise ValueError(
            f"{database.name}: {len(missing)} rows have no score (first: row {missing[0]}), cannot train on them"
        )
    return labels.to_distortion(scores).astype(np.float32)


def _auxiliary(database: Database, columns: Sequence[str]) -> np.ndarray:
    """(n, A) float32."""
    missing = [name for name in columns if name not in database.pairs]
    if missing:
        known = ", ".join(name for name in database.pairs if name.startswith("iqm_")) or "none of metrics"
        raise ValueError(f"{database.name} has no columns {', '.join(missing)}; it has {known}")
    values = database.pairs[list(columns)].to_numpy(dtype=np.float32)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"{database.name}: {columns[column]} of row {row} is {values[row, column]}, cannot train on it"
        )
    return values
