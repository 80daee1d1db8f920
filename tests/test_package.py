"""Importing vtamiq costs nothing that is not used, and every name is where it is said to be."""

import pickle
import subprocess
import sys

import pytest

import vtamiq


def imported_by(statement: str) -> set[str]:
    """Modules that a fresh process has after one statement."""
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_images_and_databases_import_no_torch():
    assert "torch" not in imported_by("import vtamiq; vtamiq.read_image; vtamiq.load_database; vtamiq.distort")


def test_scoring_imports_only_what_it_needs():
    modules = imported_by("from vtamiq import score")
    assert {"torch", "timm", "vtamiq.scoring.scores"} <= modules
    assert not modules & {
        "pandas",
        "openpyxl",
        "lightning",
        "torchmetrics",
        "matplotlib",
        "piq",
        "sklearn",
        "papermill",
    }
    wings = {name.split(".")[1] for name in modules if name.startswith("vtamiq.")}
    assert wings == {"caps", "images", "model", "scoring", "utils"}


def test_the_command_line_starts_without_torch():
    modules = imported_by("from vtamiq.__main__ import parser; parser().format_help()")
    assert not modules & {"torch", "numpy", "pandas", "yaml"}


@pytest.mark.parametrize("name", vtamiq.__all__)
def test_every_public_name_is_there(name):
    assert name in dir(vtamiq)
    assert getattr(vtamiq, name) is getattr(vtamiq, name)


def test_wings_are_found_without_being_imported_first():
    assert "vtamiq.evaluation.correlation" in imported_by("import vtamiq; vtamiq.evaluation.correlations")


def test_unknown_names_and_pickles():
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        from vtamiq import nonsense  # noqa: F401
    assert not hasattr(vtamiq, "_private")
    assert pickle.loads(pickle.dumps(vtamiq.score)) is vtamiq.score
