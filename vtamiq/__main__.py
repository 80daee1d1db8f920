"""The command line: `python -m vtamiq score`, `train`, `databases`, `synthesize`, `reproduce`. Parses, calls, prints.

A command imports what it needs when it runs: `--help` waits for no torch.
"""

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vtamiq import __version__
from vtamiq.utils.shell import Parser, add_command, answer, numbers, positive, printable, say, size

if TYPE_CHECKING:
    import pandas as pd

    from vtamiq.images.reading import Background
    from vtamiq.model.network import VTAMIQ
    from vtamiq.training.chain import Chain
    from vtamiq.training.repeats import PlannedRun

TRAINED = "runs/demo/03_weak_pretraining/run/model"  # what `make reproduce` leaves for --model
SHOWN_PROBLEMS = 3  # of a database
SHOWN_ROWS = 20  # of those that could not be scored
ERROR_WIDTH = 60  # of the printed summary; summary.csv has errors whole
TRAIN_COLUMNS = ("folder", "database", "synthetic", "epochs", "best_epoch", "val_srocc", "n", "srocc_start", "srocc",
                 "krocc", "plcc_fitted", "rmse_fitted")  # fmt: skip
CHECK_COLUMNS = ("folder", "start", "labels", "database", "synthetic", "train", "val", "test", "left_out", "preferences",
                 "epochs", "parameters")  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------- score

SCORE_HELP = """\
Score one pair of images, a table of pairs, or two folders. Lower is better.

A table or two folders can be interrupted at any time: the same command goes on. Rows that have a score in --out keep it
unless an image has changed since; bad rows have their reason in the column `error`, are named at the end, and the exit
status is then 1.

Folders: the reference of dist/NAME.jpg is ref/NAME.*; failing that, that of dist/NAME_anything.jpg is ref/NAME.*; of
several, the one in the same subfolders. Where several are left, nothing is scored. Capitals do not matter. Every file in
the folder of distorted images that is not hidden is a row.

Several processes or GPUs: torchrun --nproc-per-node 4 -m vtamiq score --pairs pairs.csv --out scores.csv --model FOLDER
The last process to finish writes the table; if some were killed, start again with as many processes as you like."""


def add_score(commands: "argparse._SubParsersAction") -> None:
    command = add_command(commands, "score", run_score, "score distorted images against their references", SCORE_HELP)
    add = command.add_argument
    add("reference", nargs="?", metavar="REF", help="the perfect image")
    add("distorted", nargs="?", metavar="DIST", help="the image to judge, of the same size")
    add("--pairs", metavar="FILE", help="CSV or parquet with columns reference and distorted")
    add("--root", metavar="DIR", help="what paths in FILE are relative to (default: where FILE is)")
    add("--ref-dir", metavar="DIR", help="folder of references, with subfolders")
    add("--dist-dir", metavar="DIR", help="folder of distorted images, with subfolders")
    add("--out", metavar="FILE", help="table to write, .csv, .parquet or .json; without: CSV is printed, control "
        "characters in it escaped")  # fmt: skip
    add("--json", action="store_true", help="print JSON, with all that a score depends on")
    _add_scorer(command)


def _add_scorer(command: argparse.ArgumentParser) -> None:
    """The options of `_scorer`: the model and how it scores."""
    add = command.add_argument
    add("--model", metavar="FOLDER", help="what `save_pretrained` wrote, or a Hugging Face id (default: vtamiq-tiny, "
        "which ships with the package: trained on synthetic labels, not on human opinion)")  # fmt: skip
    add("--download", action="store_true", help="fetch the model of a Hugging Face id if need be")
    add("--patches", type=positive, metavar="N", help="patches per image")
    add("--repeats", type=positive, default=1, metavar="K", help="draws of patches to average")
    add("--seed", type=int, default=0, metavar="S", help="seed of the patches")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    add("--precision", default="float32", metavar="TYPE", help="float32, float16 or bfloat16")
    add("--background", type=_background, default=(255, 255, 255), metavar="COLOUR",
        help="behind transparent pixels: R,G,B such as 255,255,255 (default) or checker")  # fmt: skip
    add("--fast", action="store_true", help="on a CPU: use oneDNN where it is faster; scores change by rounding only")
    add("--batch-size", type=positive, metavar="N", help="draws at once (default: 1, on a GPU 32)")
    add("--workers", type=int, metavar="N", help="processes that read images (default: one per core but one)")


