"""The command line: `python -m vtamiq score`, `train`, `databases`, `synthesize`, `weights`, `reproduce`, `figures`,
`benchmark`.

Parses, calls, prints.
"""

import argparse
import json
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from vtamiq import __version__

if TYPE_CHECKING:
    import pandas as pd

    from vtamiq.model.network import VTAMIQ
    from vtamiq.training.chain import Chain
    from vtamiq.training.repeats import Repeats

TRAINED = "runs/demo/03_weak_pretraining/run/model"  # what `make reproduce` leaves for --model
SHOWN_PROBLEMS = 3  # of a database
SHOWN_ROWS = 20  # of those that could not be scored
SCORE_HELP = """\
Score one pair of images, a table of pairs, or two folders. Lower is better.

A table or two folders can be interrupted at any time: the same command goes on. Rows that have a score in --out keep it;
bad rows have their reason in the column `error`, are named at the end, and the exit status is then 1.

Folders: the reference of dist/NAME.jpg is ref/NAME.*; failing that, that of dist/NAME_anything.jpg is ref/NAME.*.
Capitals and subfolders do not matter. Where several references are possible, nothing is scored.

Several processes or GPUs: torchrun --nproc-per-node 4 -m vtamiq score --pairs pairs.csv --out scores.csv --model FOLDER
The last process to finish writes the table; if some were killed, start again with as many processes as you like."""
TRAIN_HELP = """\
Train the stages that a YAML file describes, each from the best weights of the one before. --example prints such a file.

The run folder can be interrupted at any time: the same command goes on, and loads what is finished. Relative paths in the
file count from the current folder. Several devices: --devices 4; several machines: the same command on each, by torchrun
or SLURM, with --num-nodes.

--repeats, --folds and --grid train the last stage many times, those before it once. runs.csv in the run folder has the
results of all runs, summary.csv the statistics. The exit status is 1 if some runs failed; the others are finished then."""
WEIGHTS_HELP = """\
Make the small model that ships: a database from photographs, training, measures, model card. --size cpu takes hours on two
cores; --size gpu is for a GPU and 16 cores.

The folder of photographs has the folders train, val and test, as BSDS500 has. The result is DIR/vtamiq-tiny; what was
reached is printed beside the goals. The command can be interrupted at any time: the same one goes on."""
TRAIN_COLUMNS = ("folder", "database", "synthetic", "epochs", "best_epoch", "val_srocc", "n", "srocc_start", "srocc",
                 "krocc", "plcc_fitted", "rmse_fitted")  # fmt: skip
CHECK_COLUMNS = ("folder", "start", "labels", "database", "synthetic", "train", "val", "test", "left_out", "preferences",
                 "epochs", "parameters")  # fmt: skip
BENCHMARKS = (
    "network",
    "data",
    "patches",
    "images",
    "batch",
    "blocks",
    "workers",
    "table",
    "memory",
    "precision",
    "gpu",
)
SHOWN_COSTS = {"x": "g", "goal": ".2f", "seconds": ".4g", "error": ".0e", "score_range": ".3g", "mebibytes": ".0f"}
ERROR_WIDTH = 60  # of the printed summary; summary.csv has errors whole


def run_score(arguments: argparse.Namespace) -> int:
    pair = (arguments.reference, arguments.distorted)
    folders = (arguments.ref_dir, arguments.dist_dir)
    if None in pair and pair != (None, None):
        arguments.refuse("the following arguments are required: DIST")
    if None in folders and folders != (None, None):
        arguments.refuse("--ref-dir and --dist-dir go together")
    if sum(given is not None for given in (pair[0], arguments.pairs, folders[0])) != 1:
        arguments.refuse("give either REF and DIST, or --pairs, or --ref-dir and --dist-dir")
    return _score_one(arguments) if pair[0] else _score_many(arguments)


def _score_one(arguments: argparse.Namespace) -> int:
    from vtamiq.model.inference import DEFAULT, fingerprint
    from vtamiq.scoring.scores import score

    for option in ("out", "root", "workers"):
        if getattr(arguments, option) is not None:
            arguments.refuse(f"--{option} is for tables of pairs")
    model, options = _scorer(arguments)
    q, error = score(arguments.reference, arguments.distorted, model=model, return_std=True, **options)
    if arguments.json:
        result = {
            "reference": arguments.reference,
            "distorted": arguments.distorted,
            "q": float(q),
            "standard_error": float(error) if arguments.repeats > 1 else None,
            "lower_better": True,
            "model": arguments.model or DEFAULT,
            "weights": fingerprint(model),
            "num_patches": options["caps"].num_patches,
            "repeats": arguments.repeats,
            "seed": arguments.seed,
            "precision": arguments.precision,
        }
        print(json.dumps(result, indent=2))
    else:
        print(f"{q:.4f}" + (f" ± {error:.4f}" if arguments.repeats > 1 else ""))
    return 0


