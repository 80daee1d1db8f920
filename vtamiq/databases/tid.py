"""TID2008 and TID2013: 25 references × 17 distortions × 4 levels, and × 24 × 5, rated in tournaments.

    reference_images/I01.BMP … I24.BMP, i25.bmp
    distorted_images/i01_01_1.bmp …      reference, type, level, all from 1
    mos_with_names.txt                   "<mos> <file>" per line, without header
    mos_std.txt                          one value per line, in the same order; may be missing

Two databases with different scores: one is no part of the other. Names in the label file and on disk differ in letter
case, without a rule. Levels are not severity: type 17 alternates its direction, type 15 improves with its level. Reference
25 is an artificial picture that many papers leave out.

N. Ponomarenko et al., TID2008, Advances of Modern Radioelectronics 10, 2009; Image database TID2013, Signal Processing:
Image Communication 30, 2015.
"""

from dataclasses import replace
from pathlib import Path

from vtamiq.databases.reading import Facts, FolderIndex, LabelRows
from vtamiq.databases.schema import Database, DatabaseError

_SCALE = {"score_name": "MOS", "higher_better": True, "score_lo": 0, "score_hi": 9}
TID2008 = Facts(name="tid2008", references=25, pairs=1700, score_mean=4.47960, **_SCALE)
TID2013 = Facts(name="tid2013", references=25, pairs=3000, score_mean=4.47466, **_SCALE)

LABELS, SPREAD = "mos_with_names.txt", "mos_std.txt"
ARTIFICIAL = "I25"
_TYPES = (  # from 1; TID2008 has the first 17
    "Gaussian noise", "noise in colour components", "spatially correlated noise", "masked noise", "high-frequency noise",
    "impulse noise", "quantisation noise", "Gaussian blur", "denoising", "JPEG", "JPEG2000", "JPEG transmission errors",
    "JPEG2000 transmission errors", "non-eccentricity pattern noise", "local blocks", "mean shift", "contrast change",
    "saturation change", "multiplicative noise", "comfort noise", "lossy compression of noisy images",
    "colour quantisation with dither", "chromatic aberrations", "sparse sampling",
)  # fmt: skip


def load_tid2008(root: str | Path, **options: bool) -> Database:
    """Load TID2008; `artificial=False` leaves out reference 25. Else as for `load_database`."""
    return _load(root, TID2008, 17, 4, **options)


def load_tid2013(root: str | Path, **options: bool) -> Database:
    """Load TID2013; `artificial=False` leaves out reference 25. Else as for `load_database`."""
    return _load(root, TID2013, 24, 5, **options)


def _load(
    root: str | Path, facts: Facts, types: int, levels: int, *, strict=True, check_images=True, artificial=True
) -> Database:
    index = FolderIndex(root)
    rows = LabelRows.read(index, LABELS, ("score", "dist_path"), header="none", separator=None, strict=strict)
    _add_spread(rows)
    rows.extract(
        "dist_path", rf"I(?P<number>\d\d)_(?P<dist_type>\d\d)_(?P<level>[1-{levels}])\.bmp",
        f"iRR_TT_L.bmp (reference, type, level up to {levels})", ("dist_type", "level"),
    )  # fmt: skip
    rows.refuse(~rows.table["dist_type"].between(1, types), f"{facts.name} has types 1 to {types}, not {{dist_path!r}}")
    rows.number("score")
    ref_id = "I" + rows.table["number"]
    rows.table = rows.table.assign(
        ref_id=ref_id, ref_path=ref_id + ".bmp", dist_name=[_TYPES[type - 1] for type in rows.table["dist_type"]]
    )
    if not artificial:
        rows.table = rows.table[rows.table["ref_id"] != ARTIFICIAL].reset_index(drop=True)
        rows.omissions.append(f"{facts.name}: the artificial reference {ARTIFICIAL} was left out as asked")
        pairs = facts.pairs - types * levels
        facts = replace(facts, references=facts.references - 1, pairs=pairs, score_mean=None)
    rows.locate("ref_path", "reference_images")
    rows.locate("dist_path", "distorted_images")
    return rows.database(facts, check_images=check_images)


def _add_spread(rows: LabelRows) -> None:
    """Column `score_std` from the line of the same number; nothing but the order links that file to images."""
    if rows.index.get(SPREAD) is None:
        return
    spread = LabelRows.read(rows.index, SPREAD, ("std",), header="none", separator=None, strict=rows.strict)
    line, std_line = (part.table["label_source"].str.rpartition(":")[2] for part in (rows, spread))
    every, std_every = (
        {*kept, *(said.split(":")[1] for said in part.omissions)} for part, kept in ((rows, line), (spread, std_line))
    )
    if every != std_every:  # blank lines count: one more above would give every image its neighbour's value
        raise DatabaseError(
            f"{LABELS} has {len(every)} lines and {SPREAD} {len(std_every)}, or blank ones elsewhere, in "
            f"{rows.index.root}: nothing tells which belong together; restore both, or remove {SPREAD} to go without "
            "standard deviations"
        )
    spread.number("std")
    std_line = spread.table["label_source"].str.rpartition(":")[2]
    rows.table["score_std"] = line.map(dict(zip(std_line, spread.table["std"], strict=True)))
    rows.refuse(rows.table["score_std"].isna(), f"{SPREAD} has no number in the same line")