def run_score(arguments: argparse.Namespace) -> int:
    if arguments.reference and not arguments.distorted:
        arguments.refuse("the following arguments are required: DIST")
    if (arguments.ref_dir is None) != (arguments.dist_dir is None):
        arguments.refuse("--ref-dir and --dist-dir go together")
    if sum(given is not None for given in (arguments.reference, arguments.pairs, arguments.ref_dir)) != 1:
        arguments.refuse("give either REF and DIST, or --pairs, or --ref-dir and --dist-dir")
    return _score_one(arguments) if arguments.reference else _score_many(arguments)


def _score_one(arguments: argparse.Namespace) -> int:
    from vtamiq.model.inference import DEFAULT, fingerprint
    from vtamiq.scoring.scores import score

    for option in ("out", "root", "workers"):
        if getattr(arguments, option) is not None:
            arguments.refuse(f"--{option} is for tables of pairs")
    model, options = _scorer(arguments)
    q, error = score(arguments.reference, arguments.distorted, model=model, return_std=True, **options)
    if not arguments.json:
        print(f"{q:.4f}" + (f" ± {error:.4f}" if arguments.repeats > 1 else ""))
        return 0
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
        "background": arguments.background,
    }
    print(json.dumps(result, indent=2))
    return 0


def _score_many(arguments: argparse.Namespace) -> int:
    from vtamiq.scoring.journal import to_json
    from vtamiq.scoring.pairs import pair_folders
    from vtamiq.scoring.table import score_table
    from vtamiq.utils.processes import count_workers

    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
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
        say(f"{arguments.out}: process {rank} of {world_size} is done, rows of others are still to come")
        return 0  # torchrun would stop the others for any other status
    if not arguments.out:
        shown = table.map(lambda value: printable(value) if isinstance(value, str) else value)
        print(to_json(table) + "\n" if arguments.json else shown.to_csv(index=False), end="")
    return _report(table, arguments)


def _spare_cores() -> int:
    """Cores that the networks of this process and its neighbours under torchrun leave over; at least one."""
    from vtamiq.utils.processes import count_workers

    return max(1, count_workers(None) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1)


def _report(table: "pd.DataFrame", arguments: argparse.Namespace) -> int:
    """Name the bad rows and count the good ones; returns the exit status."""
    bad = table[table["error"] != ""]
    unit = "row" if (arguments.pairs or "").endswith(".parquet") else "line"
    for line, distorted, error in bad[["distorted", "error"]][:SHOWN_ROWS].itertuples():
        if arguments.pairs:
            where = f"{arguments.pairs}, {unit} {line}: "
        else:
            where = "" if str(distorted) in error else f"{distorted}: "
        say(f"vtamiq: {where}{error}", file=sys.stderr)
    if len(bad) > SHOWN_ROWS:
        print(f"vtamiq: … and {len(bad) - SHOWN_ROWS} more bad rows, see the column `error`", file=sys.stderr)
    counts = f"{len(table) - len(bad)} of {len(table)} pairs scored"
    say(f"{arguments.out}: {counts}" if arguments.out else counts, file=sys.stdout if arguments.out else sys.stderr)
    return 1 if len(bad) else 0


def _scorer(arguments: argparse.Namespace) -> "tuple[VTAMIQ, dict]":
    """The model on its device, and the options that scoring one pair and scoring many have in common."""
    from vtamiq.caps import caps_for
    from vtamiq.model.inference import choose_device, load_default

    model = _load(arguments) if arguments.model else load_default()
    device = choose_device(arguments.device)
    if arguments.fast:
        model.optimize_for_inference()
    return model.to(device), {
        "caps": caps_for(model, num_patches=arguments.patches) if arguments.patches else caps_for(model),
        "repeats": arguments.repeats,
        "seed": arguments.seed,
        "batch_size": arguments.batch_size or (1 if device.type == "cpu" else 32),
        "precision": arguments.precision,
        "background": arguments.background,
    }


def _background(text: str) -> "Background":
    return text if text == "checker" else numbers(text)