def _score_many(arguments: argparse.Namespace) -> int:
    from vtamiq.scoring.table import pair_folders, score_table, to_json
    from vtamiq.utils.processes import count_workers

    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if arguments.out and arguments.json:
        arguments.refuse("--json prints to the screen; for a file, give --out a name that ends in .json")
    if arguments.root is not None and not arguments.pairs:
        arguments.refuse("--root is for --pairs")
    if world_size > 1 and not arguments.out:
        arguments.refuse("several processes need --out, where their scores meet")
    model, options = _scorer(arguments)
    table = score_table(
        arguments.pairs or pair_folders(arguments.ref_dir, arguments.dist_dir),
        arguments.out,
        root=arguments.root,
        workers=_spare_cores() if arguments.workers is None else count_workers(arguments.workers),
        progress=sys.stderr.isatty() and rank == 0,
        rank=rank,
        world_size=world_size,
        model=model,
        **options,
    )
    if table is None:
        print(f"{arguments.out}: process {rank} of {world_size} is done, rows of others are still to come")
        return 0  # torchrun would stop the others for any other status
    if not arguments.out:
        print(to_json(table) if arguments.json else table.to_csv(index=False), end="\n" if arguments.json else "")
    return _report(table, arguments)


def _spare_cores() -> int:
    """Cores that the network of this process, or of its neighbours under torchrun, leaves over; at least one."""
    from vtamiq.utils.processes import count_workers

    return max(1, count_workers(None) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1)


def _report(table: "pd.DataFrame", arguments: argparse.Namespace) -> int:
    """Name the bad rows; the exit status."""
    bad = table[table["error"] != ""]
    unit = "row" if (arguments.pairs or "").endswith(".parquet") else "line"
    for line, error in list(bad["error"].items())[:SHOWN_ROWS]:
        distorted = bad.at[line, "distorted"]
        where = f"{arguments.pairs}, {unit} {line}: " if arguments.pairs else ""
        where += f"{distorted}: " if not (arguments.pairs or str(distorted) in error) else ""
        print(f"vtamiq: {where}{error}", file=sys.stderr)
    if len(bad) > SHOWN_ROWS:
        print(f"vtamiq: … and {len(bad) - SHOWN_ROWS} more bad rows, see the column `error`", file=sys.stderr)
    counts = f"{len(table) - len(bad)} of {len(table)} pairs scored"
    print(f"{arguments.out}: {counts}" if arguments.out else counts, file=None if arguments.out else sys.stderr)
    return 1 if len(bad) else 0


def _scorer(arguments: argparse.Namespace) -> "tuple[VTAMIQ, dict]":
    """The model on its device, and the options that scoring one pair and scoring many have in common."""
    from vtamiq.caps import caps_for
    from vtamiq.model.inference import choose_device, load_default

    model = _load(arguments.model, arguments.download) if arguments.model else load_default()
    device = choose_device(arguments.device)
    if arguments.fast:
        model.optimize_for_inference()
    return model.to(device), {
        "caps": caps_for(model, **({"num_patches": arguments.patches} if arguments.patches else {})),
        "repeats": arguments.repeats,
        "seed": arguments.seed,
        "batch_size": arguments.batch_size or (1 if device.type == "cpu" else 32),
        "precision": arguments.precision,
    }


def _load(folder_or_id: str, download: bool) -> "VTAMIQ":
    from vtamiq.model.checkpoints import CheckpointError
    from vtamiq.model.network import VTAMIQ

    try:
        return VTAMIQ.from_pretrained(folder_or_id, download=download)
    except CheckpointError as error:
        nowhere = "is neither a folder nor" in str(error)
        if download or not nowhere:
            raise
        hub = (
            " (or the id of a model on the Hugging Face Hub: --download fetches it)"
            if folder_or_id.count("/") == 1
            else ""
        )
        raise CheckpointError(
            f"no such folder: {folder_or_id}{hub}; `make reproduce` trains one into {TRAINED}; without --model "
            "the one that ships with the package scores"
        ) from error


