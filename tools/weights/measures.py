"""How well a model imitates a consensus of metrics, beside a look-up that never opens an image and the metrics
themselves.

A synthetic database's score is mostly decided by type and level of the distortion: the mean of each (type, level) cell
over
training photographs orders the pairs of other photographs well, without looking at them. So three numbers belong
together:
SROCC over all pairs, its mean within types, and its mean within cells over photographs, which the look-up cannot have.

Each of the metrics is judged by the consensus of the others, and the model by the same consensus beside it. Pairs that no
distortion has changed are left out everywhere: every metric gets them right.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from vtamiq.caps import CAPS, caps_for
from vtamiq.databases.pairs import PairImages
from vtamiq.databases.schema import Database, DatabaseError
from vtamiq.databases.seen import unseen
from vtamiq.databases.splits import worth_testing
from vtamiq.evaluation.correlation import MIN_GROUPS, group_rows
from vtamiq.images.distortions import find_distortion
from vtamiq.images.iqms import IQMS
from vtamiq.lab.ablation import score_counts
from vtamiq.lab.candidates import Candidate, predict_all
from vtamiq.model.inference import fingerprint
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring.predictions import predict
from vtamiq.scoring.scores import COMPUTES, score
from vtamiq.utils.configs import conform, require
from vtamiq.utils.files import write_table, write_text

__all__ = [
    "ALL",
    "GOALS",
    "Goals",
    "Measures",
    "agreement_table",
    "consensus_targets",
    "copies_table",
    "goals_table",
    "left_out_table",
    "mean_within",
    "measure",
    "predicted",
    "spread_table",
    "type_table",
    "without_types",
]

log = logging.getLogger(__name__)

ALL = "all"  # the target that is the consensus of all metrics
LOOK_UP, NAME = "look-up", "VTAMIQ"
TABLES = ("agreement", "types", "spread", "copies", "goals")  # CSV files of `measure`, but for that of left-out types
_CELL = ["dist_type", "level"]
_VALUES = ("srocc", "within_type", "within_cell")


@dataclass(frozen=True)
class Measures:
    """How a model is measured.

    Attributes:
        num_patches, repeats: patches per image, and draws averaged, of the scores that agreement is measured with; the
            defaults of `vtamiq.score` but for the draws.
        counts, draws: numbers of patches, and draws of each, for the spread between draws.
        photographs: references, evenly spaced, of each database for that spread and for copies.
        bootstrap: resamples of photographs for intervals of 95 %; 0 leaves them out.
        seed: of patches and resamples.
        batch_size, workers: as for `predict`; of no effect on the result but for rounding.
    """

    num_patches: int = 256
    repeats: int = 4
    counts: tuple[int, ...] = (64, 128, 256, 512)
    draws: int = 4
    photographs: int = 8
    bootstrap: int = 1000
    seed: int = 0
    batch_size: int = 16
    workers: int = 0

    def __post_init__(self):
        conform(self)
        for name in ("num_patches", "repeats", "photographs", "batch_size"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("bootstrap", "seed", "workers"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        require(self, "draws", self.draws >= 2, "must be at least 2 to have a spread")
        fits = bool(self.counts) and min(self.counts) >= 1 and len(set(self.counts)) == len(self.counts)
        require(self, "counts", fits, "must be different numbers of patches, one or more")


@dataclass(frozen=True)
class Goals:
    """What a model that ships is meant to reach.

    Attributes:
        own, other: SROCC with the consensus on test photographs of the database that it learnt from, and on others.
        cells: mean SROCC within (type, level) cells over photographs.
        types: lowest SROCC within a type whose severity grows with its level.
        spread: standard deviation between draws of 256 patches, as a share of the range of scores.
        left_out: SROCC on types that a second training, the same but for them, has not seen.
    """

    own: float = 0.97
    other: float = 0.95
    cells: float = 0.60
    types: float = 0.90
    spread: float = 0.03
    left_out: float = 0.85


GOALS = Goals()


# ---- what is to be imitated -------------------------------------------------------------------------------------------


def consensus_targets(database: Database) -> pd.DataFrame:
    """Distortions 0..1 to be imitated, a row per pair: `all`, the mean rank of all metrics, and for each metric, under
    its
    name, that of the others.

    Raises:
        DatabaseError: the database has no ranks of three metrics or more.
    """
    ranks = database.pairs.filter(regex="^rank_").rename(columns=lambda name: name.removeprefix("rank_"))
    if len(ranks.columns) < 3:
        raise DatabaseError(f"{database.name} has no ranks of three metrics or more, so that none can be left out")
    others = {name: ranks.drop(columns=name).mean(axis=1) for name in ranks}
    return pd.DataFrame({ALL: ranks.mean(axis=1)} | others).astype(float)


def mean_within(prediction: np.ndarray, target: np.ndarray, codes: np.ndarray) -> tuple[float, int]:
    """Mean SROCC of predictions (n,) with targets (n,) within the groups that the whole numbers `codes` (n,) tell apart.

    Equal predictions of a whole group tell nothing apart: they count as 0. Groups of fewer than three rows, or with equal
    targets, are left out.

    Returns:
        The mean (NaN if no group is left) and how many groups it is of.
    """
    sizes = np.bincount(codes)
    q, t = (_ranks_within(values, codes, sizes) for values in (prediction, target))
    products, squares_q, squares_t = (np.bincount(codes, weights=values) for values in (q * t, q * q, t * t))
    kept = (sizes >= 3) & (squares_t > 0)
    spread = np.sqrt(squares_q * squares_t)
    r = np.divide(products, spread, out=np.zeros(len(spread)), where=spread > 0)[kept]
    return (float(r.mean()) if len(r) else math.nan), len(r)


def _ranks_within(values: np.ndarray, codes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Ranks (n,) within each group, less their mean, which ties do not change."""
    ranks = rankdata(codes * (len(codes) + 1.0) + rankdata(values))  # group by group, since ranks end at n
    return ranks - (np.cumsum(sizes) - sizes)[codes] - (sizes[codes] + 1) / 2


