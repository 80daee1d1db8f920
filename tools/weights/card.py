"""What a model that ships consists of: weights in half precision, and a model card that is made from files.

config.json, model.safetensors, seen.json   for `VTAMIQ.from_pretrained`
facts.json                                   what the card says of data, training and machine
history.csv, curves.png                      of the training
agreement.csv, types.csv, …                  what was measured (`tools.weights.measures`)
README.md                                    the card: `render_card` of all these
LICENSE                                      of the weights
"""

import json
import logging
import math
import os
import platform
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined
from safetensors.torch import save

from tools.weights.measures import ALL, GOALS, TABLES
from vtamiq import __version__
from vtamiq.databases.pairs import PairImages
from vtamiq.databases.schema import Database
from vtamiq.databases.splits import worth_testing
from vtamiq.images.distortions import find_distortion
from vtamiq.images.iqms import IQMS
from vtamiq.model.checkpoints import SHIPPED
from vtamiq.model.inference import fingerprint
from vtamiq.model.network import VTAMIQ
from vtamiq.plots.charts import learning_curves
from vtamiq.plots.style import save_figure
from vtamiq.scoring.scores import score
from vtamiq.training.run import Run
from vtamiq.utils.configs import conform, require
from vtamiq.utils.files import replacing, write_table, write_text

__all__ = ["MAX_BYTES", "Source", "command", "export_weights", "render_card", "ship", "write_card"]

log = logging.getLogger(__name__)

MAX_BYTES = 12_000_000  # of the weights
MAX_CURVES = 100_000  # bytes of the picture
TOLERANCE = 1e-3  # by which half precision may move a score
COMPARED = 24  # pairs that are scored to see by how much it does
FILES = (
    "config.json", "model.safetensors", "seen.json", "facts.json", "history.csv", "curves.png", "README.md", "LICENSE",
)  # fmt: skip
TITLES = {"srocc": "all pairs", "within_type": "within types", "within_cell": "within cells"}


@dataclass(frozen=True)
class Source:
    """Whose photographs a model was trained on.

    Attributes:
        name, url: of the collection.
        terms: on which it may be used; the weights are passed on on the same.
        citation: what its authors ask to be cited.
    """

    name: str = "BSDS500, the Berkeley Segmentation Data Set and Benchmarks 500"
    url: str = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/resources.html"
    terms: str = "offered by the University of California, Berkeley, free for non-commercial research and education"
    citation: str = (
        "P. Arbelaez, M. Maire, C. Fowlkes and J. Malik, Contour Detection and Hierarchical Image Segmentation, "
        "IEEE Transactions on Pattern Analysis and Machine Intelligence 33(5):898-916, 2011"
    )

    def __post_init__(self):
        conform(self)
        for name in ("name", "terms"):
            require(self, name, bool(getattr(self, name).strip()), "must say something")


# ---- weights ----------------------------------------------------------------------------------------------------------