def run_train(arguments: argparse.Namespace) -> int:
    from vtamiq.training.chain import check_chain, example, run_chain
    from vtamiq.training.repeats import RunsFailed

    if arguments.example:
        print(example(), end="")
        return 0
    many = {name: getattr(arguments, name) for name in ("repeats", "folds", "grid") if getattr(arguments, name)}
    if arguments.file is None:
        arguments.refuse("the following arguments are required: FILE (or --example, which prints one)")
    if "repeats" in many and "folds" in many:
        arguments.refuse("give either --repeats or --folds")
    if not many and (arguments.workers is not None or arguments.gpus):
        arguments.refuse("--workers and --gpus are for --repeats, --folds and --grid")
    chain = _chain(arguments)
    main, out = chain.writes_here, Path(arguments.out or f"runs/{Path(arguments.file).stem}")
    if not main:  # the first process says it
        logging.getLogger("vtamiq").setLevel(logging.ERROR)
    if arguments.check:
        table = _check_many(chain, many) if many else check_chain(chain)
        _print_table(table, (*(["run"] if many else []), *CHECK_COLUMNS), main)
        return 0
    options = {"set_aside": arguments.set_aside, "progress": main and sys.stderr.isatty()}
    if not many:
        run_chain(chain, out, **options)
        if main:
            _print_table(_read(out / "chain.csv"), TRAIN_COLUMNS)
            print(f"{out}: trained, see chain.csv")
        return 0
    try:
        result = _train_many(chain, out, many, options | {"workers": arguments.workers, "gpus": arguments.gpus})
    except RunsFailed as error:
        print(f"vtamiq: {error}", file=sys.stderr)
        return 1
    _print_table(result.summary, result.summary.columns, main)
    if main:
        print(f"{out}: {len(result.table)} runs, see runs.csv and summary.csv")
    return 0


def _chain(arguments: argparse.Namespace) -> "Chain":
    """The chain of the file, with what the command line says otherwise."""
    from vtamiq.training.chain import Chain
    from vtamiq.utils.configs import changed, parse_setting

    chain = Chain.load(arguments.file, dict(map(parse_setting, arguments.set)))
    names = ("devices", "num_nodes", "strategy", "accelerator")
    settings = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.precision is not None:
        settings |= {f"steps.{number}.stage.precision": arguments.precision for number in range(len(chain.steps))}
    return changed(chain, settings)


def _check_many(chain: "Chain", many: dict) -> "pd.DataFrame":
    from vtamiq.training.repeats import check_many

    settings = dict(map(_parse_values, many["grid"])) if "grid" in many else None
    return check_many(chain, settings=settings, **{name: many[name] for name in ("repeats", "folds") if name in many})


def _train_many(chain: "Chain", out: Path, many: dict, options: dict) -> "Repeats":
    from vtamiq.training.repeats import grid, k_fold, repeat

    if "grid" in many:
        numbers = {name: many[name] for name in ("repeats", "folds") if name in many}
        return grid(chain, out, dict(map(_parse_values, many["grid"])), **numbers, **options)
    if "folds" in many:
        return k_fold(chain, out, many["folds"], **options)
    return repeat(chain, out, many["repeats"], **options)


def _parse_values(text: str) -> tuple[str, list]:
    """("steps.-1.stage.epochs", [1, 2]) of "steps.-1.stage.epochs=1,2"; a value that is a list stands in brackets."""
    from vtamiq.utils.configs import parse_setting

    name, equals, values = text.partition("=")
    return parse_setting(f"{name}{equals}[{values}]" if equals else text)


def _read(path: Path) -> "pd.DataFrame":
    import pandas as pd

    return pd.read_csv(path)


def _print_table(table: "pd.DataFrame", columns: Sequence[str], really: bool = True) -> None:
    if really:
        print(table[list(columns)].to_string(index=False, float_format=lambda value: f"{value:.4f}"))


