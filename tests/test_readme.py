"""What the README says is so: its numbers, pictures, snippets and commands."""

import ast
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from tools.benchmark import __main__ as benchmark
from tools.weights import __main__ as weights
from vtamiq.__main__ import parser
from vtamiq.lab.pipeline import find_notebooks
from vtamiq.utils.configs import parse_setting

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
METHODS = {"look-up of (distortion, level)": "look-up"}  # others have the name of their method


def blocks(language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """Arguments of every `python -m vtamiq` in the README, those within `make reproduce` and its like included."""
    found = []
    for line in "".join(blocks("sh")).splitlines():
        words = shlex.split(line.partition(" > ")[0], comments=True)
        if "vtamiq" in words:
            found.append(words[words.index("vtamiq") + 1 :])
        elif words[:1] == ["make"] and words[1] in ("benchmark", "reproduce", "weights"):
            given = dict(word.split("=", 1) for word in words[2:])
            preset = ["--preset", given["PRESET"]] if "PRESET" in given else []
            found.append([words[1], *preset, *shlex.split(given.get("ARGS", ""))])
    return found


def test_results_are_those_of_the_run():
    """The table is `figures/evaluation.csv`, which notebook 06 wrote with the figures beside it."""
    results = pd.read_csv(ROOT / "figures" / "evaluation.csv").set_index(["method", "database"])
    columns = ["srocc", "srocc_low", "srocc_high", "krocc", "plcc", "plcc_fitted"]
    rows = re.findall(r"^\| ([^|]+) \| (photos|textures) \| (\d+) \| (.+) \|$", README, re.MULTILINE)
    assert len(rows) == 10
    for name, database, n, numbers in rows:
        expected = results.loc[METHODS.get(name, name), database]
        assert int(n) == expected["n"]
        assert re.findall(r"-?\d\.\d{3}", numbers) == [f"{expected[column]:.3f}" for column in columns]
    assert results["synthetic"].all()
    assert "synthetic" in README


def shares_of_decoding(measured: pd.DataFrame) -> list[pd.Series]:
    """Of sampling, and of whole items, by size of image."""
    shares = 1 / measured.loc["decoding two PNG files", "ratio"]
    return [shares[shares.index.str.contains(kind)] for kind in ("sampled", "item")]


def test_speeds_are_those_of_the_run():
    """The table is `figures/benchmark_speed.csv`, of `make benchmark ARGS=--all`; what is below names its own."""
    measured = pd.read_csv(ROOT / "figures" / "benchmark_speed.csv").set_index(["against", "what"])
    rows = re.findall(r"^\| (.+ patches.*?) \| (.+) \| (.+) \| (.+) \| (.+) \|$", README, re.MULTILINE)
    assert len(rows) == 4
    for what, *numbers in rows:
        expected = [measured.loc[("plain twin", what + kind)] for kind in ("", ", optimised")]
        assert numbers == [text for row in expected for text in (f"{row['ratio']:.2f}", f"{row['goal']:g}")]
    shares = [measured.loc[("best float32 rate", f"{what}, optimised"), "ratio"] for what, *_ in rows[:2]]
    assert "reaches {:.2f} and {:.2f} of the best float32 rate".format(*shares) in README
    words = " ".join(README.split())
    data = pd.read_csv(ROOT / "figures" / "benchmark_data.csv").set_index(["against", "what"])
    assert data["megapixels"].eq("0.2 1.0 2.0 12.0").all()
    assert data["rounds"].eq(15).all()
    for what, shares in zip(("sampling 512 patches takes", "a whole item"), shares_of_decoding(data), strict=True):
        assert "{} {:.2f}, {:.2f}, {:.2f} and {:.2f}".format(what, *shares) in words
    versions = measured.loc["score, optimised", "ratio"].item()
    assert f"{versions:.2f} times as fast by `ReferenceEmbedding`" in words
    for name, value in {"blocks": 6, "rounds": 5, "threads": 1}.items():
        assert measured[name].eq(value).all()
    measured = pd.read_csv(ROOT / "figures" / "benchmark_precision_tiny.csv").set_index("what")
    half = measured.loc["CPU: bfloat16"]
    assert f"bfloat16 is {half['ratio']:.1f} times as fast" in words
    assert f"by up to {half['error']:.4f} of a range of {half['score_range']:.2f}" in words


def test_what_the_weights_reach_is_measured():
    measured = pd.read_csv(ROOT / "vtamiq" / "weights" / "vtamiq-tiny" / "agreement.csv")
    of = measured[measured["target"] == "all"].set_index(["database", "method"])
    words = " ".join(README.split())
    for database, start in (("bsds", "an SROCC of "), ("photos", "photographs ")):
        values = {method: of.loc[(database, method)] for method in ("VTAMIQ", "look-up", "PSNR")}
        said = words[words.index(f"{start}{values['VTAMIQ']['srocc']:.3f}") :][:170]
        for row in values.values():
            assert f"{row['srocc']:.3f}" in said
            assert f"{row['within_cell']:.3f}".replace("0.000", "0") in said
    left_out = (
        pd.read_csv(ROOT / "vtamiq" / "weights" / "vtamiq-tiny" / "left_out.csv").set_index("dist_name").loc["all"]
    )
    assert (
        f"reaches {left_out['srocc']:.3f} on those five, where the one that ships has {left_out['srocc_full']:.3f}"
        in words
    )


def test_pictures_are_there_with_their_data():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert len(set(pictures)) == len(pictures) > 8
    for picture in pictures:
        png = ROOT / picture
        if png.stem.endswith("_screenshot"):
            assert png.is_file()
            continue
        assert png.is_file()
        assert png.with_suffix(".svg").is_file()
        assert png.with_suffix(".csv").is_file() or png.with_suffix(".json").is_file()


@pytest.mark.parametrize("snippet", blocks("python"))
def test_snippets_are_python_and_import_what_exists(snippet):
    tree = ast.parse(snippet)
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert imports
    exec(compile(ast.Module(imports, []), "README", "exec"), {})


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_commands_are_understood(arguments):
    tools = {"benchmark": benchmark.parser, "weights": weights.parser}
    if arguments[0] in tools:
        tools[arguments[0]]().parse_args(arguments[1:])
        return
    parsed = parser().parse_args(arguments)
    if arguments[0] == "reproduce":
        declared = {name for notebook in find_notebooks(ROOT / "notebooks") for name in notebook.parameters}
        assert {parse_setting(text)[0] for text in parsed.parameter} <= declared


def test_commands_were_found():
    assert {arguments[0] for arguments in commands()} == {
        "benchmark",
        "databases",
        "reproduce",
        "score",
        "synthesize",
        "train",
        "weights",
    }


def test_every_notebook_is_listed():
    listed = re.findall(r"^\| `(\d\d_\w+)` \|", README, re.MULTILINE)
    assert listed == sorted(notebook.name for notebook in find_notebooks(ROOT / "notebooks"))
