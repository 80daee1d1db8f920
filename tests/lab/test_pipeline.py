"""`reproduce` on tiny notebooks made here: order, parameters, resume, failures, and what the copies carry."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from vtamiq.lab import pipeline, presets
from vtamiq.lab.pipeline import PRESETS, find_notebooks, reproduce, select

KERNELSPEC = {"name": "python3", "language": "python", "display_name": "Python 3"}
PARAMETERS = 'preset = "demo"  # smoke, demo or full\nout = "runs/demo"  # where results go'
NOTE = "from pathlib import Path\nwith Path('order.txt').open('a') as log:\n    log.write(NAME + '\\n')"


def write_notebook(
    folder: Path,
    name: str,
    *code: str,
    parameters: str = PARAMETERS,
    needs: tuple[str, ...] = (),
    uses: tuple[str, ...] = (),
) -> Path:
    others = {"needs": list(needs), "uses": list(uses)}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": KERNELSPEC, "vtamiq": others})
    notebook.cells = [
        nbformat.v4.new_markdown_cell(f"# About {name}"),
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *[nbformat.v4.new_code_cell(source) for source in (f"NAME = {name!r}\n{NOTE}", *code)],
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def house(tmp_path, monkeypatch):
    """An empty repository: notebooks go to `notebooks`, the notebooks themselves note in `order.txt` that they ran."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(house: Path) -> list[str]:
    """Names of the notebooks that ran since the last call."""
    log = house / "order.txt"
    names = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def error_of_ours(caplog: pytest.LogCaptureFixture) -> str:
    records = caplog.get_records("call")
    return next(r.getMessage() for r in records if r.levelno == logging.ERROR and r.name == "vtamiq.lab.pipeline")


def status(summary: pd.DataFrame) -> dict[str, str]:
    return dict(zip(summary["notebook"], summary["status"], strict=True))


class TestReading:
    def test_order_titles_parameters_and_needs(self, house):
        write_notebook(house / "notebooks", "02_b", needs=("00_z",))
        write_notebook(house / "notebooks", "00_z", parameters=PARAMETERS + "\nrate = 1e-3  # learning rate")
        write_notebook(house / "notebooks", "10_a")
        (house / "notebooks" / "notes.ipynb").write_text("not numbered, not read")
        first, second, third = find_notebooks("notebooks")
        assert [n.name for n in (first, second, third)] == ["00_z", "02_b", "10_a"]
        assert first.title == "About 00_z"
        assert first.parameters["rate"] == pipeline.Parameter("rate", 1e-3, "learning rate")
        assert second.needs == ("00_z",)

    def test_no_notebooks(self, house):
        with pytest.raises(
            FileNotFoundError, match=r"no numbered notebooks in elsewhere: run from the repository's root$"
        ):
            find_notebooks("elsewhere")

    def test_a_notebook_runs_after_what_it_needs(self, house):
        write_notebook(house / "notebooks", "00_a", needs=("03_train",))
        for name in ("01_b", "03_train", "04_c"):
            write_notebook(house / "notebooks", name)
        assert [n.name for n in find_notebooks("notebooks")] == ["01_b", "03_train", "00_a", "04_c"]

    def test_need_that_does_not_exist(self, house):
        write_notebook(house / "notebooks", "00_a", needs=("07_other",))
        with pytest.raises(ValueError, match="00_a needs 07_other, which is no notebook of notebooks"):
            find_notebooks("notebooks")

    def test_needs_in_a_circle(self, house):
        write_notebook(house / "notebooks", "00_a", needs=("01_b",))
        write_notebook(house / "notebooks", "01_b", needs=("00_a",))
        with pytest.raises(ValueError, match="00_a, 01_b need each other in a circle"):
            find_notebooks("notebooks")

    def test_need_with_a_typing_error_gets_a_hint(self, house):
        write_notebook(house / "notebooks", "01_train")
        write_notebook(house / "notebooks", "02_test", needs=("01_trian",))
        with pytest.raises(ValueError, match="did you mean `01_train`"):
            find_notebooks("notebooks")

    def test_default_must_be_a_literal(self, house):
        write_notebook(house / "notebooks", "00_a", parameters="steps = len('abc')  # not flat")
        with pytest.raises(ValueError, match=r"00_a.ipynb: parameter steps is not a plain literal: len\('abc'\)"):
            find_notebooks("notebooks")

    def test_kernelspec_is_needed(self, house):
        path = write_notebook(house / "notebooks", "00_a")
        content = nbformat.read(path, as_version=4)
        del content.metadata["kernelspec"]
        nbformat.write(content, path)
        with pytest.raises(ValueError, match=r"00_a.ipynb: no kernelspec"):
            find_notebooks("notebooks")

    @pytest.mark.parametrize(
        "content", [b"# code", b"", b"3", b"[]", b"{}", b'{"nbformat": 4, "cells": 3}', b'{"nbformat": 4}', b"\xff"]
    )
    def test_file_that_is_no_notebook(self, house, content):
        write_notebook(house / "notebooks", "00_a")
        (house / "notebooks" / "01_b.ipynb").write_bytes(content)
        with pytest.raises(ValueError, match=r"^01_b.ipynb: not a notebook \(.+\)$"):
            find_notebooks("notebooks")