def run_databases(arguments: argparse.Namespace) -> int:
    from vtamiq.databases.loading import LOADERS, data_folder, find_databases
    from vtamiq.evaluation.survey import check_known_answer, survey

    data = Path(arguments.data) if arguments.data else data_folder()
    table = survey(data, arguments.names or None, check_images=not arguments.fast)
    for row in table.to_dict("records"):
        print(_database_line(row))
        shown = row["problems"] if arguments.all else row["problems"][:SHOWN_PROBLEMS]
        for problem in shown:
            print(f"    {problem}")
        if len(shown) < len(row["problems"]):
            print(f"    … and {len(row['problems']) - len(shown)} more (--all)")
    if not arguments.names:
        absent = [name for name, loader in LOADERS.items() if name not in find_databases(data) and loader.marks]
        print(f"not found in {data}: {', '.join(absent)}" if absent else f"all are in {data}")
    fine = table["status"].eq("complete").all()
    if arguments.check:
        names = [name for name in find_databases(data) if name in set(table["database"])]
        agree = [_print_check(check_known_answer, name, data, arguments.workers) for name in names]
        fine &= all(agree)
    return 0 if fine else 1


def _database_line(row: dict) -> str:
    if row["status"] in ("not found", "unusable"):
        return f"{row['database']}: {row['status']}"
    folder = "" if row["folder"] in (".", row["database"]) else f" in {row['folder']}"
    counts = f"{row['pairs']} pairs of {row['references']} references"
    if row["preferences"]:
        counts += f", {row['preferences']} preferences"
    scores = f"{row['score']} ({row['better']} is better)"
    if row["mean"] == row["mean"]:  # NaN without any score
        scores += f" {row['lowest']:.5g} … {row['highest']:.5g}, mean {row['mean']:.5f}"
    return f"{row['database']}{folder}: {row['status']}, {counts}; {scores}"


def _print_check(check, name: str, data: Path, workers: int | None) -> bool:
    """Whether PSNR has its published correlations, or nothing is published."""
    from vtamiq.databases.loading import find_databases
    from vtamiq.databases.schema import DatabaseError
    from vtamiq.evaluation.published import known_answer

    if known_answer(name) is None:
        print(f"{name}: no published value of PSNR to compare with")
        return True
    try:
        result = check(name, find_databases(data)[name], workers=workers)
    except DatabaseError as error:
        print(f"{name}: not checked: {error}")
        return False
    measured, known = (
        f"SROCC {result[f'srocc{suffix}']:.4f}, KROCC {result[f'krocc{suffix}']:.4f}" for suffix in ("", "_published")
    )
    verdict = "agrees" if result["agrees"] else "DIFFERS"
    print(f"{name}: PSNR has {measured}; published: {known}: {verdict}")
    return bool(result["agrees"])


def run_synthesize(arguments: argparse.Namespace) -> int:
    from vtamiq.databases.synthesis import synthesize

    types = arguments.types and [int(name) if name.isdigit() else name for name in arguments.types]
    database = synthesize(
        arguments.images,
        arguments.out,
        types=types,
        metrics=() if arguments.unlabelled else arguments.metrics,
        size=arguments.size,
        recipes_only=arguments.recipes_only,
        one_type=arguments.one_type,
        seed=arguments.seed,
        device=arguments.device,
        workers=arguments.workers,
    )
    references = database.pairs["ref_id"].nunique()
    what = f"{'recipes of ' if arguments.recipes_only else ''}{len(database.pairs)} pairs of {references} photographs"
    print(f"{arguments.out}: {what}, {'without' if arguments.unlabelled else 'with synthetic'} labels")
    return 0


def run_weights(arguments: argparse.Namespace) -> int:
    from tools.weights.recipe import NAME, make_weights
    from vtamiq.utils.configs import parse_setting

    if arguments.images is None and arguments.database is None:
        arguments.refuse("give --images, or --database with a database that was made of them")
    if not _is_first():  # it only helps to train
        logging.getLogger("vtamiq").setLevel(logging.ERROR)
    goals = make_weights(
        arguments.images,
        arguments.out,
        arguments.size,
        dict(map(parse_setting, arguments.set)),
        database=arguments.database,
        run=arguments.run_folder,
        workers=arguments.workers,
        progress=sys.stderr.isatty(),
    )
    if goals is None:
        return 0
    _print_table(goals, goals.columns)
    made = Path(arguments.out) / NAME
    print(f"{made}: made, see README.md")
    if arguments.ship:
        from tools.weights.card import ship

        print(f"{_from_here(ship(made))}: ships now")
    return 0


