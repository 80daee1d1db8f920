"""`python -m tools.benchmark`: how fast this machine is, and how much faster than a plain network."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vtamiq.utils.shell import answer, positive

if TYPE_CHECKING:
    import pandas as pd

SHOWN = {"x": "g", "goal": ".2f", "seconds": ".4g", "error": ".0e", "score_range": ".3g", "mebibytes": ".0f"}
SETTINGS = ("backbone", "blocks", "width", "num_heads", "model", "patches", "batch", "versions", "megapixels", "rows",
            "compile", "rounds")  # fmt: skip


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m tools.benchmark", description=__doc__, allow_abbrev=False)
    top.set_defaults(run=run)
    add = top.add_argument
    parts = top.add_mutually_exclusive_group()
    parts.add_argument("--only", nargs="+", metavar="PART", help="parts to measure (default: network data)")
    parts.add_argument("--all", action="store_true", help="all parts that this machine has: a quarter of an hour")
    add("--backbone", metavar="NAME", help="timm Vision Transformer (default: vit_base_patch16_384)")
    add("--blocks", type=positive, metavar="L", help="transformer blocks (default: 6)")
    add("--width", type=positive, metavar="D", help="instead of the backbone's, for a quick look")
    add("--num-heads", type=positive, metavar="A", help="instead of the backbone's")
    add("--model", metavar="FOLDER", help="a trained model instead of these four")
    add("--patches", type=positive, metavar="N", help="patches per image (default: 256)")
    add("--batch", type=positive, metavar="B", help="pairs at once (default: 4)")
    add("--versions", type=positive, metavar="M", help="of one reference (default: 100)")
    add("--megapixels", type=float, nargs="+", metavar="MP", help="sizes of images (default: 0.2 and 12)")
    add("--rounds", type=positive, metavar="R", help="turns that medians are taken over (default: 5)")
    add("--rows", type=positive, metavar="R", help="of the long table of pairs (default: 700000)")
    add("--no-compile", dest="compile", action="store_const", const=False,
        help="leave torch.compile out, which takes minutes")  # fmt: skip
    add("--threads", type=positive, default=1, metavar="T", help="of PyTorch (default: 1)")
    add("--out", metavar="FILE", help="also write the table, with the settings and the machine, as .csv")
    add("--json", action="store_true", help="print JSON")
    return top


def run(arguments: argparse.Namespace) -> int:
    import torch

    from tools.benchmark.report import USUAL, benchmark, described, measurable
    from tools.benchmark.timing import Benchmark
    from vtamiq.utils.files import write_table

    chosen = {name: getattr(arguments, name) for name in SETTINGS if getattr(arguments, name) is not None}
    settings, before = Benchmark(**chosen), torch.get_num_threads()
    if arguments.out and not arguments.out.endswith(".csv"):  # before half an hour has passed
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
    else:
        print(_text(table))
    return 0


def _text(table: "pd.DataFrame") -> str:
    settings = table.attrs
    network = settings["model"] or f"{settings['backbone']}, {settings['blocks']} blocks"
    gpu = f", {settings['gpu']}" if settings["gpu"] else ""
    lines = [
        f"{network}; {settings['cpu']}, {settings['threads']} thread(s){gpu}",
        f"best rate of a float32 product {settings['gflops']:.0f} GFLOP/s, {settings['onednn_gain']:.2f} times the default "
        f"rate, {settings['rounds']} rounds",
        "ratio: how many times faster than what it is measured against, or the share of the best rate; of memory, how many "
        "times less",
    ]
    shown = table.assign(
        ratio=[_number(value, ".3g") for value in table["ratio"]],
        range=[f"{low:.3g} … {high:.3g}" if low == low else ""
               for low, high in zip(table["lowest"], table["highest"], strict=True)],
        **{name: [_number(value, form) for value in table[name]] for name, form in SHOWN.items()},
    )  # fmt: skip
    columns = ["what", "x", "against", "ratio", "range", *(name for name in SHOWN if name != "x")]
    for part, rows in shown.fillna({"against": ""}).groupby("part", sort=False):
        told = [name for name in columns if (rows[name] != "").any()]
        lines += ["", part, rows[told].to_string(index=False)]
    return "\n".join(lines)


def _number(value: float, form: str) -> str:
    return "" if value != value else format(value, form)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status as of `python -m vtamiq`."""
    return answer(parser(), argv, "tools.benchmark")


if __name__ == "__main__":
    sys.exit(main())
