"""Importing vtamiq costs nothing that is not used, and every name is where it is said to be."""

import pickle
import subprocess
import sys

import pytest

import vtamiq


def test_reading_a_database_imports_no_torch(tmp_path):
    code = "import sys, vtamiq; vtamiq.read_image; vtamiq.load_database; vtamiq.distort; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", vtamiq.__all__)
def test_every_public_name_is_there(name):
    assert name in dir(vtamiq)
    assert getattr(vtamiq, name) is getattr(vtamiq, name)


def test_submodules_are_found_without_being_imported_first():
    code = "import vtamiq; print(vtamiq.model.inference.fingerprint.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "fingerprint"


def test_unknown_names_and_pickles():
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        from vtamiq import nonsense  # noqa: F401
    assert not hasattr(vtamiq, "_private")
    assert pickle.loads(pickle.dumps(vtamiq.score)) is vtamiq.score