def run_reproduce(arguments: argparse.Namespace) -> int:
    from vtamiq.lab.pipeline import FINISHED, plan, reproduce
    from vtamiq.utils.configs import parse_setting

    chosen = {
        "only": arguments.only,
        "parameters": dict(map(parse_setting, arguments.parameter)),
        "out": arguments.out,
    }
    if arguments.list:
        _, notebooks, _ = plan(arguments.preset, **chosen)
        for notebook in notebooks:
            print(f"{notebook.name}: {notebook.title}")
            if notebook.needs:
                print(f"    needs {', '.join(notebook.needs)}")
            if notebook.uses:
                print(f"    uses {', '.join(notebook.uses)}, where they have run")
            for parameter in notebook.parameters.values():
                print(f"    {f'{parameter.name} = {parameter.default!r}':<32}  {parameter.help}")
        return 0

    summary = reproduce(arguments.preset, **chosen, force=arguments.force)
    print(summary.assign(error=summary["error"].map(_shortened)).to_string(index=False))
    return 0 if summary["status"].isin(FINISHED).all() else 1


def run_benchmark(arguments: argparse.Namespace) -> int:
    import torch

    from tools.benchmark.report import USUAL, benchmark, described, measurable
    from tools.benchmark.timing import Benchmark
    from vtamiq.utils.files import write_table

    names = ("backbone", "blocks", "width", "num_heads", "model", "patches", "batch", "versions", "megapixels", "rows",
             "compile", "rounds")  # fmt: skip
    chosen = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    settings, before = Benchmark(**chosen), torch.get_num_threads()
    if arguments.out and Path(arguments.out).suffix != ".csv":  # before half an hour has passed
        raise ValueError(f"{arguments.out}: the table is written as .csv")
    parts = measurable() if arguments.all else arguments.only or USUAL
    torch.set_num_threads(arguments.threads)
    try:
        table = benchmark(settings, parts=parts, progress=sys.stderr.isatty())
    finally:
        torch.set_num_threads(before)
    if arguments.out:
        write_table(described(table), arguments.out)
    if arguments.json:
        rows = json.loads(table.to_json(orient="records"))  # NaN becomes null
        print(json.dumps({"settings": table.attrs, "rows": rows}, indent=2))
        return 0
    print(_benchmark_lines(table))
    return 0


def _benchmark_lines(table: "pd.DataFrame") -> str:
    settings = table.attrs
    network = settings["model"] or f"{settings['backbone']}, {settings['blocks']} blocks"
    machine = f"{settings['cpu']}, {settings['threads']} thread(s)" + (
        f", {settings['gpu']}" if settings["gpu"] else ""
    )
    lines = [
        f"{network}; {machine}",
        f"best rate of a float32 product {settings['gflops']:.0f} GFLOP/s, {settings['onednn_gain']:.2f} times the default "
        f"rate, {settings['rounds']} rounds",
        "ratio: how many times faster than what it is measured against, or the share of the best rate; of memory, how many "
        "times less",
    ]
    shown = table.assign(
        ratio=[_number(value, ".3g") for value in table["ratio"]],
        range=[f"{low:.3g} … {high:.3g}" if low == low else ""
               for low, high in zip(table["lowest"], table["highest"], strict=True)],
        **{name: [_number(value, form) for value in table[name]] for name, form in SHOWN_COSTS.items()},
    )  # fmt: skip
    columns = ["what", "x", "against", "ratio", "range", *(name for name in SHOWN_COSTS if name != "x")]
    for part, rows in shown.fillna({"against": ""}).groupby("part", sort=False):
        told = [name for name in columns if (rows[name] != "").any()]
        lines += ["", part, rows[told].to_string(index=False)]
    return "\n".join(lines)


def _number(value: float, form: str) -> str:
    return "" if value != value else format(value, form)


def run_figures(arguments: argparse.Namespace) -> int:
    from vtamiq.lab.redraw import RedrawError, redraw

    options = {"only": arguments.only, "kinds": arguments.format, "dpi": arguments.dpi, "style": arguments.style}
    try:
        drawn, failed = redraw(arguments.figures_of, arguments.out, **options), {}
    except RedrawError as error:
        drawn, failed = error.drawn, error.failed
    for name, reason in failed.items():
        print(f"vtamiq: {name} was not drawn: {reason}", file=sys.stderr)
    if drawn:
        figures = len({path.stem for path in drawn})
        places = " and ".join(dict.fromkeys(_from_here(path.parent) for path in drawn))
        print(f"{places}: {figures} figure{'' if figures == 1 else 's'} drawn, {len(drawn)} files")
    return 1 if failed else 0


