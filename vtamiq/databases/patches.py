"""Torch datasets over a database: pairs or preferences in, uint8 patch batches out.

Workers decode images and ship uint8 patches; the model normalises them on its device. An item depends on (seed, epoch, row)
only: neither on the number of workers or processes nor on what was drawn before.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vtamiq.caps import CAPS
from vtamiq.databases.pairs import PairImages, TripletImages
from vtamiq.databases.schema import Database, LabelScale
from vtamiq.images.reading import ImageError

__all__ = ["EpochSampler", "Flips", "PairPatches", "PatchLoader", "PreferencePatches", "patch_loader"]

MOST_SKIPPED = 100  # bad rows in a row: then the database is bad, not a few images


@dataclass(frozen=True)
class Flips:
    """Augmentation: probabilities that all images of an item are mirrored, before patches are sampled."""

    horizontal: float = 0.0
    vertical: float = 0.0

    def __post_init__(self):
        for name in ("horizontal", "vertical"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Flips.{name} must be a probability, got {getattr(self, name)!r}")


class ImagePatches(Dataset, ABC):
    """Patches of the images of a row, for any epoch.

    An index is epoch · len + row (see `EpochSampler`), so that one dataset serves every epoch with new patches and needs no
    state in its workers. With `skip_bad`, the next good row takes the place of one with a bad image (`failed`).
    """

    def __init__(self, images: PairImages | TripletImages, caps: CAPS, flips: Flips, skip_bad: bool, seed: int):
        self.images, self.caps, self.flips, self.skip_bad, self.seed = images, caps, flips, skip_bad, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, row = divmod(int(index), len(self))
        if not self.skip_bad:
            return self._item(epoch, row)
        for tried in range(min(len(self), MOST_SKIPPED)):
            try:
                item = self._item(epoch, (row + tried) % len(self))
            except ImageError as error:
                problem = error
            else:
                return item | {"failed": torch.tensor(row if tried else -1)}
        raise ImageError(f"{min(len(self), MOST_SKIPPED)} rows from row {row} on are bad, the last one: {problem}")

    @abstractmethod
    def paths(self, row: int) -> str:
        """Names of the images of a row, for messages."""

    @abstractmethod
    def labels(self, row: int) -> dict[str, torch.Tensor]:
        """Training targets of a row."""

    def _rows(self, epoch: int, item: int) -> Any:
        """Row, or rows, of an item."""
        return item

    def _images(self, rows: Any) -> np.ndarray:
        """(K, H, W, 3), the reference first."""
        return self.images[rows]

    def _item(self, epoch: int, item: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, epoch, item])
        row = self._rows(epoch, item)
        images = self._images(row)
        if rng.random() < self.flips.horizontal:
            images = images[:, :, ::-1]
        if rng.random() < self.flips.vertical:
            images = images[:, ::-1]
        images, labels = self._augment(images, self.labels(row), rng)
        try:
            sample = self.caps(images, rng)
        except ImageError as error:  # CAPS does not know where its images come from
            raise ImageError(f"{self.paths(row)}: {error}") from error
        patches = {"patches": sample.patches, "uv": sample.uv, "scale": sample.scale}
        return patches | {"row": torch.tensor(row)} | labels

    def _augment(
        self, images: np.ndarray, labels: dict[str, torch.Tensor], rng: np.random.Generator
    ) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
        return images, labels


class PairPatches(ImagePatches):
    """Patches of (reference, distorted) pairs, one item per row of `database.pairs`.

    Items are dicts: `patches` (2, N, 3, P, P) uint8 with the reference first, `uv` (N, 2) float32, `scale` (N,) int64
    (with a leading 2 if `caps.aligned` is off), `row` int64, and, given `labels`, `target` float32: the score as a
    distortion in 0..1, 0 best; `auxiliary` (A,) float32, the values of those columns; with `skip_bad`, `failed` int64: the
    row whose place this item takes, or -1.

    With V = `distorted_per_reference` above 1, an item is V rows of one reference, which is in it once: `patches`
    (1 + V, N, 3, P, P), `row` and `target` (V,), `auxiliary` (V, A), all at the places found by their mean difference.
    Each epoch groups the rows anew; those that fill no group wait for another epoch. `len` is the number of items.

    Args:
        distorted_per_reference: rows of an item; needs as many of each reference, and no `skip_bad`.
        zero_error: probability that a distorted image is replaced by the reference, and its labels by 0.
        in_memory: decode every image once per worker and keep it: 3 bytes a pixel and image.
        skip_bad: use the next row where an image is bad, instead of raising.

    Raises (from an item):
        ImageError: an image of the pair is missing, damaged or smaller than a patch, or the two differ in size.
    """

    def __init__(
        self,
        database: Database,
        caps: CAPS,
        *,
        labels: LabelScale | None = None,
        auxiliary: Sequence[str] = (),
        flips: Flips = Flips(),
        zero_error: float = 0.0,
        in_memory: bool = False,
        skip_bad: bool = False,
        seed: int = 0,
        distorted_per_reference: int = 1,
    ):
        super().__init__(PairImages(database, keep=in_memory), caps, flips, skip_bad, seed)
        self.targets = None if labels is None else _targets(database, labels)
        self.auxiliary = _auxiliary(database, auxiliary) if auxiliary else None
        self.zero_error = zero_error
        size = distorted_per_reference
        self.groups = None if size == 1 else _Groups(self.images.reference_paths, size, seed)
        if self.groups is not None and skip_bad:
            raise ValueError(
                "distorted_per_reference and skip_bad cannot be combined: a bad image would spoil its item"
            )

    def __len__(self) -> int:
        return len(self.images) if self.groups is None else len(self.groups)

    def paths(self, row: int | np.ndarray) -> str:
        return " and ".join(np.atleast_1d(self.images.distorted_paths[row]))

    def labels(self, row: int | np.ndarray) -> dict[str, torch.Tensor]:
        labels = {}
        if self.targets is not None:
            labels["target"] = torch.tensor(self.targets[row])
        if self.auxiliary is not None:
            labels["auxiliary"] = torch.from_numpy(self.auxiliary[row])
        return labels

    def _rows(self, epoch: int, item: int) -> int | np.ndarray:
        return item if self.groups is None else self.groups.rows(epoch)[item]

    def _images(self, rows: int | np.ndarray) -> np.ndarray:
        if self.groups is None:
            return self.images[rows]
        first, *others = (self.images[row] for row in rows)
        return np.concatenate([first, *(other[1:] for other in others)])

    def _augment(
        self, images: np.ndarray, labels: dict[str, torch.Tensor], rng: np.random.Generator
    ) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
        if not self.zero_error:
            return images, labels
        copies = rng.random(len(images) - 1) < self.zero_error  # (V,)
        images = images[[0, *np.where(copies, 0, np.arange(1, len(images)))]]
        kept = torch.from_numpy(~copies)[:, None]
        return images, {
            name: (value.reshape(len(kept), -1) * kept).reshape(value.shape) for name, value in labels.items()
        }


class _Groups:
    """Rows of one reference in groups of `size`, drawn anew from (seed, epoch)."""

    def __init__(self, reference_paths: np.ndarray, size: int, seed: int):
        self.size, self.seed = size, seed
        names, self.reference, counts = np.unique(reference_paths, return_inverse=True, return_counts=True)
        if counts.min() < size:
            few = counts.argmin()
            raise ValueError(
                f"distorted_per_reference={size}, but {names[few]} has {counts[few]} distorted images only"
            )
        self.count = int((counts // size).sum())
        self._drawn: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.count

    def rows(self, epoch: int) -> np.ndarray:
        """(groups, size), sorted by reference."""
        if self._drawn is None or self._drawn[0] != epoch:
            chance = np.random.default_rng([self.seed, epoch]).random(len(self.reference))
            rows = np.lexsort((chance, self.reference))
            ordered = self.reference[rows]
            rank = np.arange(len(rows)) - np.searchsorted(ordered, ordered)  # among the rows of its reference
            whole = np.bincount(self.reference)[ordered] // self.size * self.size
            self._drawn = (epoch, rows[rank < whole].reshape(-1, self.size))
        return self._drawn[1]


class PreferencePatches(ImagePatches):
    """Patches of triplets (reference, A, B) at shared places, one item per row of `database.preferences`.

    Items are dicts as those of `PairPatches`: `patches` (3, N, 3, P, P) uint8, `target` float32, the share that prefers A.

    Raises:
        DatabaseError: there are no preferences.
        ImageError (from an item): as `PairPatches`.
    """

    def __init__(
        self,
        database: Database,
        caps: CAPS,
        *,
        flips: Flips = Flips(),
        in_memory: bool = False,
        skip_bad: bool = False,
        seed: int = 0,
    ):
        super().__init__(TripletImages(database, keep=in_memory), caps, flips, skip_bad, seed)
        self.shares = database.preferences["p_a"].to_numpy(dtype=np.float32)

    def paths(self, row: int) -> str:
        return " and ".join(self.images.paths[row])

    def labels(self, row: int) -> dict[str, torch.Tensor]:
        return {"target": torch.tensor(self.shares[row])}


class EpochSampler(Sampler[int]):
    """Indices epoch · n + row of one epoch, shuffled by (seed, epoch); Lightning sets the epoch before it iterates.

    Each of several processes gets its share of every batch, in order: together they see the batches of a single one.

    Args:
        n: number of rows.
        batch: rows of a batch of all processes together; must divide by their number.
        drop_last: leave out an incomplete last batch.
        rank, world_size: number of this process, and of all.
    """

    def __init__(
        self,
        n: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        batch: int = 1,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch % world_size:
            raise ValueError(f"a batch of {batch} rows cannot be shared evenly by {world_size} processes")
        self.n, self.shuffle, self.seed, self.epoch = n, shuffle, seed, 0
        self.batch, self.drop_last, self.rank, self.world_size = batch, drop_last, rank, world_size
        self.start = 0  # batches of the epoch that are left out, since they were seen before an interruption

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:  # Lightning names the resumed epoch once more
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        """Rows of a whole epoch for this process."""
        whole, rest = divmod(self.n, self.batch)
        return whole * (self.batch // self.world_size) + (0 if self.drop_last else len(self._share(np.arange(rest))))

    def __iter__(self) -> Iterator[int]:
        rows = np.random.default_rng([self.seed, self.epoch]).permutation(self.n) if self.shuffle else np.arange(self.n)
        rows = rows[: self.n - self.n % self.batch] if self.drop_last else rows
        offset = self.epoch * self.n
        for begin in range(self.start * self.batch, len(rows), self.batch):
            for row in self._share(rows[begin : begin + self.batch]):
                yield offset + int(row)

    def _share(self, rows: np.ndarray) -> np.ndarray:
        return np.array_split(rows, self.world_size)[self.rank]


class PatchLoader(DataLoader):
    """A loader whose position goes into a checkpoint, so that a resumed training starts at the next batch.

    The state counts batches that were handed out, however many more the workers have prepared.
    """

    def __init__(self, dataset: ImagePatches, sampler: EpochSampler, **options: Any):
        super().__init__(dataset, sampler=sampler, **options)
        self._given = 0  # batches of the present epoch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self._given = self.sampler.start
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.sampler.epoch, "batch": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with the batch after that state, or with the next epoch after the last one."""
        ended = state["batch"] >= len(self)
        self.sampler.set_epoch(state["epoch"] + ended)
        self.sampler.start = 0 if ended else state["batch"]


def patch_loader(
    dataset: ImagePatches,
    *,
    batch_size: int,
    workers: int = 0,
    shuffle: bool = False,
    drop_last: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> PatchLoader:
    """Loader of patch batches; `loader.sampler.set_epoch` gives new patches, and a new order if shuffled.

    `batch_size` is that of all processes together; ValueError if it cannot be shared evenly.
    """
    places = {"rank": rank, "world_size": world_size, "drop_last": drop_last, "batch": batch_size}
    return PatchLoader(
        dataset,
        EpochSampler(len(dataset), shuffle=shuffle, seed=dataset.seed, **places),
        batch_size=batch_size // world_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
    )


def _targets(database: Database, labels: LabelScale) -> np.ndarray:
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
        known = ", ".join(name for name in database.pairs if name.startswith("rank_")) or "none of metrics"
        raise ValueError(f"{database.name} has no columns {', '.join(missing)}; it has {known}")
    values = database.pairs[list(columns)].to_numpy(dtype=np.float32, copy=True)  # writable, as torch wants it
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"{database.name}: {columns[column]} of row {row} is {values[row, column]}, cannot train on it"
        )
    return values
