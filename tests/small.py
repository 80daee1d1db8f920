"""A tiny database with an obvious order of quality, made in a moment: for tests of everything that needs pairs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vtamiq.databases.schema import Database, pair_table
from vtamiq.images.reading import write_png
from vtamiq.model.config import VTAMIQConfig
from vtamiq.training.stage import Stage

SIDE = 48
TINY = VTAMIQConfig(
    backbone="vit_tiny_patch16_384", image_size=64, width=32, num_heads=2, num_blocks=1, num_registers=1,
    num_groups=1, blocks_per_group=1, reduction=4, zero_anchor=True,
)  # fmt: skip

OWN = {field.name for field in fields(Stage)}


def small_database(folder: Path, references: int = 5, levels: int = 4, name: str = "small") -> Database:
    """Random pictures, brightened and made noisy to `levels` degrees; the score is a DMOS that equals the level."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for r in range(references):
        rng = np.random.default_rng(r)
        coarse = rng.uniform(30, 180, (4, 4, 3))
        reference = np.kron(coarse, np.ones((SIDE // 4, SIDE // 4, 1)))
        noise = rng.standard_normal((SIDE, SIDE, 3))
        ref_path = f"images/r{r}.png"
        write_png(folder / ref_path, reference.astype(np.uint8))
        for level in range(1, levels + 1):
            path = f"images/r{r}_{level}.png"
            write_png(folder / path, np.clip(reference + 12 * level + 4 * level * noise, 0, 255).astype(np.uint8))
            rows.append((f"r{r}", ref_path, path, level))
    ref_id, ref_path, dist_path, level = map(list, zip(*rows, strict=True))
    pairs = pair_table(
        database=name,
        ref_id=ref_id,
        ref_path=ref_path,
        dist_path=dist_path,
        dist_type=1,
        dist_name="brighten",
        level=level,
        score=np.asarray(level, dtype=float),
        score_name="DMOS",
        higher_better=False,
        label_source=[f"made:{i}" for i in range(len(rows))],
    )
    return Database(name=name, root=folder, pairs=pairs, score_name="DMOS", higher_better=False, synthetic=True)


def small_table(folder: Path, references: int = 5, levels: int = 4) -> str:
    """The same pairs as a CSV that a line of text can name, for YAML files and command lines; gives that line."""
    pairs = small_database(folder, references, levels).pairs
    rows = pairs[["ref_path", "dist_path", "score", "ref_id", "level"]]
    rows.columns = ["reference", "distorted", "score", "ref_id", "level"]
    rows.to_csv(folder / "pairs.csv", index=False)
    return f"table:root={folder.name}:higher_better=false"


def vary(stage: Stage, **changes: Any) -> Stage:
    """The stage with other values of its own fields, or of those of its parts; a part given as text changes its name."""
    for part in ("loss", "optimizer", "schedule", "runtime"):
        old, given = getattr(stage, part), changes.pop(part, {})
        inner = {"name": given} if isinstance(given, str) else {}
        new = given if is_dataclass(given) else old
        inner |= {name: changes.pop(name) for name in list(changes) if hasattr(new, name) and name not in OWN}
        changes[part] = replace(new, **inner)
    return replace(stage, **changes)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: as on a disk that is full."""
    import resource  # not on Windows

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