def _shortened(text: str) -> str:
    return text if len(text) <= ERROR_WIDTH else f"{text[: ERROR_WIDTH - 1].rstrip()}…"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m vtamiq", description="VTAMIQ, a full-reference image quality metric: lower is better."
    )
    top.add_argument("--version", action="version", version=f"vtamiq {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser(
        "score",
        allow_abbrev=False,
        help="score distorted images against their references",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=SCORE_HELP,
    )
    command.set_defaults(run=run_score, refuse=command.error)
    command.add_argument("reference", nargs="?", metavar="REF", help="the perfect image")
    command.add_argument("distorted", nargs="?", metavar="DIST", help="the image to judge, of the same size")
    command.add_argument("--pairs", metavar="FILE", help="CSV or parquet with columns reference and distorted")
    command.add_argument("--root", metavar="DIR", help="what paths in FILE are relative to (default: where FILE is)")
    command.add_argument("--ref-dir", metavar="DIR", help="folder of references, with subfolders")
    command.add_argument("--dist-dir", metavar="DIR", help="folder of distorted images, with subfolders")
    command.add_argument(
        "--out", metavar="FILE", help="table to write, .csv, .parquet or .json; without: CSV is printed"
    )
    command.add_argument(
        "--model",
        metavar="FOLDER",
        help="what `save_pretrained` wrote, or a Hugging Face id (default: vtamiq-tiny, which ships with the package: "
        "trained on synthetic labels, not on human opinion)",
    )
    command.add_argument("--download", action="store_true", help="fetch the model of a Hugging Face id if need be")
    command.add_argument("--patches", type=_positive, metavar="N", help="patches per image")
    command.add_argument("--repeats", type=_positive, default=1, metavar="K", help="draws of patches to average")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the patches")
    command.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    command.add_argument("--precision", default="float32", metavar="TYPE", help="float32, float16 or bfloat16")
    command.add_argument(
        "--fast", action="store_true", help="on a CPU: use oneDNN where it is faster; scores change by rounding only"
    )
    command.add_argument("--batch-size", type=_positive, metavar="N", help="draws at once (default: 1, on a GPU 32)")
    command.add_argument(
        "--workers", type=int, metavar="N", help="processes that read images (default: one per core but one)"
    )
    command.add_argument("--json", action="store_true", help="print JSON, with all that a score depends on")

    command = commands.add_parser(
        "train",
        allow_abbrev=False,
        help="train the stages that a YAML file describes, resuming",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=TRAIN_HELP,
    )
    command.set_defaults(run=run_train, refuse=command.error)
    command.add_argument("file", nargs="?", metavar="FILE", help="YAML file of a chain of stages")
    command.add_argument("--example", action="store_true", help="print a YAML file of the paper's chain, and end")
    command.add_argument("--out", metavar="DIR", help="run folder (default: runs/ and the name of FILE)")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a value instead of that in FILE, as in steps.0.stage.epochs=3; repeatable",
    )
    command.add_argument("--check", action="store_true", help="load everything, print what would be trained, and end")
    command.add_argument("--set-aside", action="store_true", help="rename run folders of other settings, not refuse")
    command.add_argument("--devices", type=int, metavar="N", help="GPUs or processes on each machine, -1 for all")
    command.add_argument("--num-nodes", type=_positive, metavar="M", help="machines")
    command.add_argument("--strategy", metavar="NAME", help="auto, ddp, fsdp or another one of Lightning")
    command.add_argument("--accelerator", metavar="NAME", help="auto, cpu or gpu")
    command.add_argument("--precision", metavar="TYPE", help="of all stages: 32-true, bf16-mixed or 16-mixed")
    command.add_argument("--repeats", type=_positive, metavar="N", help="train the last stage on N random splits")
    command.add_argument("--folds", type=_positive, metavar="K", help="train the last stage for each of K folds")
    command.add_argument(
        "--grid",
        action="append",
        metavar="NAME=V1,V2",
        help="train every combination of values, with --repeats or --folds if given; repeatable",
    )
    command.add_argument(
        "--workers", type=int, metavar="N", help="so many runs at once (default: one for each of --gpus)"
    )
    command.add_argument(
        "--gpus", type=_numbers, default=(), metavar="0,1", help="GPUs that runs at once take in turns"
    )

    command = commands.add_parser("databases", allow_abbrev=False, help="what databases are here, and are they whole?")
    command.set_defaults(run=run_databases)
    command.add_argument("names", nargs="*", metavar="NAME", help="only these (default: all that are found)")
    command.add_argument("--data", metavar="DIR", help="folder of databases (default: $VTAMIQ_DATA, or data)")
    command.add_argument("--check", action="store_true", help="compare PSNR's correlations with the published ones")
    command.add_argument("--fast", action="store_true", help="read labels and names only, open no image")
    command.add_argument("--all", action="store_true", help="print every problem")
    command.add_argument("--workers", type=int, metavar="N", help="processes of --check (default: one per core)")

    command = commands.add_parser("synthesize", allow_abbrev=False, help="make a database from photographs, resuming")
    command.set_defaults(run=run_synthesize)
    command.add_argument("--images", required=True, metavar="DIR", help="folder of photographs")
    command.add_argument("--out", required=True, metavar="DIR", help="folder to make, in the layout of KADID-10k")
    command.add_argument("--types", nargs="+", metavar="TYPE", help="distortions by number or tag (default: all 25)")
    command.add_argument(
        "--one-type", action="store_true", help="one type for each photograph, as in KADIS-700k, instead of all of them"
    )
    command.add_argument(
        "--recipes-only",
        action="store_true",
        help="write no image: loaders render them on the fly; the photographs stay where they are",
    )
    labels = command.add_mutually_exclusive_group()
    labels.add_argument("--metrics", nargs="+", metavar="IQM", help="that make the labels (default: all eleven)")
    labels.add_argument("--unlabelled", action="store_true", help="recipes without labels, in a fraction of the time")
    command.add_argument("--size", type=_size, metavar="WxH", help="crop the photographs' centre to this many pixels")
    command.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    command.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the metrics are computed")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the random distortions")

    command = commands.add_parser(
        "weights",
        allow_abbrev=False,
        help="make the small model that ships, resuming",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=WEIGHTS_HELP,
    )
    command.set_defaults(run=run_weights, refuse=command.error)
    command.add_argument("--images", metavar="DIR", help="folder with folders train, val and test of photographs")
    command.add_argument("--out", required=True, metavar="DIR", help="folder for all that is made")
    command.add_argument("--size", default="cpu", metavar="NAME", help="cpu or gpu (default: cpu)")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another value in the recipe, as in weak.epochs=3 or train=40; repeatable",
    )
    command.add_argument("--database", metavar="DIR", help="a database that was made by the same recipe already")
    command.add_argument(
        "--run", dest="run_folder", metavar="DIR", help="a finished training by the same recipe, to be used as it is"
    )
    command.add_argument(
        "--workers", type=int, metavar="N", help="processes that make databases (default: one per core)"
    )
    command.add_argument(
        "--ship", action="store_true", help="then copy it into the package, in place of what ships now"
    )

    command = commands.add_parser(
        "reproduce", allow_abbrev=False, help="run the numbered notebooks, in order, resuming"
    )
    command.set_defaults(run=run_reproduce)
    command.add_argument("--preset", default="demo", help="smoke (seconds), demo (minutes) or full (real databases)")
    command.add_argument("--only", nargs="+", metavar="NN", help="numbers or names of notebooks")
    command.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="a notebook parameter; repeatable"
    )
    command.add_argument("--out", default="runs", metavar="DIR", help="folder of all runs (default: runs)")
    command.add_argument(
        "--force",
        action="store_true",
        help="run finished notebooks again; a finished training run of the same settings is loaded, not repeated",
    )
    command.add_argument("--list", action="store_true", help="show the notebooks and their parameters, run nothing")

    command = commands.add_parser(
        "benchmark", allow_abbrev=False, help="how fast this machine is, and how much faster than a plain network"
    )
    command.set_defaults(run=run_benchmark)
    parts = command.add_mutually_exclusive_group()
    parts.add_argument("--only", nargs="+", choices=BENCHMARKS, help="parts to measure (default: network data)")
    parts.add_argument("--all", action="store_true", help="all parts that this machine has: a quarter of an hour")
    command.add_argument("--backbone", metavar="NAME", help="timm Vision Transformer (default: vit_base_patch16_384)")
    command.add_argument("--blocks", type=_positive, metavar="L", help="transformer blocks (default: 6)")
    command.add_argument("--width", type=_positive, metavar="D", help="instead of the backbone's, for a quick look")
    command.add_argument("--num-heads", type=_positive, metavar="A", help="instead of the backbone's")
    command.add_argument("--model", metavar="FOLDER", help="a trained model instead of these four")
    command.add_argument("--patches", type=_positive, metavar="N", help="patches per image (default: 256)")
    command.add_argument("--batch", type=_positive, metavar="B", help="pairs at once (default: 4)")
    command.add_argument("--versions", type=_positive, metavar="M", help="of one reference (default: 100)")
    command.add_argument(
        "--megapixels", type=float, nargs="+", metavar="MP", help="sizes of images (default: 0.2 and 12)"
    )
    command.add_argument("--rounds", type=_positive, metavar="R", help="turns that medians are taken over (default: 5)")
    command.add_argument("--rows", type=_positive, metavar="R", help="of the long table of pairs (default: 700000)")
    command.add_argument(
        "--no-compile",
        dest="compile",
        action="store_const",
        const=False,
        help="leave torch.compile out, which takes minutes",
    )
    command.add_argument("--threads", type=_positive, default=1, metavar="T", help="of PyTorch (default: 1)")
    command.add_argument(
        "--out", metavar="FILE", help="also write the table, with the settings and the machine, as .csv"
    )
    command.add_argument("--json", action="store_true", help="print JSON")

    command = commands.add_parser(
        "figures", allow_abbrev=False, help="draw the figures of a finished run again, computing nothing"
    )
    command.set_defaults(run=run_figures)
    command.add_argument(
        "figures_of", nargs="?", default="runs/demo", metavar="RUN", help="folder of the run (default: runs/demo)"
    )
    command.add_argument(
        "--out", metavar="DIR", help="folder to write to (default: the run's: figures for runs/demo, else RUN/figures)"
    )
    command.add_argument(
        "--only", nargs="+", metavar="NAME", help="figures by name, or by patterns such as 'scatter_*'"
    )
    command.add_argument(
        "--format", nargs="+", default=["svg", "png"], choices=("svg", "png", "pdf"), help="default: svg png"
    )
    command.add_argument("--style", metavar="FILE", help="Matplotlib style file with changes to the common style")
    command.add_argument(
        "--dpi", type=_positive, metavar="N", help="of PNG and pictures (default: 200, less where files grow large)"
    )
    return top


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, at least 1, got {text!r}") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, such as 0,1, got {text!r}")
    return tuple(map(int, parts))


