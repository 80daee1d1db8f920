"""`python -m tools.weights`: make the small model that ships."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from vtamiq.utils.shell import answer, from_here

ABOUT = """\
Make the small model that ships: a database from photographs, training, measures, model card. --size cpu takes hours on two
cores; --size gpu is for a GPU and 16 cores.

The folder of photographs has the folders train, val and test, as BSDS500 has. The result is DIR/vtamiq-tiny; what was
reached is printed beside the goals. The command can be interrupted at any time: the same one goes on."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m tools.weights",
        description=ABOUT,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.set_defaults(run=run, refuse=top.error)
    add = top.add_argument
    add("--images", metavar="DIR", help="folder with folders train, val and test of photographs")
    add("--out", required=True, metavar="DIR", help="folder for all that is made")
    add("--size", default="cpu", metavar="NAME", help="cpu or gpu (default: cpu)")
    add("--set", action="append", default=[], metavar="NAME=VALUE",
        help="another value in the recipe, as in weak.epochs=3 or train=40; repeatable")  # fmt: skip
    add("--database", metavar="DIR", help="a database that was made by the same recipe already")
    add("--run", dest="run_folder", metavar="DIR", help="a finished training by the same recipe, to be used as it is")
    add("--workers", type=int, metavar="N", help="processes that make databases (default: one per core)")
    add("--ship", action="store_true", help="then copy it into the package, in place of what ships now")
    return top


def run(arguments: argparse.Namespace) -> int:
    if arguments.images is None and arguments.database is None:
        arguments.refuse("give --images, or --database with a database that was made of them")

    from tools.weights.card import ship
    from tools.weights.recipe import NAME, make_weights
    from vtamiq.utils.configs import parse_setting
    from vtamiq.utils.processes import is_first_process

    if not is_first_process():  # it only helps to train
        for name in ("vtamiq", "tools"):
            logging.getLogger(name).setLevel(logging.ERROR)
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
    print(goals.to_string(index=False, float_format=lambda value: f"{value:.4f}"))
    made = Path(arguments.out) / NAME
    print(f"{made}: made, see README.md")
    if arguments.ship:
        print(f"{from_here(ship(made))}: ships now")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status as of `python -m vtamiq`."""
    return answer(parser(), argv, "tools.weights")


if __name__ == "__main__":
    sys.exit(main())
