"""Every numbered notebook: how it is committed, and that it runs headless from an empty run folder."""

import ast
import json
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest

from tests.layouts import build_tid2013, noisy
from tests.small import TINY
from vtamiq.images.iqms import CHEAP_IQMS
from vtamiq.lab import pipeline
from vtamiq.lab.pipeline import reproduce
from vtamiq.model.network import VTAMIQ
from vtamiq.plots.style import PAGE
from vtamiq.training.run import Run

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
MAX_PARAMETERS = 12
MAX_STATEMENTS = 12  # more than that is a function that lives in the package

pytestmark = pytest.mark.timeout(1800)  # the fixture below runs all notebooks within the first test's time
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks():
    """An empty parametrisation is skipped without a word; this is not."""
    assert [path.name[:3] for path in NOTEBOOKS[:1]] == ["00_"]
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert len(set(numbers)) == len(numbers)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def parameter_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]


def statements_of(source: str) -> int:
    """Statements that do something, imports left out; one that spans several lines counts once."""
    imports = (ast.Import, ast.ImportFrom)
    return sum(isinstance(node, ast.stmt) and not isinstance(node, imports) for node in ast.walk(ast.parse(source)))


class TestCommitted:
    @each_notebook
    def test_valid_and_of_the_native_kernel(self, path):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert notebook.metadata.kernelspec.name == "python3"
        assert notebook.metadata.kernelspec.language == "python"

    @each_notebook
    def test_begins_with_a_title_and_a_purpose(self, path):
        first = nbformat.read(path, as_version=4).cells[0]
        assert first.cell_type == "markdown"
        title, _, purpose = first.source.strip().partition("\n")
        assert re.fullmatch(r"# \S.+", title)
        if not purpose.strip():
            second = nbformat.read(path, as_version=4).cells[1]
            assert second.cell_type == "markdown"

    @each_notebook
    def test_one_cell_of_flat_parameters(self, path):
        (cell,) = parameter_cells(path)
        statements = ast.parse(cell.source).body
        assert 1 <= len(statements) <= MAX_PARAMETERS
        lines = cell.source.splitlines()
        for statement in statements:
            assert isinstance(statement, ast.Assign), ast.unparse(statement)
            ast.literal_eval(statement.value)  # raises for anything but a literal
            assert statement.lineno == statement.end_lineno
            comment = lines[statement.lineno - 1].encode()[statement.end_col_offset :].decode()
            assert re.fullmatch(r"  # [^=]+", comment), lines[statement.lineno - 1]

    @each_notebook
    def test_papermill_sees_the_same_parameters(self, path):
        (cell,) = parameter_cells(path)
        assigned = {target.id for statement in ast.parse(cell.source).body for target in statement.targets}
        inspected = papermill.inspect_notebook(path)
        assert set(inspected) == assigned
        assert {"preset", "out"} <= assigned
        assert ast.literal_eval(inspected["preset"]["default"]) in pipeline.PRESETS
        assert all(parameter["help"] for parameter in inspected.values())

    @each_notebook
    def test_no_outputs(self, path):
        for cell in code_cells(path):
            assert cell.outputs == []
            assert cell.execution_count is None
        assert "papermill" not in nbformat.read(path, as_version=4).metadata
        assert "widgets" not in nbformat.read(path, as_version=4).metadata

    @each_notebook
    def test_no_machine_paths(self, path):
        text = path.read_text(encoding="utf-8")
        assert str(ROOT) not in text
        assert not re.search(r"(?<![\w.:/])/(home|Users|root|tmp|mnt|media|opt|srv|content)/|\b[A-Z]:\\\\", text)

    @each_notebook
    def test_cells_are_thin(self, path):
        for cell in code_cells(path):
            assert statements_of(cell.source) <= MAX_STATEMENTS, cell.source
            tree = ast.parse(cell.source)
            assert not [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("# only a comment", 0),
        ("import a\nfrom b import (\n    c,\n    d,\n)\nx = f(\n    1,\n    2,\n)", 1),
        ("for i in x:\n    import c\n    y = i\n    # why\n    y += i\nz = 1; show(z)", 5),
    ],
)
def test_statements_of(source, count):
    assert statements_of(source) == count


@pytest.fixture(scope="module", autouse=True)
def text_as_text(tmp_path_factory):
    """Figures are drawn in a style of ours that leaves letters in SVG files as they are."""
    style = tmp_path_factory.mktemp("style") / "text.mplstyle"
    style.write_text("svg.fonttype: none\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VTAMIQ_FIGURE_STYLE", str(style))
        yield


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """All notebooks, run once; the run folder and its summary."""
    out = tmp_path_factory.mktemp("runs")
    return out, reproduce("smoke", out=out, notebooks=ROOT / "notebooks").set_index("notebook")