def export_weights(model: VTAMIQ, folder: str | Path, test: Database) -> dict[str, Any]:
    """Write what `VTAMIQ.from_pretrained` loads, the weights in half precision if that moves no score by 0.001.

    Args:
        folder: made if missing.
        test: scores of up to 24 of its pairs are compared, spread evenly.

    Returns:
        `stored` ("float16" or "float32"), `pairs` that were compared, `largest` difference of a score by half precision,
        and `bytes` of the weights.

    Raises:
        ValueError: the weights take more than 12 MB.
    """
    folder = Path(folder)
    model.save_pretrained(folder)
    images = PairImages(worth_testing(test))
    count = min(COMPARED, len(images))
    pairs = [images[k * len(images) // count] for k in range(count)]
    exact = score([pair[0] for pair in pairs], [pair[1] for pair in pairs], model=model)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    _write(
        weights, save({name: value.half().contiguous() for name, value in model.state_dict().items()}, {"format": "pt"})
    )
    moved = math.inf
    if all(value.half().isfinite().all() for value in model.state_dict().values()):
        half = score([pair[0] for pair in pairs], [pair[1] for pair in pairs], model=VTAMIQ.from_pretrained(folder))
        moved = float(abs(half - exact).max())
    if not moved < TOLERANCE:
        log.warning("half precision moves a score by %.2g: the weights are kept in float32", moved)
        _write(weights, whole)
    size = weights.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{weights} has {size:,} bytes, more than {MAX_BYTES:,}: take a smaller network")
    stored = "float16" if moved < TOLERANCE else "float32"
    return {"stored": stored, "pairs": count, "largest": moved if math.isfinite(moved) else None, "bytes": size}


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


# ---- what the card is made from ---------------------------------------------------------------------------------------


def command(size: str, settings: Mapping[str, Any]) -> str:
    """The shell command that makes the weights; folders stand as FOLDER."""
    parts = ["python -m tools.weights --images FOLDER --out FOLDER", f"--size {size}"]
    parts += [f"--set {shlex.quote(f'{name}={json.dumps(value)}')}" for name, value in settings.items()]
    return " ".join(parts)


def write_card(
    folder: str | Path,
    facts: Mapping[str, Any],
    *,
    recipe: Mapping[str, Any],
    stages: Sequence[Run],
    tables: Mapping[str, pd.DataFrame],
) -> Path:
    """Write all that the card is made from, and the card.

    Args:
        folder: holds the weights already.
        facts: `command`, `made_before`, `data`, `first_weights`, `half` and `seconds`, as `make_weights`
            collects them.
        recipe: plain values, with the `source` of the photographs.
        stages: runs of training, the last one that of these weights.
        tables: of `measure`.

    Returns:
        The path of the card.
    """
    folder = Path(folder)
    model = VTAMIQ.from_pretrained(folder)
    known = {
        "vtamiq": __version__,
        "weights": fingerprint(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "recipe": recipe,
        "stages": [_about(run) for run in stages],
        "machine": _machine(),
    }
    write_text(folder / "facts.json", json.dumps({**facts, **known}, indent=1, ensure_ascii=False) + "\n")
    history = pd.concat([run.history.assign(stage=run.stage.name) for run in stages], ignore_index=True)
    write_table(history, folder / "history.csv")
    _draw_curves(folder, stages)
    for name, table in tables.items():
        write_table(table, folder / f"{name}.csv")
    write_text(folder / "LICENSE", _licence(recipe["source"]))
    write_text(folder / "README.md", render_card(folder))
    return folder / "README.md"


def _licence(source: Mapping[str, str]) -> str:
    return (
        "The weights in this folder are for research use only, since the photographs that they were trained on\n"
        f"({source['name']}) are {source['terms']}.\n"
        "The code of the package, which made them, is under Apache-2.0.\n"
    )


def _about(run: Run) -> dict[str, Any]:
    return {
        "name": run.stage.name,
        "labels": run.stage.loss.kind,
        "result": run.result,
        "code": run.record["code"],
        "versions": run.record["versions"],
        "settings": asdict(run.stage),
    }


def _machine() -> dict[str, Any]:
    """This machine in general words: nothing that names it."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "gpus": gpus,
        "python": platform.python_version(),
    }


def _draw_curves(folder: Path, stages: Sequence[Run]) -> None:
    run = stages[0]
    figure = learning_curves(run.history, title=f"{run.stage.name.replace('_', ' ')} on SYNTHETIC labels")
    for dpi in (110, 90, 70, 50):
        save_figure(figure, folder, "curves", formats=["png"], dpi=dpi)
        if (folder / "curves.png").stat().st_size <= MAX_CURVES:
            return


# ---- the card ---------------------------------------------------------------------------------------------------------


def render_card(folder: str | Path) -> str:
    """The model card, in Markdown with the header that Hugging Face reads; every number in it is from files of the
    folder.

    Raises:
        FileNotFoundError: one of the files is missing.
    """
    folder = Path(folder)
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in TABLES}
    if (folder / "left_out.csv").exists():
        tables["left_out"] = pd.read_csv(folder / "left_out.csv")
    agreement = tables["agreement"]
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string(
        files("tools.weights").joinpath("model_card.md.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        facts,
        name=folder.name,
        header=_header(folder.name, tables["agreement"]),
        source=facts["recipe"]["source"],
        licence=_licence(facts["recipe"]["source"]),
        network=facts["recipe"]["network"],
        measures=facts["recipe"]["measures"],
        parts={"train": "for training", "val": "for validation", "test": "for testing"},
        metrics=[IQMS[name].label for name in facts["data"]["metrics"]],
        goals=_goals(tables["goals"]),
        short=int((~tables["goals"]["met"]).sum()),
        lowest=_lowest(tables["types"]),
        standing=_standing(agreement),
        agreement={
            name: _agreement(agreement[agreement["database"] == name]) for name in agreement["database"].unique()
        },
        types=_types(tables["types"]),
        spread=_spread(tables["spread"]),
        counts=_counts(tables["spread"], facts["stages"][-1]["settings"]["caps"]["num_patches"]),
        left_out=_left_out(tables["left_out"]) if "left_out" in tables else "",
        number=_number,
        duration=_duration,
    )


def _header(name: str, agreement: pd.DataFrame) -> str:
    ours = agreement[(agreement["target"] == ALL) & (agreement["method"] == "VTAMIQ")]
    results = [
        EvalResult(
            task_type="image-quality-assessment",
            task_name="Full-reference image quality, synthetic labels",
            dataset_type=row["database"],
            dataset_name=f"{row['database']}, distorted and labelled by conventional metrics",
            metric_type="srocc",
            metric_name=f"SROCC with the consensus, {title}",
            metric_value=round(float(row[value]), 4),
        )
        for row in ours.to_dict("records")
        for value, title in TITLES.items()
    ]
    header = ModelCardData(
        library_name="vtamiq",
        license="other",
        license_name="research-use",
        license_link="LICENSE",
        tags=["image-quality-assessment", "full-reference", "synthetic-labels"],
        model_name=name,
        eval_results=results,
    )
    return header.to_yaml()


def _goals(goals: pd.DataFrame) -> str:
    columns = ["database", "measure", "reached", "goal", "met", "of what"]
    reached = goals.assign(
        reached=goals["reached"].map(_number),
        goal=goals["sign"] + goals["goal"].map(" {:g}".format),
        met=goals["met"].map({True: "yes", False: "**no**"}),
    )
    rows = reached[["database", "measure", "reached", "goal", "met", "remark"]].to_numpy().tolist()
    return _markdown(columns, rows)


def _lowest(types: pd.DataFrame) -> list[str]:
    """A line about the types that miss their goal, if there are any: what of them is in order, and what is not."""
    missed = types[types["ordered"] & (types["srocc"] < GOALS.types)]
    if missed.empty:
        return []
    named = [
        f"{row['dist_name']} on {row['database']} ({_number(row['srocc'])}; levels of a photograph "
        f"{_number(row['monotony'])}, photographs of a level {_number(row['within_cell'])})"
        for row in missed.sort_values("srocc").to_dict("records")
    ]
    return [
        f"Types below {GOALS.types:g}: {'; '.join(named)}. The levels of one photograph are mostly in order; what is not "
        "is how much one level harms different photographs."
    ]


def _standing(agreement: pd.DataFrame) -> list[str]:
    """A line for each database on which the look-up or single metrics do better, by SROCC over all pairs."""
    lines = []
    for name, table in agreement.groupby("database", sort=False):
        srocc = table.set_index(["target", "method"])["srocc"]
        ours, lookup = srocc[ALL, "VTAMIQ"], srocc[ALL, "look-up"]
        if lookup > ours:
            lines.append(
                f"On {name} the look-up, which opens no image, orders all pairs better ({_number(lookup)}) than this model "
                f"does ({_number(ours)})."
            )
        metrics = srocc[[target != ALL and method not in ("VTAMIQ", "look-up") for target, method in srocc.index]]
        better = [method for (target, method), value in metrics.items() if value > srocc[target, "VTAMIQ"]]
        if better:
            lines.append(
                f"On {name} {len(better)} of {len(metrics)} metrics agree better with the consensus of the others than "
                f"this model does: {', '.join(better)}."
            )
    return lines


def _agreement(table: pd.DataFrame) -> dict[str, str]:
    """Of one database: what it is about, the methods with the consensus of all, and each metric with that of the
    others."""
    first, ours = table.iloc[0], table[table["method"] == "VTAMIQ"].set_index("target")
    whole = [
        [row["method"], *(_with_interval(row, value) for value in TITLES)]
        for row in table[table["target"] == ALL].to_dict("records")
    ]
    others = table[(table["target"] != ALL) & ~table["method"].isin(["VTAMIQ", "look-up"])]
    each = [
        [row["method"], *(_number(row[value]) for value in TITLES)]
        + [_number(ours.loc[row["target"], value]) for value in TITLES]
        for row in others.sort_values("srocc", ascending=False).to_dict("records")
    ]
    titles = list(TITLES.values())
    about = (
        f"{first['n']:,} pairs of {first['photographs']} photographs, {first['types']} types, {first['cells']} cells."
    )
    return {
        "about": about,
        "all": _markdown(["", *titles], whole),
        "each": _markdown(["metric", *titles, *(f"VTAMIQ, {title}" for title in titles)], each),
    }


def _types(types: pd.DataFrame) -> str:
    databases = types["database"].unique().tolist()
    columns = [f"{name}{what}" for name in databases for what in ("", ", look-up", ", level")]
    rows = []
    for number, group in types.groupby("dist_type"):
        known, of = find_distortion(int(number)), group.set_index("database")
        values = [
            _number(of.loc[name, value]) if name in of.index else "–"
            for name in databases
            for value in ("srocc", "lookup_srocc", "monotony")
        ]
        rows.append([f"{number} {known.name}{'' if known.ordered else ' (V)'}", known.group, *values])
    return _markdown(["type", "group", *columns], rows)


def _spread(spread: pd.DataFrame) -> str:
    columns = ["database", "pairs", "draws", "patches", "deviation", "range", "share", "SROCC of a draw"]
    shown = spread.assign(share=spread["share"].map("{:.1%}".format))
    shown[["std", "range", "srocc"]] = shown[["std", "range", "srocc"]].map(_number)
    rows = shown[["database", "n", "draws", "num_patches", "std", "range", "share", "srocc"]].to_numpy().tolist()
    return _markdown(columns, rows)


def _counts(spread: pd.DataFrame, trained_with: int) -> list[str]:
    """A line about the databases on which many patches order pairs worse than fewer do, if there are any."""
    worse = []
    for name, table in spread.sort_values("num_patches").groupby("database", sort=False):
        best, most = table.loc[table["srocc"].idxmax()], table.iloc[-1]
        if best["srocc"] > most["srocc"]:
            worse.append(
                f"{_number(best['srocc'])} with {best['num_patches']} and {_number(most['srocc'])} with "
                f"{most['num_patches']} on {name}"
            )
    if not worse:
        return []
    return [
        f"More patches are not better: the SROCC of a draw is {'; '.join(worse)}. Training ended with {trained_with} "
        "patches; scores should be made of about as many."
    ]


def _left_out(table: pd.DataFrame) -> str:
    values = ("srocc", "srocc_full", "within_cell", "within_cell_full")
    columns = ["type", "group", "pairs", "without it", "with it", "within cells, without it", "within cells, with it"]
    rows = [
        [row["dist_name"], row["group"], row["n"], *(_number(row[name]) for name in values)]
        for row in table.to_dict("records")
    ]
    return _markdown(columns, rows)


# ---- words and numbers ------------------------------------------------------------------------------------------------


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}".replace("-", "−")


def _with_interval(row: Mapping[str, Any], value: str) -> str:
    low, high = row[f"{value}_low"], row[f"{value}_high"]
    return _number(row[value]) + (f" [{_number(low)}, {_number(high)}]" if math.isfinite(low) else "")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


# ---- shipping ---------------------------------------------------------------------------------------------------------


def ship(folder: str | Path, into: str | Path = SHIPPED) -> Path:
    """Copy a folder that `write_card` has finished into the package, in place of the model of that name that ships now.

    Returns:
        Where it is now.

    Raises:
        ValueError: a file is missing, the card is not made from the files beside it, or weights or curves are too large.
        CheckpointError: the weights cannot be loaded.
    """
    folder, place = Path(folder), Path(into) / Path(folder).name
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} has no {', '.join(missing)}: let `python -m tools.weights` finish first")
    for name, limit in (("model.safetensors", MAX_BYTES), ("curves.png", MAX_CURVES)):
        if (folder / name).stat().st_size > limit:
            raise ValueError(f"{folder / name} has more than {limit:,} bytes")
    if fingerprint(VTAMIQ.from_pretrained(folder)) != json.loads((folder / "facts.json").read_text())["weights"]:
        raise ValueError(f"{folder}: facts.json is of other weights; run `python -m tools.weights` again")
    if (folder / "README.md").read_text(encoding="utf-8") != render_card(folder):
        raise ValueError(
            f"{folder}: README.md is not made from the files beside it; run `python -m tools.weights` again"
        )
    kept = [path for path in sorted(folder.iterdir()) if path.name in FILES or path.suffix == ".csv"]
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for path in kept:
        shutil.copyfile(path, place / path.name)
    return place
