"""What the commands of this repository share: options, refusals in one line, and how to go on after an interruption."""

import argparse
import io
import logging
import os
import re
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO


def add_command(
    commands: "argparse._SubParsersAction", name: str, run: Callable, about: str, description: str | None = None
) -> argparse.ArgumentParser:
    """Add a command that `run(arguments)` answers; `arguments.refuse(why)` refuses options that do not go together."""
    command = commands.add_parser(
        name,
        help=about,
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, refuse=command.error)
    return command


def positive(text: str) -> int:
    """Read an option's whole number, at least 1."""
    if not text.lstrip("-").isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, at least 1, got {text!r}")
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def numbers(text: str) -> tuple[int, ...]:
    """Read numbers with commas between them."""
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", text):
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, such as 0,1, got {text!r}")
    return tuple(map(int, text.split(",")))


def size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT."""
    if not re.fullmatch(r"\d+[xX]\d+", text):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT such as 384x288, got {text!r}")
    width, height = text.lower().split("x")
    return int(width), int(height)


def printable(text: str) -> str:
    """Escape control characters, with which a file's name could forge a line or command the terminal."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def say(text: str, file: TextIO | None = None) -> None:
    """Print one line, whatever file names are in it."""
    print(printable(text), file=file)


class Parser(argparse.ArgumentParser):
    """Refuses arguments in one printable line."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


class _Printable(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


class _Terminated(KeyboardInterrupt):
    """SIGTERM, answered like Ctrl-C wherever that is."""


def answer(parser: argparse.ArgumentParser, argv: Sequence[str] | None, module: str) -> int:
    """Run what the arguments ask of `python -m {module}`; the exit status: 2 if refused, 130 for Ctrl-C, 143 for SIGTERM.

    Refusals are one line, errors of libraries keep their traceback; after an interruption the command is printed again.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(level=logging.ERROR, handlers=[handler])  # of libraries
    for name in ("vtamiq", "tools"):
        logging.getLogger(name).setLevel(logging.INFO)
    for name in ("papermill", "asyncio"):  # what they say of a kernel that died or was interrupted, we say ourselves
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if argv is None:
        _use_utf8()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # where the terminal is said to know ASCII only
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(argv)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")  # those of libraries; python -W and PYTHONWARNINGS show them
            return arguments.run(arguments)
    except (ValueError, OSError) as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        say(f"vtamiq: {refusal}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit) as end:
        by_sigterm = isinstance(end, _Terminated) or getattr(end, "code", None) == 143  # the latter from a training
        if isinstance(end, SystemExit) and not by_sigterm:
            raise
        _say_how_to_go_on(argv, module)
        return 143 if by_sigterm else 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _use_utf8() -> None:
    """Start again in UTF-8 where the locale has fewer letters (LC_ALL=C): names of files would not be found."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


def _say_how_to_go_on(argv: Sequence[str], module: str) -> None:
    from vtamiq.utils.processes import is_first_process

    again = [part for part in argv if part != "--force"]  # what is finished is kept and need not be made again
    if is_first_process():
        command = printable(shlex.join([from_here(sys.executable or "python"), "-m", module, *again]))
        sys.stderr.write(f"\nstopped; to go on: {command}\n")


def _refusal(error: Exception) -> str | None:
    """One line for what the user can mend; None for what deserves its traceback."""
    if isinstance(error, OSError) and error.strerror:
        if error.filename is None:
            return error.strerror
        path = Path(error.filename)
        if isinstance(error, NotADirectoryError):  # name the file that stands where a folder is wanted
            path = next((part for part in (path, *path.parents) if part.is_file()), path)
        return f"{from_here(path)}: {error.strerror}"
    return str(error) if _is_ours(error) else None


def _is_ours(error: Exception) -> bool:
    """Whether this repository refused something, as opposed to a library that stumbled over it."""
    frame, _ = list(traceback.walk_tb(error.__traceback__))[-1]
    packages = (frame.f_globals.get("__package__") or "", type(error).__module__)
    return any(package.partition(".")[0] in ("vtamiq", "tools") for package in packages)


def from_here(path: str | Path) -> str:
    """Relative to the current folder where it lies below it, else as it is."""
    path, here = Path(path), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
