"""The repository holds together: requirements, lock file and Makefile."""

import ast
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.conftest import LONGEST

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vtamiq"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")

DIRECT = [
    Requirement(text)
    for text in [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
]

SOURCES = sorted(path for path in PACKAGE.rglob("*.py"))


def locked() -> dict[str, tuple[set[str], int]]:
    """Of every package in requirements.lock: its pinned versions (by platform there may be two) and number of hashes."""
    packages: dict[str, tuple[set[str], int]] = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", "\n" + LOCK):
        if pin := re.match(r"\s*([\w.-]+)==([^\s;]+)", block):
            versions, hashes = packages.get(canonicalize_name(pin[1]), (set(), 0))
            packages[canonicalize_name(pin[1])] = (versions | {pin[2]}, hashes + block.count("--hash=sha256:"))
    return packages


class TestRequirements:
    @pytest.mark.parametrize("requirement", DIRECT, ids=lambda r: r.name)
    def test_lock_pins_every_direct_requirement_with_hashes(self, requirement):
        versions, hashes = locked()[canonicalize_name(requirement.name)]
        assert hashes >= len(versions)
        assert all(requirement.specifier.contains(version) for version in versions)

    def test_every_line_of_the_lock_is_a_pin_a_hash_or_a_comment(self):
        odd = [
            line
            for line in LOCK.splitlines()
            if not re.fullmatch(r"[\w.-]+==\S+( ; .+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?|    #.*|", line)
        ]
        assert odd == []  # so there is no index URL, no path and no editable install either
        assert "://" not in LOCK

    def test_lightning_excludes_its_compromised_releases(self):
        lightning = next(requirement for requirement in DIRECT if requirement.name == "lightning")
        assert not any(lightning.specifier.contains(version) for version in ("2.6.2", "2.6.3"))
        for name in ("lightning", "pytorch-lightning"):
            assert not locked()[name][0] & {"2.6.2", "2.6.3"}

    def test_one_lock_file(self):
        assert not (ROOT / "uv.lock").exists()

    def test_conda_environment_installs_this_package(self):
        environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
        assert environment["name"] == PROJECT["name"]
        python = Requirement(next(d for d in environment["dependencies"] if str(d).startswith("python")))
        supported = SpecifierSet(PROJECT["requires-python"])
        for minor in range(8, 20):
            if python.specifier.contains(f"3.{minor}"):
                assert supported.contains(f"3.{minor}")
        classified = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
        assert classified
        assert all(python.specifier.contains(version) for version in classified)
        assert "pip" in environment["dependencies"]
        (pip,) = (d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
        assert pip == ["-e .[dev]"]
        assert "dev" in PROJECT["optional-dependencies"]

    def test_licence(self):
        assert PROJECT["license"] == "Apache-2.0"
        text = (ROOT / "LICENSE").read_text(encoding="utf-8")
        assert "Apache License\n                           Version 2.0, January 2004" in text
        assert "END OF TERMS AND CONDITIONS" in text


class TestCommands:
    def test_ignored_by_git(self):
        ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
        assert {"/runs/", "/data/", ".venv/"} <= set(ignored)

    def test_ci_runs_make_test(self):
        script = ROOT / ".ci" / "run"
        lines = script.read_text(encoding="utf-8").splitlines()
        assert lines[:2] == ["#!/usr/bin/env bash", "set -euo pipefail"]
        assert lines[-1] == "exec make test"
        assert os.access(script, os.X_OK)

    @pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
    @pytest.mark.parametrize(
        ("target", "expected"),
        [
            ("setup", "pip .*--require-hashes -r requirements.lock"),
            ("setup", "pip .*--no-deps --editable"),
            ("reproduce", "-m vtamiq reproduce --preset demo"),
            ("test", "ruff check .*ruff format --check .*-m pytest -n auto --dist loadfile --no-loadscope-reorder"),
            ("lint", "ruff check .*ruff format --check"),
            ("lab", "jupyter lab notebooks"),
            ("lock", "uv pip compile pyproject.toml .*--universal .*--generate-hashes .*--no-emit-index-url"),
            ("clean", "rm -rf build dist"),
            ("help", "make reproduce"),
        ],
    )
    def test_make_target(self, target, expected, tmp_path):
        """Each target as a dry run in a fresh checkout."""
        for name in ("Makefile", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path)
        dry = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert re.search(expected, dry.stdout, re.DOTALL), dry.stdout
        if target in ("reproduce", "test", "lint", "lab", "lock"):  # they set the environment up first
            assert "--require-hashes" in dry.stdout

    def test_files_that_begin_first_are_there(self):
        assert [name for name in LONGEST if not (ROOT / "tests" / f"{name}.py").is_file()] == []

    @pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
    @pytest.mark.parametrize(
        ("python", "message"),
        [
            ("no-such-python", "no no-such-python here: install Python 3.11 or newer"),
            ("./old", "needs Python 3.11 or newer, ./old is Python 3.9.1"),
            ("./bare", "./bare cannot make virtual environments"),
        ],
    )
    def test_setup_refuses_an_unfit_python(self, python, message, tmp_path):
        for name in ("Makefile", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path)
        scripts = {
            "old": '#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.1\nexit 1\n',
            "bare": '#!/bin/sh\ncase "$2" in *ensurepip*) exit 1 ;; esac\n',
        }
        for name, text in scripts.items():
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        made = subprocess.run(["make", "setup", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True)
        assert made.returncode != 0
        assert message in made.stderr
        assert not (tmp_path / ".venv").exists()

    @pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
    def test_interrupted_setup_is_begun_anew(self, tmp_path):
        """With a Python that notes its calls: without the stamp the environment is cleared, with an old one kept."""
        for name in ("Makefile", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path)
        calls = tmp_path / "calls"
        fake = '#!/bin/sh\necho "$@" >>calls\n[ ! -f broken ] || case "$*" in *require-hashes*) exit 1 ;; esac\n'
        environment = tmp_path / ".venv" / "bin"
        environment.mkdir(parents=True)  # a left-over without a stamp
        for path in (tmp_path / "fake", environment / "python"):
            path.write_text(fake)
            path.chmod(0o755)

        def setup() -> tuple[bool, str]:
            calls.unlink(missing_ok=True)
            command = ["make", "setup", "PYTHON=./fake"]
            made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            return made.returncode == 0, calls.read_text() if calls.exists() else ""

        (tmp_path / "broken").touch()
        fine, called = setup()
        assert not fine
        assert "venv --clear" in called
        assert not (tmp_path / ".venv" / ".ready").exists()
        (tmp_path / "broken").unlink()
        fine, called = setup()
        assert fine
        assert "venv --clear" in called
        assert "--no-deps --editable ." in called
        assert setup() == (True, "")  # ready: nothing is called
        os.utime(tmp_path / ".venv" / ".ready", (0, 0))  # older than the lock file
        fine, called = setup()
        assert fine
        assert "venv --clear" not in called
        assert "--require-hashes" in called


class TestSource:
    @pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
    def test_only_the_shell_prints(self, path):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        prints = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == "print"]
        assert bool(prints) == (path.name in ("__main__.py", "shell.py"))