def _load(arguments: argparse.Namespace) -> "VTAMIQ":
    from vtamiq.model.checkpoints import CheckpointError
    from vtamiq.model.network import VTAMIQ

    name = arguments.model
    try:
        return VTAMIQ.from_pretrained(name, download=arguments.download)
    except CheckpointError as error:
        if arguments.download or "is neither a folder nor" not in str(error):
            raise
        hub = " (or the id of a model on the Hugging Face Hub: --download fetches it)" if name.count("/") == 1 else ""
        raise CheckpointError(
            f"no such folder: {name}{hub}; `make reproduce` trains one into {TRAINED}; without --model "
            "the one that ships with the package scores"
        ) from error


# ----------------------------------------------------------------------------------------------------------------- train

TRAIN_HELP = """\
Train the stages that a YAML file describes, each from the best weights of the one before. --example prints such a file.

The run folder can be interrupted at any time: the same command goes on, and loads what is finished. Relative paths in the
file count from the current folder. Several devices: --devices 4; several machines: the same command on each, by torchrun
or SLURM, with --num-nodes.

--runs, --folds and --grid train the last stage many times, those before it once. runs.csv in the run folder has the
results of all runs, summary.csv the statistics. The exit status is 1 if some runs failed; the others are finished then."""


def add_train(commands: "argparse._SubParsersAction") -> None:
    about = "train the stages that a YAML file describes, resuming"
    add = add_command(commands, "train", run_train, about, TRAIN_HELP).add_argument
    add("file", nargs="?", metavar="FILE", help="YAML file of a chain of stages")
    add("--example", action="store_true", help="print a YAML file of the paper's chain, and end")
    add("--out", metavar="DIR", help="run folder (default: runs/ and the name of FILE)")
    add("--set", action="append", default=[], metavar="NAME=VALUE",
        help="a value instead of that in FILE, as in steps.0.stage.epochs=3; repeatable")  # fmt: skip
    add("--check", action="store_true", help="load everything, print what would be trained, and end")
    add("--devices", type=int, metavar="N", help="GPUs or processes on each machine, -1 for all")
    add("--num-nodes", type=positive, metavar="M", help="machines")
    add("--strategy", metavar="NAME", help="auto, ddp, fsdp or another one of Lightning")
    add("--accelerator", metavar="NAME", help="auto, cpu or gpu")
    add("--precision", metavar="TYPE", help="of all stages: 32-true, bf16-mixed or 16-mixed")
    add("--runs", type=positive, metavar="N", help="train the last stage on N random splits")
    add("--folds", type=positive, metavar="K", help="train the last stage for each of K folds")
    add("--grid", action="append", default=[], metavar="NAME=V1,V2",
        help="train every combination of values, with --runs or --folds if given; repeatable")  # fmt: skip
    add("--workers", type=int, metavar="N", help="so many runs at once (default: one for each of --gpus)")
    add("--gpus", type=numbers, default=(), metavar="0,1", help="GPUs that runs at once take in turns")


def run_train(arguments: argparse.Namespace) -> int:
    from vtamiq.training.chain import example
    from vtamiq.training.repeats import RunsFailed

    if arguments.example:
        print(example(), end="")
        return 0
    if arguments.file is None:
        arguments.refuse("the following arguments are required: FILE (or --example, which prints one)")
    if arguments.runs and arguments.folds:
        arguments.refuse("give either --runs or --folds")
    arguments.many = bool(arguments.runs or arguments.folds or arguments.grid)
    if (arguments.workers is not None or arguments.gpus) and not arguments.many:
        arguments.refuse("--workers and --gpus are for --runs, --folds and --grid")
    chain = _chain(arguments)
    plan = _plan(chain, arguments) if arguments.many else None
    if not chain.places.main:  # the first process says it
        logging.getLogger("vtamiq").setLevel(logging.ERROR)
    try:
        said = _check(chain, plan) if arguments.check else _train(chain, plan, arguments)
    except RunsFailed as error:
        say(f"vtamiq: {error}", file=sys.stderr)
        return 1
    if chain.places.main:
        print(said)
    return 0


def _chain(arguments: argparse.Namespace) -> "Chain":
    """The chain of the file, with what the command line says otherwise."""
    from vtamiq.training.chain import Chain
    from vtamiq.utils.configs import changed, parse_setting

    chain = changed(Chain.load(arguments.file), dict(map(parse_setting, arguments.set)))
    names = ("devices", "num_nodes", "strategy", "accelerator")
    settings = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.precision is not None:
        settings |= {f"steps.{number}.stage.precision": arguments.precision for number in range(len(chain.steps))}
    return changed(chain, settings)