class TestSelect:
    @pytest.fixture
    def notebooks(self, house):
        for name in ("00_quick", "03_train", "06_cross"):
            write_notebook(house / "notebooks", name)
        return find_notebooks("notebooks")

    @pytest.mark.parametrize(
        ("only", "expected"),
        [
            (None, ["00_quick", "03_train", "06_cross"]),
            (["06", "03_train"], ["03_train", "06_cross"]),
            ([6, 0], ["00_quick", "06_cross"]),
            ("3", ["03_train"]),
            (["03_train.ipynb", "03"], ["03_train"]),
        ],
    )
    def test_by_number_or_name_in_their_own_order(self, notebooks, only, expected):
        assert [notebook.name for notebook in select(notebooks, only)] == expected

    @pytest.mark.parametrize(
        ("wrong", "message"), [("3_train", "did you mean `03_train`"), ("07", "no notebook '07'; there are 00_quick")]
    )
    def test_unknown(self, notebooks, wrong, message):
        with pytest.raises(ValueError, match=message):
            select(notebooks, [wrong])


class TestParameters:
    @pytest.mark.parametrize(("value", "default", "expected"), [(2, 0.5, 2.0), (5, 3, 5)])
    def test_as_declared(self, value, default, expected):
        result = pipeline._as_declared(value, default, "00_a: x")
        assert result == expected
        assert type(result) is type(expected)

    @pytest.mark.parametrize(("value", "default"), [(0.5, 3), (True, 3), (1, True), (3, "text"), (None, 1), ("x", 0.5)])
    def test_wrong_type(self, house, value, default):
        write_notebook(house / "notebooks", "00_a", parameters=f"size = {default!r}  # of something")
        with pytest.raises(ValueError, match=f"00_a: size expects {type(default).__name__} such as {default!r}"):
            reproduce(parameters={"size": value})
        assert ran(house) == []

    def test_unknown_name_gets_a_hint_and_nothing_runs(self, house):
        write_notebook(house / "notebooks", "00_a", parameters=PARAMETERS + "\npatches = 8  # number")
        with pytest.raises(ValueError, match="no selected notebook has a parameter 'pathces'; did you mean `patches`"):
            reproduce(parameters={"pathces": 4})
        assert ran(house) == []

    def test_known_only_to_a_notebook_that_is_not_selected(self, house):
        write_notebook(house / "notebooks", "00_a")
        write_notebook(house / "notebooks", "01_b", parameters=PARAMETERS + "\npatches = 8  # number")
        with pytest.raises(ValueError, match="no selected notebook has a parameter 'patches'; there are none"):
            reproduce(only=["00"], parameters={"patches": 4})

    @pytest.mark.parametrize("name", ["preset", "out"])
    def test_preset_and_out_have_their_own_argument(self, house, name):
        write_notebook(house / "notebooks", "00_a")
        with pytest.raises(ValueError, match=f"{name} is not a free parameter"):
            reproduce(parameters={name: "x"})

    def test_presets_are_those_of_the_notebooks(self):
        assert tuple(presets.PRESETS) == PRESETS

    def test_unknown_preset(self, house):
        with pytest.raises(ValueError, match="no preset 'dmeo'; did you mean `demo`"):
            reproduce(preset="dmeo")


