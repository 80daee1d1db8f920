"""Splits beyond `Database.split`: repeated, by folds, the original authors' fixed ones; and pictures in common."""

from collections.abc import Iterator, Sequence

import numpy as np

from vtamiq.databases.pieapp import listing_order
from vtamiq.databases.schema import Database, DatabaseError

# Half-open ranges of references in plain character order, from the configuration of the authors' repository (2024): train,
# val, test; of PIPAL train and test, which is its val as well. KADIS has no entry: all of it is trained on.
ORIGINAL_SPLITS: dict[str, tuple[tuple[int, int], ...]] = {
    "live": ((0, 17), (17, 23), (23, 29)),
    "csiq": ((0, 18), (18, 24), (24, 30)),
    "tid2008": ((0, 15), (15, 20), (20, 25)),
    "tid2013": ((0, 15), (15, 20), (20, 25)),
    "kadid10k": ((0, 49), (49, 65), (65, 81)),
    "pipal": ((0, 160), (160, 200)),
    "pieapp": ((0, 130), (130, 135), (135, 140)),  # of its train part, in the order of its label files
}

# Where the reference pictures come from. Databases with a source in common may show the same scenes.
_SOURCES = {
    "live": "Kodak", "tid2008": "Kodak", "tid2013": "Kodak",
    "kadid10k": "Pixabay (MMSP, Konstanz)", "kadis700k": "Pixabay (MMSP, Konstanz)",
    "pipal": "PIPAL", "pipal_val": "PIPAL", "ntire2022_val": "PIPAL", "ntire2022_test": "PIPAL",
}  # fmt: skip


def repeated_splits(
    database: Database, repeats: int = 10, ratios: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0
) -> Iterator[tuple[Database, ...]]:
    """`repeats` random splits, those of `Database.split` with the seeds seed, seed + 1, …; ratios may be (0.8, 0.2)."""
    if repeats < 1:
        raise DatabaseError(f"at least one repeat is needed, got {repeats}")
    return (database.split(ratios, seed + repeat) for repeat in range(repeats))


def fold_split(
    database: Database, folds: int, fold: int, *, validation: float = 0.2, seed: int = 0
) -> tuple[Database, Database, Database]:
    """(train, val, test) of one fold of several: over all of them, every content is tested exactly once.

    `Database.shuffled_contents` are cut into `folds` parts whose sizes differ by one at most. Part `fold` (from 0) is
    tested; the others are split by `Database.split` with the same seed, `validation` of them for val.
    """
    contents = database.shuffled_contents(seed)
    if not 2 <= folds <= len(contents) or not 0 <= fold < folds:
        raise DatabaseError(
            f"{database.name} has {len(contents)} contents: folds must be from 2 to that and fold from 0 to folds - 1, "
            f"got fold {fold} of {folds}"
        )
    tested = set(np.array_split(contents, folds)[fold])
    rest = database.with_contents(set(contents) - tested)
    return *rest.split((1 - validation, validation), seed), database.with_contents(tested)


def original_split(database: Database) -> tuple[Database, ...]:
    """(train, val, test), or (train, test) for PIPAL, as fixed by `ORIGINAL_SPLITS`; womanhat, the last reference of LIVE,
    is lost there and tested here. Of PieAPP, its train part is split. DatabaseError if the copy is incomplete."""
    if database.name not in ORIGINAL_SPLITS:
        known = ", ".join(ORIGINAL_SPLITS)
        raise DatabaseError(f"the original configuration has no fixed split of {database.name!r}; it has {known}")
    ranges = ORIGINAL_SPLITS[database.name]
    references = database.references
    if database.name == "pieapp":
        database = database.subset((database.pairs["subset"] == "train").to_numpy())
        references = listing_order(database.references)
    if len(references) != ranges[-1][1]:
        raise DatabaseError(
            f"{database.name} has {len(references)} references here; the fixed split counts {ranges[-1][1]}, "
            "in order, so that a partial copy would get other parts"
        )
    return tuple(database.subset(references[start:stop]) for start, stop in ranges)


def shared_pictures(first: str, second: str) -> str | None:
    """The source from which the pictures of both databases (by name) were taken, or None if none is known.

    Results across such databases are not results on unseen contents.
    """
    if first == second:
        return "the database itself"
    return _SOURCES.get(first) if _SOURCES.get(first) == _SOURCES.get(second) else None


def worth_testing(database: Database) -> Database:
    """The pairs that say something of a model: those with a score, and of synthetic ones only those that a distortion
    has changed, since every metric gets the others right. DatabaseError if there are none."""
    score = database.pairs["score"]
    ranks = database.pairs.filter(regex="^rank_")  # a single metric may take a changed picture for a perfect one
    best = database.pairs["score_hi" if database.higher_better else "score_lo"]  # NaN, which nothing equals, if open
    changed = (ranks > 0).any(axis=1) if len(ranks.columns) else score != best
    kept = score.notna() & (changed | (not database.synthetic))
    if not kept.any():
        raise DatabaseError(f"{database.name} has no scores to compare with")
    return database.subset(kept.to_numpy())