def _check(chain: "Chain", plan: "list[PlannedRun] | None") -> str:
    from vtamiq.training.chain import check_chain
    from vtamiq.training.repeats import check_many

    return _text(check_many(plan), ("run", *CHECK_COLUMNS)) if plan else _text(check_chain(chain), CHECK_COLUMNS)


def _train(chain: "Chain", plan: "list[PlannedRun] | None", arguments: argparse.Namespace) -> str:
    import pandas as pd

    from vtamiq.training.chain import run_chain
    from vtamiq.training.repeats import run_many

    out = Path(arguments.out or f"runs/{Path(arguments.file).stem}")
    progress = chain.places.main and sys.stderr.isatty()
    if plan:
        result = run_many(plan, out, workers=arguments.workers, gpus=arguments.gpus, progress=progress)
        said = _text(result.summary, result.summary.columns)
        return f"{said}\n{out}: {len(result.table)} runs, see runs.csv and summary.csv"
    run_chain(chain, out, progress=progress)
    if not chain.places.main:
        return ""
    return f"{_text(pd.read_csv(out / 'chain.csv'), TRAIN_COLUMNS)}\n{out}: trained, see chain.csv"


def _plan(chain: "Chain", arguments: argparse.Namespace) -> "list[PlannedRun]":
    """The runs of --runs, --folds and --grid."""
    from vtamiq.training.repeats import grid, repeat
    from vtamiq.utils.configs import parse_setting

    number, folds = arguments.runs or 1, arguments.folds or 0
    if arguments.grid:
        listed = [re.sub("=(.*)", r"=[\1]", text, count=1) for text in arguments.grid]
        return grid(chain, dict(map(parse_setting, listed)), num_runs=number, folds=folds)
    return repeat(chain, number, folds=folds)


def _text(table: "pd.DataFrame", columns: Sequence[str]) -> str:
    return table[list(columns)].to_string(index=False, float_format=lambda value: f"{value:.4f}")


# ------------------------------------------------------------------------------------------------------------- databases


def add_databases(commands: "argparse._SubParsersAction") -> None:
    add = add_command(commands, "databases", run_databases, "what databases are here, and are they whole?").add_argument
    add("names", nargs="*", metavar="NAME", help="only these (default: all that are found)")
    add("--data", metavar="DIR", help="folder of databases (default: $VTAMIQ_DATA, or data)")
    add("--check", action="store_true", help="compare PSNR's correlations with the published ones")
    add("--fast", action="store_true", help="read labels and names only, open no image")
    add("--all", action="store_true", help="print every problem")
    add("--workers", type=int, metavar="N", help="processes of --check (default: one per core)")


def run_databases(arguments: argparse.Namespace) -> int:
    from vtamiq.databases.loading import LOADERS, data_folder, find_databases
    from vtamiq.evaluation.survey import survey

    data = Path(arguments.data) if arguments.data else data_folder()
    table = survey(data, arguments.names or None, check_images=not arguments.fast)
    for row in table.to_dict("records"):
        say(_database_line(row))
        shown = row["problems"] if arguments.all else row["problems"][:SHOWN_PROBLEMS]
        for problem in shown:
            say(f"    {problem}")
        if len(shown) < len(row["problems"]):
            print(f"    … and {len(row['problems']) - len(shown)} more (--all)")
    found = find_databases(data)
    if not arguments.names:
        absent = [name for name, loader in LOADERS.items() if name not in found and loader.marks]
        say(f"not found in {data}: {', '.join(absent)}" if absent else f"all are in {data}")
    fine = [table["status"].eq("complete").all()]
    if arguments.check:
        looked_at = set(table["database"])
        fine += [_print_check(name, found[name], arguments.workers) for name in found if name in looked_at]
    return 0 if all(fine) else 1


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


def _print_check(name: str, folder: Path, workers: int | None) -> bool:
    """Whether PSNR has its published correlations, or nothing is published."""
    from vtamiq.databases.schema import DatabaseError
    from vtamiq.evaluation.published import known_answer
    from vtamiq.evaluation.survey import check_known_answer

    if known_answer(name) is None:
        print(f"{name}: no published value of PSNR to compare with")
        return True
    try:
        result = check_known_answer(name, folder, workers=workers)
    except DatabaseError as error:
        say(f"{name}: not checked: {error}")
        return False
    measured = f"SROCC {result['srocc']:.4f}, KROCC {result['krocc']:.4f}"
    known = f"SROCC {result['srocc_published']:.4f}, KROCC {result['krocc_published']:.4f}"
    print(f"{name}: PSNR has {measured}; published: {known}: {'agrees' if result['agrees'] else 'DIFFERS'}")
    return bool(result["agrees"])