WRITE = """
import json, os, sys
record = {"preset": preset, "out": out, "python": sys.executable, "folder": os.getcwd(), "extra": globals().get("extra")}
Path(NAME + ".json").write_text(json.dumps(record))
"""


class TestRunning:
    def test_parameters_copies_summary_and_resume(self, house, monkeypatch):
        folder = house / "notebooks"
        plain = write_notebook(folder, "00_plain", WRITE)
        write_notebook(folder, "01_extra", WRITE, parameters=PARAMETERS + "\nextra = 0.5  # a number")
        write_notebook(folder, "02_needs", needs=("00_plain",))
        foreign = house / "jupyter" / "kernels" / "python3"  # a user's kernel of the same name must not be taken
        foreign.mkdir(parents=True)
        (foreign / "kernel.json").write_text(json.dumps(KERNELSPEC | {"argv": ["no-such-python", "{connection_file}"]}))
        monkeypatch.setenv("JUPYTER_PATH", str(house / "jupyter"))

        summary = reproduce("smoke", parameters={"extra": 2}, out="runs")
        assert ran(house) == ["00_plain", "01_extra", "02_needs"]
        assert status(summary) == dict.fromkeys(("00_plain", "01_extra", "02_needs"), "done")
        assert list(summary["output"]) == [f"runs/smoke/notebooks/{name}.ipynb" for name in summary["notebook"]]
        assert (summary["seconds"] > 0).all()
        assert (summary["error"] == "").all()
        assert sorted(p.name for p in (house / "runs" / "smoke" / "notebooks").iterdir()) == sorted(
            f"{name}.{end}" for name in summary["notebook"] for end in ("ipynb", "stamp.json")
        )
        stored = pd.read_csv(house / "runs" / "smoke" / "summary.csv", keep_default_na=False)
        pd.testing.assert_frame_equal(stored, summary)

        # what the notebooks saw: only declared parameters, this interpreter, the folder that holds `notebooks`
        extra = json.loads((house / "01_extra.json").read_text())
        common = {"preset": "smoke", "out": "runs/smoke", "python": sys.executable, "folder": str(house.resolve())}
        assert extra == common | {"extra": 2.0}
        assert json.loads((house / "00_plain.json").read_text()) == common | {"extra": None}

        # executed copies are complete and name no path of this machine
        for name in summary["notebook"]:
            path = house / "runs" / "smoke" / "notebooks" / f"{name}.ipynb"
            copy = nbformat.read(path, as_version=4)
            assert all(cell.execution_count for cell in copy.cells if cell.cell_type == "code")
            assert copy.metadata.papermill.input_path == f"notebooks/{name}.ipynb"
            assert copy.metadata.papermill.output_path == f"runs/smoke/notebooks/{name}.ipynb"
            for secret in (str(house), str(house.resolve()), sys.prefix, str(Path.home()) + os.sep):
                assert secret not in path.read_text(encoding="utf-8")

        # the same call again runs nothing
        again = reproduce("smoke", parameters={"extra": 2}, out="runs")
        assert ran(house) == []
        assert set(again["status"]) == {"cached"}
        assert list(again["seconds"]) == list(summary["seconds"])

        # another value reruns only the notebook that declares it, changed prose reruns nothing
        content = nbformat.read(plain, as_version=4)
        content.cells[0].source = "# Another title"
        nbformat.write(content, plain)
        assert status(reproduce("smoke", parameters={"extra": 3}))["00_plain"] == "cached"
        assert ran(house) == ["01_extra"]

        # changed code reruns the notebook and the one that needs it
        content.cells[-1].source += "\nprint('changed')"
        nbformat.write(content, plain)
        reproduce("smoke", parameters={"extra": 3})
        assert ran(house) == ["00_plain", "02_needs"]

        # a copy that is gone is made again, `force` and `only` do what they say, a changed package reruns
        (house / "runs" / "smoke" / "notebooks" / "01_extra.ipynb").unlink()
        assert status(reproduce("smoke", only=["00"], force=True)) == {"00_plain": "done"}
        assert ran(house) == ["00_plain"]
        reproduce("smoke", parameters={"extra": 3})
        assert ran(house) == ["01_extra", "02_needs"]  # which reads what was made anew
        monkeypatch.setattr(pipeline, "COMPUTES", 0)
        assert status(reproduce("smoke", only=["00"])) == {"00_plain": "done"}

    def test_failure_is_shown_and_stops_only_its_dependants(self, house, caplog):
        folder = house / "notebooks"
        broken = write_notebook(folder, "00_broken", "def divide():\n    return 1 / 0", "divide()", "print('never')")
        write_notebook(folder, "01_needs", needs=("00_broken",))
        write_notebook(folder, "02_needs_that", needs=("01_needs",))
        write_notebook(folder, "03_independent")
        with caplog.at_level(logging.INFO, logger="vtamiq"):
            summary = reproduce("smoke")
        assert ran(house) == ["00_broken", "03_independent"]
        assert list(summary["status"]) == ["failed", "skipped", "skipped", "done"]
        assert list(summary["error"]) == [
            "ZeroDivisionError: division by zero",
            "needs 00_broken (failed)",
            "needs 01_needs (skipped)",
            "",
        ]
        assert list(summary["output"])[:2] == ["runs/smoke/notebooks/00_broken.failed.ipynb", ""]
        assert (house / summary["output"][0]).exists()
        assert not (house / "runs" / "smoke" / "notebooks" / "00_broken.ipynb").exists()
        shown = next(record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
        assert "00_broken failed in cell [5]:\n" in shown
        assert "\n    divide()\n" in shown
        assert "return 1 / 0" in shown
        assert "ZeroDivisionError: division by zero" in shown
        assert "\x1b" not in shown

        # mended, only what failed or was skipped runs
        content = nbformat.read(broken, as_version=4)
        content.cells[3].source = "def divide():\n    return 1"
        nbformat.write(content, broken)
        assert list(reproduce("smoke")["status"]) == ["done", "done", "done", "cached"]
        assert ran(house) == ["00_broken", "01_needs", "02_needs_that"]
        assert not list(house.rglob("*.failed.ipynb"))

    def test_only_does_not_run_what_is_needed(self, house):
        write_notebook(house / "notebooks", "00_first")
        write_notebook(house / "notebooks", "01_needs", needs=("00_first",))
        summary = reproduce("smoke", only=["01"])
        assert ran(house) == []
        assert summary.loc[0, ["status", "error"]].tolist() == ["skipped", "needs 00_first (not run yet)"]

    def test_what_a_notebook_uses_may_be_absent_but_not_fail(self, house):
        folder = house / "notebooks"
        write_notebook(folder, "00_uses", uses=("01_tuning",))
        tuning = write_notebook(folder, "01_tuning")
        assert list(reproduce("smoke", only=["00"])["status"]) == ["done"]  # without it
        assert ran(house) == ["00_uses"]
        assert list(reproduce("smoke")["status"]) == ["done", "done"]  # again, with what it left
        assert ran(house) == ["01_tuning", "00_uses"]
        assert list(reproduce("smoke")["status"]) == ["cached", "cached"]
        content = nbformat.read(tuning, as_version=4)
        content.cells.append(nbformat.v4.new_code_cell("1 / 0"))
        nbformat.write(content, tuning)
        summary = reproduce("smoke")
        assert list(summary["status"]) == ["failed", "skipped"]
        assert summary["error"].iloc[1] == "needs 01_tuning (failed)"
        assert ran(house) == ["01_tuning"]

    def test_dead_kernel_is_a_failure_and_its_cell_is_shown(self, house, caplog):
        write_notebook(house / "notebooks", "00_dies", "import os\nos._exit(9)", "print('never')")
        write_notebook(house / "notebooks", "01_lives")
        summary = reproduce("smoke")
        assert list(summary["status"]) == ["failed", "done"]
        assert "died" in summary["error"][0]
        shown = error_of_ours(caplog)
        assert shown.startswith("00_dies failed in cell [4]:\n    import os\n    os._exit(9)\n")
        assert "never" not in shown
        assert "often run out of memory" in shown

    def test_kernel_that_does_not_start(self, house, caplog, monkeypatch):
        write_notebook(house / "notebooks", "00_a")
        nothing = [sys.executable, "-c", "raise SystemExit(1)"]
        monkeypatch.setattr(pipeline._ThisPython, "format_kernel_cmd", lambda *_, **__: nothing)
        assert list(reproduce("smoke")["status"]) == ["failed"]
        shown = error_of_ours(caplog)
        assert shown.startswith("00_a failed:\n    Kernel died")

    def test_run_folder_that_cannot_be_made(self, house):
        write_notebook(house / "notebooks", "00_a")
        (house / "README.md").touch()
        with pytest.raises(NotADirectoryError):
            reproduce("smoke", out="README.md")
        assert ran(house) == []

    @pytest.mark.skipif(os.name == "nt", reason="no such signals to another process")
    def test_interruption_keeps_what_is_finished(self, house):
        write_notebook(house / "notebooks", "00_quick")
        slow = "import os, time\nPath('waiting.tmp').write_text(str(os.getpid()))\nos.rename('waiting.tmp', 'waiting')"
        write_notebook(house / "notebooks", "01_slow", slow + "\ntime.sleep(300)")
        command = [sys.executable, "-m", "vtamiq", "reproduce", "--preset", "smoke", "--force"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            while not (house / "waiting").exists():
                assert process.poll() is None, process.communicate()
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.1)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 143
        assert f"to go on: {sys.executable} -m vtamiq reproduce --preset smoke\n" in errors
        assert "Traceback" not in errors
        summary = pd.read_csv(house / "runs" / "smoke" / "summary.csv")
        assert status(summary) == {"00_quick": "done", "01_slow": "interrupted"}
        assert {p.name for p in (house / "runs" / "smoke" / "notebooks").iterdir()} == {
            "00_quick.ipynb",
            "00_quick.stamp.json",
        }
        with pytest.raises(ProcessLookupError):
            os.kill(int((house / "waiting").read_text()), 0)  # the kernel is gone as well


class TestStamps:
    @pytest.fixture
    def run(self, house):
        run = pipeline.RunFolder(path=house / "runs" / "smoke", root=house)
        run.copy("00_a").parent.mkdir(parents=True)
        return run

    def test_damaged_stamp_counts_as_none(self, run):
        run.copy("00_a").touch()
        for damaged in ('{"digest": "x"', "{}", "[]", '{"wrote": 3}', '{"wrote": [' + 100_000 * "[", "\x00\x00"):
            run.stamp("00_a").write_text(damaged)
            assert pipeline._read_stamp(run, "00_a") is None
        run.stamp("00_a").write_text('{"digest": "x", "wrote": []}')
        assert pipeline._read_stamp(run, "00_a") == {"digest": "x", "wrote": []}

    def test_digest_depends_on_installed_versions(self, run, house, monkeypatch):
        notebook = pipeline._read_notebook(write_notebook(house / "notebooks", "00_a"))
        before = pipeline._made_from(notebook, {}, run)
        assert pipeline._made_from(notebook, {}, run) == before
        monkeypatch.setattr(pipeline, "version", lambda name: "0.0.1")
        assert pipeline._made_from(notebook, {}, run) != before

    def test_figures_in_another_style_or_format_are_drawn_again(self, run, house, monkeypatch):
        draw = "from vtamiq import plots\nfrom matplotlib.figure import Figure\nplots.save_figure(Figure(), out, 'a')"
        notebook = pipeline._read_notebook(write_notebook(house / "notebooks", "00_a", draw))
        digests = [pipeline._made_from(notebook, {}, run)]
        monkeypatch.setenv("VTAMIQ_FIGURE_FORMATS", "png pdf")
        assert status(reproduce("smoke")) == {"00_a": "done"}
        assert {path.suffix for path in (house / "runs" / "smoke").glob("a.*")} == {".png", ".pdf"}
        digests.append(pipeline._made_from(notebook, {}, run))
        monkeypatch.setenv("VTAMIQ_FIGURE_STYLE", str(house / "big.mplstyle"))
        for size in (12, 13):
            (house / "big.mplstyle").write_text(f"font.size: {size}\n")
            digests.append(pipeline._made_from(notebook, {}, run))
        assert len(set(digests)) == 4

    def test_versions_are_of_what_is_always_required(self):
        assert {"torch", "timm", "scikit-image", "pyyaml"} <= pipeline._versions().keys()
        assert "pytest" not in pipeline._versions()  # an extra

    def test_results_are_those_of_its_folder_and_the_figures_that_changed(self, house):
        """A training run that was loaded counts, also where none of its files has changed; hidden files do not."""
        folder = house / "runs" / "smoke" / "00_a"
        for path in ("run/model/config.json", ".lock", "run/.x.tmp", "../figures/old.svg"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
        write = "Path(out, NAME, 'table.csv').touch()\nPath(out, 'figures', 'a.svg').touch()\nPath('figures').mkdir()"
        write_notebook(house / "notebooks", "00_a", write + "\nPath('figures', 'a.csv').touch()")
        reproduce("smoke")
        stamp = json.loads((house / "runs/smoke/notebooks/00_a.stamp.json").read_text())
        own = [f"runs/smoke/{path}" for path in ("00_a/run/model/config.json", "00_a/table.csv", "figures/a.svg")]
        assert stamp["wrote"] == ["figures/a.csv", *own]

    def test_lost_results_are_made_again(self, house):
        write = "Path(out, NAME).mkdir(exist_ok=True)\nPath(out, NAME, 'table.csv').touch()"
        write_notebook(house / "notebooks", "00_table", write)
        draw = "Path('figures').mkdir(exist_ok=True)\nPath('figures', 'a.svg').touch()"
        write_notebook(house / "notebooks", "01_figure", draw, needs=("00_table",))
        write_notebook(house / "notebooks", "02_neither")
        reproduce("smoke")
        ran(house)
        wrote = json.loads((house / "runs/smoke/notebooks/01_figure.stamp.json").read_text())["wrote"]
        assert wrote == ["figures/a.svg"]
        (house / "figures" / "a.svg").unlink()
        assert list(reproduce("smoke")["status"]) == ["cached", "done", "cached"]
        assert (house / "figures" / "a.svg").exists()
        (house / "runs" / "smoke" / "00_table" / "table.csv").unlink()
        summary = reproduce("smoke", only=["01"])
        assert list(summary["error"]) == ["needs 00_table (results are gone)"]
        ran(house)
        assert list(reproduce("smoke")["status"]) == ["done", "done", "cached"]
        assert ran(house) == ["00_table", "01_figure"]
