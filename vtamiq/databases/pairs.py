"""Images of a database's pairs and preferences: read, or rendered from the reference by a recipe."""

import contextlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vtamiq.databases.schema import Database, DatabaseError
from vtamiq.images.distortions import distort
from vtamiq.images.reading import ImageError, centre_crop, read_image, write_png
from vtamiq.utils.digests import digest

_RECENT = 4  # references kept: neighbouring rows share theirs


class PairImages:
    """Pairs of images by row number: `images[row]` is uint8 `(2, H, W, 3)`, read-only, the reference first.

    Images rendered by recipes are kept in `database.cache`, if there is one; with `keep`, all are kept in memory. Raises
    ImageError (on access) if an image is missing, damaged or too small for its recipe, or the two differ in size.
    """

    def __init__(self, database: Database, *, keep: bool = False):
        self.root, self.crop, self.cache = database.root, database.crop, database.cache
        # Plain arrays: a worker process then shares the table's memory instead of copying it object by object.
        self.reference_paths = database.pairs["ref_path"].to_numpy(dtype=str)
        self.distorted_paths = database.pairs["dist_path"].to_numpy(dtype=str)
        self.recipes = None
        if "recipe_seed" in database.pairs:
            columns = ("dist_type", "level", "recipe_seed")
            self.recipes = tuple(database.pairs[name].to_numpy(dtype=np.uint64) for name in columns)
        self._kept: dict[int, np.ndarray] | None = {} if keep else None  # distorted images
        self._references: OrderedDict[str, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self.reference_paths)

    def __getitem__(self, row: int) -> np.ndarray:
        pair = _stack([self.reference_paths[row], self.distorted_paths[row]], [*self._pair(row)])
        pair.flags.writeable = False
        return pair

    def _pair(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        reference = self.reference(self.reference_paths[row])
        if self._kept is None:
            return reference, self._distorted(row, reference)
        if row not in self._kept:
            self._kept[row] = self._distorted(row, reference)
        return reference, self._kept[row]

    def _distorted(self, row: int, reference: np.ndarray) -> np.ndarray:
        if self.recipes is None:
            return read_image(self.root / self.distorted_paths[row])
        cached = None if self.cache is None else self._cached(row)
        if cached is not None and cached.exists():
            with contextlib.suppress(ImageError):  # damaged by a power cut: made again
                return read_image(cached)
        type, level, seed = (int(column[row]) for column in self.recipes)
        try:
            distorted = distort(reference, type, level, seed)
        except ValueError as error:  # too small for this type, or no such type
            raise ImageError(f"{self.distorted_paths[row]} cannot be made: {error}") from error
        if cached is not None:
            write_png(cached, distorted)
        return distorted

    def _cached(self, row: int) -> Path:
        """Cache path: digest of reference, crop and recipe."""
        recipe = [str(column[row]) for column in self.recipes]
        name = digest(" ".join([self.reference_paths[row], str(self.crop), *recipe]), length=32)
        return self.cache / name[:2] / f"{name}.png"

    def reference(self, path: str) -> np.ndarray:
        """A reference image by its path in the table, cropped if the database says so."""
        if path in self._references:
            self._references.move_to_end(path)
            return self._references[path]
        image = read_image(self.root / path)
        if self.crop is not None:
            try:
                image = centre_crop(image, self.crop)
            except ImageError as error:
                raise ImageError(f"{path}: {error}") from error
        self._references[path] = image
        if self._kept is None and len(self._references) > _RECENT:
            self._references.popitem(last=False)
        return image


class TripletImages:
    """Triplets by row number of the preferences: `images[row]` is uint8 `(3, H, W, 3)`: the reference, A, B.

    A and B are found among the pairs by their path, for their recipe if there is one; else they are read. Errors as for
    `PairImages`; DatabaseError if there are no preferences, or an image of a database of recipes is none of its pairs.
    """

    def __init__(self, database: Database, *, keep: bool = False):
        if database.preferences is None:
            raise DatabaseError(f"{database.name} has no preferences")
        self.pairs = PairImages(database, keep=keep)
        asked = database.preferences
        self.reference_paths = asked["ref_path"].to_numpy(dtype=str)
        self.paths = asked[["a_path", "b_path"]].to_numpy(dtype=str)
        known = pd.MultiIndex.from_frame(database.pairs[["ref_path", "dist_path"]])
        places = [pd.MultiIndex.from_frame(asked[["ref_path", name]]) for name in ("a_path", "b_path")]
        self._rows = np.stack([known.get_indexer(place) for place in places], axis=1)  # (n, 2), -1 if it is no pair
        if self.pairs.recipes is not None:
            lost = (self._rows < 0) & (self.paths != self.reference_paths[:, None])
            if lost.any():
                raise DatabaseError(
                    f"{database.name}: a preference is about {self.paths[lost][0]}, which has neither a recipe nor a file"
                )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> np.ndarray:
        path = self.reference_paths[row]
        reference = self.pairs.reference(path)
        images = [self._image(row, k, reference) for k in range(2)]
        return _stack([path, *self.paths[row]], [reference, *images])

    def _image(self, row: int, k: int, reference: np.ndarray) -> np.ndarray:
        if self._rows[row, k] >= 0:
            return self.pairs[self._rows[row, k]][1]
        path = self.paths[row, k]
        return reference if path == self.reference_paths[row] else read_image(self.pairs.root / path)


def _stack(paths: Sequence[str], images: Sequence[np.ndarray]) -> np.ndarray:
    """(K, H, W, 3); ImageError if one has another size than the reference, which is the first."""
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            sizes = [f"{one.shape[1]} x {one.shape[0]}" for one in (images[0], image)]
            raise ImageError(
                f"{paths[0]} is {sizes[0]} and {path} is {sizes[1]} (width x height); a pair must have one size"
            )
    return np.stack(images)