# ------------------------------------------------------------------------------------------------------------ synthesize


def add_synthesize(commands: "argparse._SubParsersAction") -> None:
    command = add_command(commands, "synthesize", run_synthesize, "make a database from photographs, resuming")
    add = command.add_argument
    add("--images", required=True, metavar="DIR", help="folder of photographs")
    add("--out", required=True, metavar="DIR", help="folder to make, in the layout of KADID-10k")
    add("--types", nargs="+", metavar="TYPE", help="distortions by number or tag (default: all 25)")
    add("--one-type", action="store_true",
        help="one type for each photograph, as in KADIS-700k, instead of all of them")  # fmt: skip
    add("--recipes-only", action="store_true",
        help="write no image: loaders render them on the fly; the photographs stay where they are")  # fmt: skip
    labels = command.add_mutually_exclusive_group()
    labels.add_argument("--metrics", nargs="+", metavar="IQM", help="that make the labels (default: all eleven)")
    labels.add_argument("--unlabelled", action="store_true", help="recipes without labels, in a fraction of the time")
    add("--size", type=size, metavar="WxH", help="crop the photographs' centre to this many pixels")
    add("--workers", type=int, metavar="N", help="processes (default: one per core)")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where the metrics are computed")
    add("--seed", type=int, default=0, metavar="S", help="seed of the random distortions")


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
    say(f"{arguments.out}: {what}, {'without' if arguments.unlabelled else 'with synthetic'} labels")
    return 0


# ------------------------------------------------------------------------------------------------------------- reproduce


def add_reproduce(commands: "argparse._SubParsersAction") -> None:
    about = "run the numbered notebooks, in order, resuming"
    add = add_command(commands, "reproduce", run_reproduce, about).add_argument
    add("--preset", default="demo", help="smoke (seconds), demo (minutes) or full (real databases)")
    add("--only", nargs="+", metavar="NN", help="numbers or names of notebooks")
    add("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE",
        help="a notebook parameter; repeatable")  # fmt: skip
    add("--out", default="runs", metavar="DIR", help="folder of all runs (default: runs)")
    add("--force", action="store_true", help="run finished notebooks again; a finished training run of the same "
        "settings is loaded, not repeated")  # fmt: skip
    add("--format", nargs="+", choices=("svg", "png", "pdf"), help="of figures (default: svg png)")
    add("--style", metavar="FILE", help="Matplotlib style file with changes to the look of all figures")
    add("--list", action="store_true", help="show the notebooks and their parameters, run nothing")


def run_reproduce(arguments: argparse.Namespace) -> int:
    from vtamiq.lab.pipeline import FINISHED, plan, reproduce
    from vtamiq.plots.style import FORMATS_VARIABLE, STYLE_VARIABLE
    from vtamiq.utils.configs import parse_setting

    if arguments.format:
        os.environ[FORMATS_VARIABLE] = " ".join(arguments.format)
    if arguments.style:
        os.environ[STYLE_VARIABLE] = str(Path(arguments.style).resolve())
    parameters = dict(map(parse_setting, arguments.parameter))
    chosen = {"only": arguments.only, "parameters": parameters, "out": arguments.out}
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
    errors = [text if len(text) <= ERROR_WIDTH else f"{text[: ERROR_WIDTH - 1].rstrip()}…" for text in summary["error"]]
    print(summary.assign(error=errors).to_string(index=False))
    return 0 if summary["status"].isin(FINISHED).all() else 1


# ------------------------------------------------------------------------------------------------------------ the parser


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m vtamiq", description="VTAMIQ, a full-reference image quality metric: lower is better.")
    top.add_argument("--version", action="version", version=f"vtamiq {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for add in (add_score, add_train, add_databases, add_synthesize, add_reproduce):
        add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the result is the exit status.

    0 done, 1 a notebook or a run failed or a pair could not be scored, 2 refused, 130 interrupted by Ctrl-C, 143 by
    SIGTERM.
    """
    return answer(parser(), argv, "vtamiq")


if __name__ == "__main__":
    sys.exit(main())