def _srocc(prediction: np.ndarray, target: np.ndarray) -> float:
    return mean_within(prediction, target, np.zeros(len(target), dtype=int))[0]


# ---- tables -----------------------------------------------------------------------------------------------------------


def agreement_table(
    predictions: pd.DataFrame, training: Database, test: Database, *, bootstrap: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """The model, the look-up and all metrics beside each other.

    Args:
        predictions: rows of `predict_all` on `test`: of one model (`metric` "VTAMIQ"), and of metrics that
            the database has no ranks of, such as PSNR.
        training: what the look-up takes its means from.
        test: already reduced to pairs that are worth testing.
        bootstrap: resamples of photographs for the intervals, which rows with the target `all` have; 0 for none. NaN
        below
            five photographs. They are centred on the values (a resample holds some photographs twice, which ties them).

    Returns:
        A row per target and method: `database`, `target` ("all", or the metric that is left out of the consensus),
        `method`, `srocc`, `within_type`, `within_cell` (means over `types` types and `cells` cells), each of the three
        with `_low` and `_high`, `n` pairs, `photographs`, `synthetic`. The model and the look-up stand beside every
        metric
        that is left out. The model has learnt from that one as well.

    Raises:
        ValueError: predictions are not of all pairs of `test`, once for each metric.
        DatabaseError: as `consensus_targets`; no metric has native values.
    """
    scores = _by_method(predictions, test)
    targets, lookup = consensus_targets(test), _lookup(training, test)
    contents = np.array([test.contents[ref_id] for ref_id in test.pairs["ref_id"]])
    about = {"n": len(test), "photographs": len(set(contents)), "synthetic": test.synthetic}
    rows = []
    for target in targets:
        compared = {NAME: scores[NAME], LOOK_UP: lookup[target].to_numpy()}
        if target == ALL:
            compared |= {name: values for name, values in scores.items() if name not in (NAME, *targets)}
        else:
            native = test.pairs[f"native_{target}"]
            compared |= {IQMS[target].label: IQMS[target].distortion(native).to_numpy(dtype=float)}
        for method, q in compared.items():
            values = _three(q, targets[target].to_numpy(), test.pairs)
            if target == ALL and bootstrap:
                values |= _intervals(q, targets[target].to_numpy(), test.pairs, contents, bootstrap, seed)
            rows.append({"database": test.name, "target": target, "method": method} | values | about)
    return pd.DataFrame(rows)


def _by_method(predictions: pd.DataFrame, test: Database) -> dict[str, np.ndarray]:
    """Method → distortions in the order of the pairs: those of the model under its name here."""
    wanted = pd.MultiIndex.from_frame(test.pairs[["ref_path", "dist_path"]])
    found = {}
    of_test = predictions[predictions["database"] == test.name]
    for (metric, lower_better), rows in of_test.groupby(["metric", "lower_better"], sort=False):
        q = rows.set_index(["ref_path", "dist_path"])["q"]
        if q.index.has_duplicates or set(q.index) != set(wanted):
            raise ValueError(f"{metric} has not been measured once on each of the {len(test)} pairs of {test.name}")
        values = q.loc[wanted].to_numpy(dtype=float) * (1 if lower_better else -1)
        found[NAME if metric == "VTAMIQ" else {"psnr": "PSNR"}.get(metric, metric)] = values
    if NAME not in found:
        raise ValueError(f"there are no predictions of a VTAMIQ on {test.name}")
    return found


def _lookup(training: Database, test: Database) -> pd.DataFrame:
    """Each target's mean over the training pairs of the same type and level; that of all where there are none."""
    known = consensus_targets(training)
    means = known.groupby([training.pairs[name] for name in _CELL]).mean()
    missing = set(consensus_targets(test)) - set(known)
    if missing:
        raise DatabaseError(f"{training.name} has no ranks of {', '.join(sorted(missing))}, which {test.name} has")
    at = pd.MultiIndex.from_frame(test.pairs[_CELL])
    return means.reindex(at).fillna(known.mean()).reset_index(drop=True)


def _codes(pairs: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    return pairs.groupby(list(columns), sort=False).ngroup().to_numpy()


def _three(q: np.ndarray, target: np.ndarray, pairs: pd.DataFrame) -> dict[str, Any]:
    (types, n_types), (cells, n_cells) = (
        mean_within(q, target, _codes(pairs, columns)) for columns in (["dist_type"], _CELL)
    )
    values = dict(zip(_VALUES, (_srocc(q, target), types, cells), strict=True))
    empty = {f"{name}_{end}": math.nan for name in _VALUES for end in ("low", "high")}
    return values | empty | {"types": n_types, "cells": n_cells}


def _intervals(
    q: np.ndarray, target: np.ndarray, pairs: pd.DataFrame, contents: np.ndarray, resamples: int, seed: int
) -> dict[str, float]:
    """Percentile intervals of 95 %, photographs being drawn with all their pairs.

    A photograph that is drawn twice ties with itself, which lowers what is found within cells; intervals are moved so
    that
    their medians are the values that they belong to.
    """
    members, rng = group_rows(contents, len(contents)), np.random.default_rng(seed)
    if len(members) < MIN_GROUPS:
        return {}
    codes = [np.zeros(len(pairs), dtype=int), _codes(pairs, ["dist_type"]), _codes(pairs, _CELL)]
    drawn = []
    for _ in range(resamples):
        rows = np.concatenate([members[k] for k in rng.integers(len(members), size=len(members))])
        drawn.append([mean_within(q[rows], target[rows], code[rows])[0] for code in codes])
    low, median, high = np.nanquantile(np.array(drawn), [0.025, 0.5, 0.975], axis=0)
    bias = median - [mean_within(q, target, code)[0] for code in codes]
    low, high = np.clip([low - bias, high - bias], -1, 1)
    named = zip(_VALUES, low, high, strict=True)
    return {key: float(value) for name, a, b in named for key, value in ((f"{name}_low", a), (f"{name}_high", b))}


def type_table(predictions: pd.DataFrame, training: Database, test: Database) -> pd.DataFrame:
    """Each distortion type on its own; arguments and errors as for `agreement_table`.

    Returns:
        A row per type: `database`, `dist_type`, `dist_name`, `group`, `ordered` (whether severity grows with the level),
        `n` pairs; `srocc` with the consensus over all of them and `lookup_srocc`; `within_cell` over photographs, mean
        over
        the levels; `monotony`, the mean over photographs of the SROCC of the score with the level, NaN for types that are
        not ordered; `synthetic`.
    """
    q, target = _by_method(predictions, test)[NAME], consensus_targets(test)[ALL].to_numpy()
    lookup = _lookup(training, test)[ALL].to_numpy()
    rows = []
    for number, pairs in test.pairs.groupby("dist_type"):
        at, known = pairs.index.to_numpy(), find_distortion(int(number))
        level = pairs["level"].to_numpy(dtype=float)
        monotony = mean_within(q[at], level, _codes(pairs, ["ref_id"]))[0] if known.ordered else math.nan
        rows.append(
            {"database": test.name, "dist_type": int(number), "dist_name": known.name, "group": known.group}
            | {"ordered": known.ordered, "n": len(pairs)}
            | {"srocc": _srocc(q[at], target[at]), "lookup_srocc": _srocc(lookup[at], target[at])}
            | {"within_cell": mean_within(q[at], target[at], _codes(pairs, _CELL))[0]}
            | {"monotony": monotony, "synthetic": test.synthetic}
        )
    return pd.DataFrame(rows)


def spread_table(predictions: pd.DataFrame, test: Database) -> pd.DataFrame:
    """How much scores depend on the draw of patches.

    Args:
        predictions: rows of `score_counts` on `test`, of one way to draw.

    Returns:
        A row per number of patches: `database`, `num_patches`, `n` pairs, `draws`; `std`, the standard deviation (ddof 1)
        of a pair's score between draws, root mean square over pairs; `range`, from the lowest to the highest mean
        score of
        a pair; `share`, the one over the other; `srocc` of a single draw with the consensus, mean over draws;
        `synthetic`.

    Raises:
        ValueError: rows are not of all pairs of `test`.
    """
    target = pd.Series(consensus_targets(test)[ALL].to_numpy(), pd.MultiIndex.from_frame(_paths(test)))
    rows = []
    for count, group in predictions.groupby("num_patches"):
        scores = group.pivot(index=["ref_path", "dist_path"], columns="draw", values="q")
        if set(scores.index) != set(target.index) or scores.isna().any(axis=None):
            raise ValueError(f"the scores of {count} patches are not of all {len(test)} pairs of {test.name}")
        std = math.sqrt(scores.var(axis=1, ddof=1).mean())
        extent = float(np.ptp(scores.mean(axis=1)))
        at = target.loc[scores.index].to_numpy()
        rows.append(
            {"database": test.name, "num_patches": int(count), "n": len(scores), "draws": len(scores.columns)}
            | {"std": std, "range": extent, "share": std / extent if extent else math.nan}
            | {"srocc": float(np.mean([_srocc(scores[draw].to_numpy(), at) for draw in scores]))}
            | {"synthetic": test.synthetic}
        )
    return pd.DataFrame(rows)


def _paths(database: Database) -> pd.DataFrame:
    return database.pairs[["ref_path", "dist_path"]]


def copies_table(model: VTAMIQ, databases: Sequence[Database], photographs: int = 8) -> pd.DataFrame:
    """What the model says of references compared with themselves: a row per database with `photographs`, how many, and
    `largest`, the largest absolute score."""
    rows = []
    for database in databases:
        images = PairImages(_few(database, photographs))
        firsts = pd.Series(images.reference_paths).drop_duplicates().index
        q = [score(images[row][0], images[row][0].copy(), model=model) for row in firsts]
        rows.append({"database": database.name, "photographs": len(q), "largest": float(np.abs(q).max())})
    return pd.DataFrame(rows)


def without_types(database: Database, types: Sequence[int | str]) -> tuple[Database, Database]:
    """The pairs of all other types, and those of these; labels stay as they are.

    Raises:
        ValueError: an unknown type, or one that is named twice.
        DatabaseError: one of the two has no pairs.
    """
    numbers = [find_distortion(type).type for type in types]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"a type is named twice: {', '.join(map(str, types))}")
    left_out = database.pairs["dist_type"].isin(numbers).to_numpy(dtype=bool)
    return database.subset(~left_out), database.subset(left_out)


def left_out_table(without: pd.DataFrame, full: pd.DataFrame, test: Database) -> pd.DataFrame:
    """Types that a training has not seen, beside the same training with them.

    Args:
        without, full: rows of `predict` on `test`, of the models trained without and with its types.
        test: pairs of the left-out types only.

    Returns:
        A row for all types (`dist_name` "all") and one for each: `database`, `dist_type` (0 for all), `dist_name`,
        `group`,
        `n`, `srocc` and `within_cell` of the model that has not seen them, `srocc_full`, `within_cell_full` of the other,
        `synthetic`.

    Raises:
        ValueError: as `agreement_table`.
    """
    target = consensus_targets(test)[ALL].to_numpy()
    scores = {
        suffix: _by_method(rows.assign(metric="VTAMIQ", lower_better=True), test)[NAME]
        for suffix, rows in (("", without), ("_full", full))
    }
    parts = {0: test.pairs} | dict(list(test.pairs.groupby("dist_type")))
    rows = []
    for number, pairs in parts.items():
        at, known = pairs.index.to_numpy(), find_distortion(int(number)) if number else None
        row = {"database": test.name, "dist_type": int(number), "dist_name": known.name if known else ALL}
        row |= {"group": known.group if known else ALL, "n": len(pairs)}
        for suffix, q in scores.items():
            within = mean_within(q[at], target[at], _codes(pairs, _CELL))[0]
            row |= {f"srocc{suffix}": _srocc(q[at], target[at]), f"within_cell{suffix}": within}
        rows.append(row | {"synthetic": test.synthetic})
    return pd.DataFrame(rows)


def goals_table(tables: Mapping[str, pd.DataFrame], own: str, goals: Goals = GOALS) -> pd.DataFrame:
    """What was reached beside what was to be reached.

    Args:
        tables: "agreement", "types", "spread" and "copies", and "left_out" if there is one.
        own: name of the database that the model learnt from.

    Returns:
        Rows with `database`, `measure`, `reached`, `sign` ("≥", "≤" or "="), `goal`, `met`, and `remark`, what the value
        is of.
    """
    rows = []

    def add(database: str, measure: str, reached: float, sign: str, goal: float, remark: str) -> None:
        met = {"≥": reached >= goal, "≤": reached <= goal, "=": reached == goal}[sign]
        rows.append((database, measure, float(reached), sign, goal, bool(met), remark))

    agreement = tables["agreement"][tables["agreement"]["target"] == ALL].set_index(["database", "method"])
    for name in tables["agreement"]["database"].unique():
        row, lookup = agreement.loc[name, NAME], agreement.loc[name, LOOK_UP]
        of = f"{row['n']} pairs of {row['photographs']} photographs"
        goal = goals.own if name == own else goals.other
        add(name, "SROCC", row["srocc"], "≥", goal, f"{of}; look-up {lookup['srocc']:.3f}")
        add(name, "within cells", row["within_cell"], "≥", goals.cells, f"mean of {row['cells']} cells; look-up 0")
        types = tables["types"]
        ordered = types[(types["database"] == name) & types["ordered"]]
        worst = ordered.loc[ordered["srocc"].idxmin()]
        below = int((ordered["srocc"] < goals.types).sum())
        remark = f"lowest of {len(ordered)} ordered types: {worst['dist_name']}; {below} are below the goal"
        add(name, "within a type", worst["srocc"], "≥", goals.types, remark)
        spread = tables["spread"]
        spread = spread[(spread["database"] == name) & (spread["num_patches"] == 256)]
        for share in spread["share"]:
            add(name, "spread of 256 patches", share, "≤", goals.spread, "standard deviation over range of scores")
        copies = tables["copies"].set_index("database").loc[name]
        add(
            name, "score of a copy", copies["largest"], "=", 0.0, f"largest of {int(copies['photographs'])} photographs"
        )
    if "left_out" in tables:
        everything = tables["left_out"].iloc[0]
        named = ", ".join(tables["left_out"]["dist_name"].iloc[1:])
        remark = f"not trained on: {named}; with them {everything['srocc_full']:.3f}"
        add(everything["database"], "left-out types", everything["srocc"], "≥", goals.left_out, remark)
    return pd.DataFrame(rows, columns=["database", "measure", "reached", "sign", "goal", "met", "remark"])


# ---- all of it --------------------------------------------------------------------------------------------------------


def measure(
    model: VTAMIQ,
    training: Database,
    databases: Sequence[Database],
    out: str | Path,
    settings: Measures = Measures(),
    *,
    left_out: pd.DataFrame | None = None,
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """Measure a model on databases with the ranks of metrics, and write the tables as CSV.

    What is scored is kept in `out`/scores, so that an interrupted call goes on.

    Args:
        training: what the model learnt from; the look-up takes its means from it, and goals for its own photographs go by
            its name.
        databases: to test on. Pictures that the model was trained or validated on are left out (`vtamiq.databases.seen`).
        out: folder for `agreement.csv`, `types.csv`, `spread.csv`, `copies.csv`, `goals.csv`, `measures.json` (settings,
            and what was left out); and `left_out.csv`, if there is one.
        left_out: table of `left_out_table`.

    Returns:
        The tables by the names of their files.

    Raises:
        DatabaseError: nothing is left of a database, it has two parts of one name, or no ranks of metrics.
        ValueError, ImageError: as the functions that make the tables.
    """
    out = Path(out)
    names = [database.name for database in databases]
    if not names or len(set(names)) < len(names):
        raise DatabaseError(f"name one or more different databases to measure on, got {', '.join(names) or 'none'}")
    parts = [_tested(model, database) for database in databases]
    caps = caps_for(model, CAPS(num_patches=settings.num_patches))
    candidate = Candidate(NAME, model, caps, training.name, model.seen, model.origin)
    predictions = predict_all(
        [candidate], parts, ["psnr"], repeats=settings.repeats, seed=settings.seed, batch_size=settings.batch_size,
        workers=settings.workers, cache=out / "scores", progress=progress,
    )  # fmt: skip
    options = {"bootstrap": settings.bootstrap, "seed": settings.seed}
    tables = {
        "agreement": pd.concat([agreement_table(predictions, training, part, **options) for part in parts]),
        "types": pd.concat([type_table(predictions, training, part) for part in parts]),
        "spread": pd.concat([_spread(model, part, out / "scores", settings, progress) for part in parts]),
        "copies": copies_table(model, parts, settings.photographs),
    }
    tables |= {} if left_out is None else {"left_out": left_out}
    tables["goals"] = goals_table(tables, training.name)
    for name, table in tables.items():
        write_table(table, out / f"{name}.csv")
    kept = {
        part.name: {"pairs": len(part), "left_out": len(whole) - len(part)}
        for part, whole in zip(parts, databases, strict=True)
    }
    facts = {
        "settings": asdict(settings),
        "weights": fingerprint(model),
        "trained_on": training.name,
        "databases": kept,
    }
    write_text(out / "measures.json", json.dumps(facts, indent=1) + "\n")
    return {name: table.reset_index(drop=True) for name, table in tables.items()}


def _tested(model: VTAMIQ, database: Database) -> Database:
    """The pairs that say something of the model: of unseen pictures, and changed by their distortion."""
    part = unseen(database, model.seen or ())
    if part is None:
        raise DatabaseError(f"the model was trained or validated on all pictures of {database.name}")
    return worth_testing(part)


def _few(database: Database, photographs: int) -> Database:
    """So many references, evenly spaced, or all of them."""
    references = database.references
    count = min(photographs, len(references))
    return database.subset([references[k * len(references) // count] for k in range(count)])


def _spread(model: VTAMIQ, test: Database, folder: Path, settings: Measures, progress: bool) -> pd.DataFrame:
    few = _few(test, settings.photographs)
    caps = caps_for(model, CAPS())

    def compute() -> pd.DataFrame:
        return score_counts(
            model, few, {"as scored": caps}, settings.counts, draws=settings.draws, seed=settings.seed,
            batch_size=settings.batch_size, workers=settings.workers, progress=progress,
        )  # fmt: skip

    decides = [COMPUTES, fingerprint(model), repr(caps), settings.counts, settings.draws, settings.seed, _rows(few)]
    return spread_table(kept_table(folder, f"spread-{few.name}", decides, compute), few)


def predicted(
    model: VTAMIQ, test: Database, folder: Path, settings: Measures = Measures(), *, progress: bool = True
) -> pd.DataFrame:
    """Rows of `predict` with these settings, kept in the folder."""
    caps = caps_for(model, CAPS(num_patches=settings.num_patches))
    options = {name: getattr(settings, name) for name in ("repeats", "seed", "batch_size", "workers")}
    decides = [COMPUTES, fingerprint(model), repr(caps), settings.repeats, settings.seed, _rows(test)]
    compute = lambda: predict(model, test, caps, progress=progress, **options)  # noqa: E731
    return kept_table(folder, f"vtamiq-{test.name}", decides, compute)


def kept_table(folder: Path, name: str, decides: Any, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table that an earlier call has left, if everything that decides it was the same; else computed and kept."""
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
    path = folder / f"{name}-{digest}.parquet"
    if path.exists():
        return pd.read_parquet(path)
    table = compute()
    write_table(table, path)
    return table


def _rows(database: Database) -> str:
    return hashlib.sha256(database.pairs[["dist_path", "score"]].to_csv(index=False).encode()).hexdigest()
