"""The examples in docstrings run. They may use what stands below: two images, a small model, and a table of pairs."""

import doctest
import importlib
import pkgutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import vtamiq
from tests.small import TINY
from vtamiq.scoring.loss import VTAMIQLoss
from vtamiq.scoring.metric import VTAMIQMetric
from vtamiq.scoring.scores import score

MODULES = ["vtamiq", *(module.name for module in pkgutil.walk_packages(vtamiq.__path__, "vtamiq."))]
WITH_EXAMPLES = {
    "vtamiq",
    "vtamiq.scoring.table",
    "vtamiq.caps",
    "vtamiq.scoring.loss",
    "vtamiq.scoring.scores",
    "vtamiq.scoring.metric",
}


@pytest.fixture(scope="module")
def names():
    torch.manual_seed(0)
    reference = np.kron(np.random.default_rng(0).integers(40, 200, (8, 10, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    distorted = reference.copy()
    distorted[20:60, 30:90] //= 2
    model = vtamiq.VTAMIQ(TINY).eval()
    return {
        "np": np,
        "pd": pd,
        "torch": torch,
        "reference": reference,
        "distorted": distorted,
        "model": model,
        "VTAMIQLoss": VTAMIQLoss,
        "VTAMIQMetric": VTAMIQMetric,
        "score": score,
    }


def examples(module):
    found = doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", sorted(WITH_EXAMPLES))
def test_examples_run(name, names, tmp_path, monkeypatch):
    for file, image in (("a.png", names["reference"]), ("b.png", names["distorted"])):
        Image.fromarray(image).save(tmp_path / file)
    (tmp_path / "pairs.csv").write_text("reference,distorted\na.png,b.png\n")
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(verbose=False)
    tests = examples(importlib.import_module(name))
    assert tests
    for test in tests:
        test.globs.update(names)
        report = []
        runner.run(test, out=report.append, clear_globs=False)
        assert not report, "".join(report)


def test_no_examples_are_left_out():
    with_examples = {name for name in MODULES if name != "vtamiq.__main__" and examples(importlib.import_module(name))}
    assert with_examples == WITH_EXAMPLES
