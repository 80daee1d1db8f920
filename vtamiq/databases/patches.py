"""Torch datasets over a database: pairs or preferences in, batches of uint8 patches out.

An item depends on (seed, epoch, row) only: neither on the number of workers or processes nor on what was drawn before.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vtamiq.caps import CAPS
from vtamiq.databases.pairs import PairImages, TripletImages
from vtamiq.databases.schema import Database, LabelScale
from vtamiq.images.reading import ImageError


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
    """Patches of the images of a row, for any epoch: an index is epoch · len + row, so that workers need no state."""

    def __init__(self, images: PairImages | TripletImages, caps: CAPS, flips: Flips, seed: int):
        self.images, self.caps, self.flips, self.seed = images, caps, flips, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self._item(*divmod(int(index), len(self)))

    @abstractmethod
    def load(self, row: Any, rng: np.random.Generator) -> tuple[list[str], np.ndarray, dict[str, torch.Tensor]]:
        """Of an item: names of its images, these (K, H, W, 3), the reference first, and its training targets."""

    def row(self, epoch: int, item: int) -> Any:
        """The row, or rows, of an item."""
        return item

    def _item(self, epoch: int, item: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, epoch, item])
        row = self.row(epoch, item)
        mirrored = rng.random() < self.flips.horizontal
        upside_down = rng.random() < self.flips.vertical
        paths, images, labels = self.load(row, rng)
        images = images[:, :: -1 if upside_down else 1, :: -1 if mirrored else 1]
        try:
            sample = self.caps(images, rng)
        except ImageError as error:  # CAPS does not know where its images come from
            raise ImageError(f"{' and '.join(paths)}: {error}") from error
        patches = {"patches": sample.patches, "uv": sample.uv, "scale": sample.scale}
        return patches | {"row": torch.tensor(row)} | labels


class PairPatches(ImagePatches):
    """Patches of (reference, distorted) pairs, one item per row of `database.pairs`.

    Items are dicts: `patches` (2, N, 3, P, P) uint8 with the reference first, `uv` (N, 2) float32, `scale` (N,) int64
    (with a leading 2 if `caps.aligned` is off), `row` int64; given `labels`, `target` float32, the score as a distortion in
    0..1; `auxiliary` (A,) float32, those columns.

    With V = `distorted_per_reference` above 1, an item is V rows of one reference, which is in it once: `patches`
    (1 + V, N, 3, P, P), `row` and `target` (V,), `auxiliary` (V, A), all at the places found by their mean difference.
    Each epoch groups the rows anew; those that fill no group are left out of it. `len` is the number of items.

    Args:
        distorted_per_reference: rows of an item; needs as many of each reference.
        zero_error: probability that a distorted image is replaced by the reference, and its labels by 0.
        in_memory: decode every image once per worker and keep it: 3 bytes a pixel and image.

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
        seed: int = 0,
        distorted_per_reference: int = 1,
    ):
        super().__init__(PairImages(database, keep=in_memory), caps, flips, seed)
        self.targets = None if labels is None else labels.to_distortion(_numbers(database, ["score"])[:, 0])
        self.auxiliary = _numbers(database, auxiliary) if auxiliary else None
        self.zero_error = zero_error
        self.groups = None
        if distorted_per_reference > 1:
            self.groups = _Groups(self.images.reference_paths, distorted_per_reference, seed)

    def __len__(self) -> int:
        return len(self.images) if self.groups is None else self.groups.count

    def row(self, epoch: int, item: int) -> int | np.ndarray:
        return item if self.groups is None else self.groups.rows(epoch)[item]

    def load(self, row: Any, rng: np.random.Generator) -> tuple[list[str], np.ndarray, dict[str, torch.Tensor]]:
        first, *others = (self.images[one] for one in np.atleast_1d(row))
        images = np.concatenate([first, *(other[1:] for other in others)])
        columns = {"target": self.targets, "auxiliary": self.auxiliary}
        labels = {name: values[row].astype(np.float32) for name, values in columns.items() if values is not None}
        if self.zero_error:
            copies = rng.random(len(images) - 1) < self.zero_error  # (V,)
            images = images[[0, *np.where(copies, 0, np.arange(1, len(images)))]]
            for name, values in labels.items():  # (), (V,), (A,) or (V, A)
                labels[name] = (values.reshape(len(copies), -1) * ~copies[:, None]).reshape(values.shape)
        paths = self.images.distorted_paths[np.atleast_1d(row)].tolist()
        return paths, images, {name: torch.from_numpy(np.asarray(values)) for name, values in labels.items()}


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
    Errors as for `TripletImages`.
    """

    def __init__(
        self, database: Database, caps: CAPS, *, flips: Flips = Flips(), in_memory: bool = False, seed: int = 0
    ):
        super().__init__(TripletImages(database, keep=in_memory), caps, flips, seed)
        self.shares = database.preferences["p_a"].to_numpy(dtype=np.float32)

    def load(self, row: int, rng: np.random.Generator) -> tuple[list[str], np.ndarray, dict[str, torch.Tensor]]:
        return self.images.paths[row].tolist(), self.images[row], {"target": torch.tensor(self.shares[row])}


@dataclass(eq=False)
class EpochSampler(Sampler[int]):
    """Indices epoch · n + row of one epoch, shuffled by (seed, epoch); Lightning sets the epoch before it iterates.

    Each of `world_size` processes gets its share of every batch of `batch` rows, in order: together they see the batches
    of a single one. ValueError if a batch cannot be shared evenly.
    """

    n: int
    _: KW_ONLY
    shuffle: bool = False
    seed: int = 0
    batch: int = 1
    drop_last: bool = False
    rank: int = 0
    world_size: int = 1
    epoch: int = field(default=0, init=False)
    start: int = field(default=0, init=False)  # batches of the epoch that were seen before an interruption

    def __post_init__(self):
        if self.batch % self.world_size:
            raise ValueError(f"a batch of {self.batch} rows cannot be shared evenly by {self.world_size} processes")

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
    """Loader of patch batches, whose position goes into a checkpoint: a resumed training starts at the next batch.

    `loader.sampler.set_epoch` gives new patches, and a new order if shuffled. `batch_size` is that of all processes.
    """

    def __init__(
        self,
        dataset: ImagePatches,
        *,
        batch_size: int,
        workers: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ):
        places = {"rank": rank, "world_size": world_size, "drop_last": drop_last, "batch": batch_size}
        super().__init__(
            dataset,
            sampler=EpochSampler(len(dataset), shuffle=shuffle, seed=dataset.seed, **places),
            batch_size=batch_size // world_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            drop_last=drop_last,
            pin_memory=torch.cuda.is_available(),
        )
        self._given = 0  # batches of this epoch that were handed out, however many more the workers have prepared

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


def _numbers(database: Database, columns: Sequence[str]) -> np.ndarray:
    """Columns of the pairs (n, A), float64."""
    missing = [name for name in columns if name not in database.pairs]
    if missing:
        known = ", ".join(name for name in database.pairs if name.startswith("rank_")) or "none of metrics"
        raise ValueError(f"{database.name} has no columns {', '.join(missing)}; it has {known}")
    values = database.pairs[list(columns)].to_numpy(dtype=np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        value = values[row, column]
        raise ValueError(f"{database.name}: {columns[column]} of row {row} is {value}, cannot train on it")
    return values