class TestHeadless:
    @each_notebook
    def test_runs(self, smoke, path):
        row = smoke[1].loc[path.stem]
        assert row["status"] == "done", row["error"]

    @each_notebook
    def test_executed_copy_shows_something(self, smoke, path):
        copy = nbformat.read(smoke[0] / "smoke" / "notebooks" / path.name, as_version=4)
        code = [cell for cell in copy.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code if cell.source.strip())
        assert any(cell.outputs for cell in code)
        for key in ("input_path", "output_path"):
            assert not Path(copy.metadata.papermill[key]).is_absolute()

    def test_second_call_runs_nothing(self, smoke):
        again = reproduce("smoke", out=smoke[0], notebooks=ROOT / "notebooks")
        assert sorted(again["notebook"]) == [path.stem for path in NOTEBOOKS]
        assert list(again["status"]) == ["cached"] * len(NOTEBOOKS)

    def test_figures_are_legible_and_in_the_style_that_is_asked_for(self, smoke):
        """None is wider than a page, no letter below 6 points; the data of each lie beside it."""
        figures = list((smoke[0] / "smoke" / "figures").glob("*.svg"))
        assert len(figures) > 25
        for path in figures:
            svg = path.read_text(encoding="utf-8")
            sizes = re.findall(r"<text[^>]*font(?:-size)?: [^;\"]*?([\d.]+)px", svg)  # but for exponents
            assert min(map(float, sizes)) >= 6, path.name
            assert float(re.search(r'width="([\d.]+)pt"', svg)[1]) <= 1.02 * 72 * PAGE, path.name
            assert path.with_suffix(".csv").exists() or path.with_suffix(".json").exists()

    def test_weak_pretraining_learns_from_other_labels(self, tmp_path):
        """From all metrics, then in the same folder from one: the second training takes the place of the first."""
        shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
        folder = tmp_path / "runs" / "smoke" / "03_weak_pretraining"
        every = [f"rank_{name}" for name in CHEAP_IQMS]
        for labels, heads, name in (("all", every, "consensus of 4 IQMs"), ("gmsd", [], "GMSD alone")):
            summary = reproduce(
                "smoke",
                only=["03"],
                parameters={"epochs": 1, "labels": labels},
                out=tmp_path / "runs",
                notebooks=tmp_path / "notebooks",
            )
            assert list(summary["status"]) == ["done"], summary["error"][0]
            run = Run.load(folder / "run")
            assert sorted(run.stage.auxiliary) == sorted(heads)
            assert ("train_auxiliary" in run.history) == bool(heads)
            assert run.predictions["score_name"].unique().tolist() == [f"synthetic score ({name})"]
            copy = nbformat.read(tmp_path / summary["output"][0], as_version=4)
            assert machine_paths(copy) == []


def machine_paths(notebook: nbformat.NotebookNode) -> list[str]:
    """Lines that name a folder of this machine, wherever they stand; pictures, which are no text, left out."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for kind in [kind for kind in output.get("data", {}) if kind.startswith("image/")]:
                del output["data"][kind]
    text = json.dumps(notebook, indent=0)
    return [line for line in text.splitlines() if re.search(rf"/(tmp|root|home)\b|{re.escape(str(ROOT))}", line)]


def test_machine_paths():
    output = nbformat.v4.new_output("stream", text="held in /tmp/x")
    cell = nbformat.v4.new_code_cell("1", outputs=[output], metadata={"seen": "/home/me"})
    assert len(machine_paths(nbformat.v4.new_notebook(cells=[cell], metadata={"path": str(ROOT / "x")}))) == 3


def test_a_database_of_real_layout_runs_through_notebook_06(tmp_path, monkeypatch):
    """All of TID2013 in its own layout, with small pictures, a model that comes from elsewhere, and no notebook 03."""
    build_tid2013(tmp_path / "data" / "tid2013", image=noisy)
    monkeypatch.setenv("VTAMIQ_DATA", str(tmp_path / "data"))
    VTAMIQ(TINY).save_pretrained(tmp_path / "model")
    parameters = {"databases": "tid2013", "checkpoints": str(tmp_path / "model"), "iqms": "psnr", "bootstrap": 50}
    parameters |= {"repeats": 1, "num_patches": 4}
    options = {"only": ["06"], "out": tmp_path / "runs", "notebooks": ROOT / "notebooks"}
    summary = reproduce("smoke", parameters=parameters, **options)
    assert list(summary["status"]) == ["done"], summary["error"][0]
    folder = tmp_path / "runs" / "smoke" / "06_cross_database"
    results = pd.read_csv(folder / "evaluation.csv").set_index("method")
    assert results["n"].to_dict() == {f"VTAMIQ {tmp_path.name}/model": 3000, "PSNR": 3000}
    assert not results["synthetic"].any()
    assert results.loc["PSNR", "srocc"] > 0.99  # the noise follows the scores
    matrix = pd.read_csv(folder / "cross_database.csv").set_index("method")
    assert matrix.loc["PSNR", "tid2013"] == pytest.approx(results.loc["PSNR", "srocc"])
    published = pd.read_csv(folder / "beside_published.csv").query("metric == 'psnr' and origin == 'published'")
    assert 0.6869 in published["srocc"].tolist()
    assert set(pd.read_csv(folder / "evaluation_by_distortion.csv")["n"]) == {125}
    assert set(pd.read_csv(folder / "evaluation_by_reference.csv")["groups"]) == {25}
    assert len(pd.read_csv(folder / "significance.csv")) == 1
    assert (tmp_path / "runs" / "smoke" / "figures" / "scatter_tid2013.png").is_file()
    assert list(reproduce("smoke", parameters=parameters, **options)["status"]) == ["cached"]


def test_plain_papermill_runs_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    papermill.execute_notebook(
        NOTEBOOKS[1], "out.ipynb", {"preset": "smoke"}, kernel_name="python3", progress_bar=False
    )
    assert {path.name for path in (tmp_path / "runs" / "smoke").iterdir()} == {"01_patch_sampling", "figures"}