def _size(text: str) -> tuple[int, int]:
    width, times, height = text.lower().partition("x")
    if not (times and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT such as 384x288, got {text!r}")
    return int(width), int(height)


def _is_first() -> bool:
    from vtamiq.utils.processes import is_first_process

    return is_first_process()


def _refusal(error: Exception) -> str | None:
    """One line for what the user can mend; None for what deserves its traceback."""
    if isinstance(error, OSError) and error.strerror:
        if error.filename is None:
            return error.strerror
        path = Path(error.filename)
        if isinstance(error, NotADirectoryError):  # name the file that stands where a folder is wanted
            path = next((part for part in (path, *path.parents) if part.is_file()), path)
        return f"{_from_here(path)}: {error.strerror}"
    return str(error) if _is_ours(error) else None


def _is_ours(error: Exception) -> bool:
    """Whether the package itself refused something, as opposed to a library that stumbled over it."""
    frame, _ = list(traceback.walk_tb(error.__traceback__))[-1]
    packages = (frame.f_globals.get("__package__") or "", type(error).__module__)
    return any(package.partition(".")[0] == "vtamiq" for package in packages)


def _from_here(path: str | Path) -> str:
    """Relative to the current folder where it lies below it, else as it is."""
    path, here = Path(path), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


class _Terminated(KeyboardInterrupt):
    """SIGTERM: to be answered like Ctrl-C wherever that is."""


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM interrupts the block as Ctrl-C does, instead of ending the process with everything half written."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread, which alone receives signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the result is the exit status.

    0 done, 1 a notebook or a run failed, a pair could not be scored or a figure not be drawn, 2 refused, 130 interrupted
    by Ctrl-C, 143 by SIGTERM.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("vtamiq").setLevel(logging.INFO)
    for name in ("papermill", "asyncio"):  # what they say of a kernel that died or was interrupted, we say ourselves
        logging.getLogger(name).setLevel(logging.CRITICAL)
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_args(argv)
    try:
        with _terminable():
            return arguments.run(arguments)
    except (ValueError, OSError) as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        print(f"vtamiq: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        again = [part for part in argv if part != "--force"]  # what is finished is kept and need not be made again
        command = shlex.join([_from_here(sys.executable or "python"), "-m", "vtamiq", *again])
        if _is_first():
            print(f"\nstopped; to go on: {command}", file=sys.stderr)
        return 143 if isinstance(interruption, _Terminated) else 130


if __name__ == "__main__":
    sys.exit(main())
