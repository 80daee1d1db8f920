"""Many runs of a chain: the statistics by hand, what is varied, what is kept, and what one failure costs."""

import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from tests.small import TINY, small_table
from vtamiq.caps import CAPS
from vtamiq.training import apart
from vtamiq.training import chain as chain_module
from vtamiq.training import repeats as repeat_module
from vtamiq.training.chain import Chain, Data, FoldSplit, Step, load_data
from vtamiq.training.repeats import RunsFailed, check_many, compare, grid, repeat, run_many, summarise
from vtamiq.training.stage import Optimizer, Stage
from vtamiq.utils.configs import changed
from vtamiq.utils.digests import digest_weights

STAGE = Stage(
    caps=CAPS(num_patches=8), test_patches=8, num_draws=1, epochs=1, batch_size=8, optimizer=Optimizer(lr=1e-3)
)
DATABASE = "table:root=small:higher_better=false"
ONE = Chain(model=TINY, steps=(Step(Data(DATABASE), STAGE),), accelerator="cpu")
BEFORE = Step(Data("table:root=before:higher_better=false", split="all"), replace(STAGE, name="before"))
TWO = replace(ONE, steps=(BEFORE, *ONE.steps))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Databases of other pictures: `before` has the noise of the first five turned upside down."""
    folder = tmp_path_factory.mktemp("root")
    small_table(folder / "small", references=10, levels=2)
    small_table(folder / "before", references=5, levels=2)
    for path in (folder / "before" / "images").iterdir():
        with Image.open(path) as image:
            ImageOps.flip(image).save(path)
    return folder


@pytest.fixture(scope="module")
def done(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("repeat") / "out"
    return run_many(repeat(TWO, 3), out, root=root, progress=False), out


@pytest.fixture
def trained(monkeypatch):
    """Notes the folder of every training that really takes place."""
    folders, fit = [], chain_module.train

    def train(*args, out, **options):
        if not (out / "result.json").is_file():
            folders.append(f"{out.parent.name}/{out.name}")
        return fit(*args, out=out, **options)

    monkeypatch.setattr(chain_module, "train", train)
    return folders


class TestSummary:
    def test_by_hand(self):
        # Mean 5, squared deviations 9 + 1 + 1 + 9 = 20, so s² = 20/3; t of 3 degrees of freedom is 3.182446305.
        table = pd.DataFrame({"srocc": [2.0, 4.0, 6.0, 8.0], "plcc": [1.0, np.nan, 1.0, 1.0], "seed": range(4)})
        summary = summarise(table).set_index("metric")
        assert list(summary.index) == ["srocc", "plcc"]
        std = math.sqrt(20 / 3)
        half = 3.182446305284263 * std / 2
        expected = {
            "n": 4,
            "missing": 0,
            "mean": 5,
            "median": 5,
            "std": std,
            "min": 2,
            "max": 8,
            "low": 5 - half,
            "high": 5 + half,
        }
        assert summary.loc["srocc"].to_dict() == pytest.approx(expected, rel=1e-12)
        assert summary.loc["plcc", ["n", "missing", "mean", "std", "low", "high"]].tolist() == [3, 1, 1, 0, 1, 1]

    def test_groups(self):
        table = pd.DataFrame({"a": [1, 1, 2], "srocc": [0.0, 1.0, 0.5]})
        summary = summarise(table, ["a"])
        assert summary[["a", "mean", "n"]].to_numpy().tolist() == [[1, 0.5, 2], [2, 0.5, 1]]
        # Two runs: s = 1/√2, t of one degree of freedom is 12.7062; half = 12.7062 · (1/√2)/√2.
        assert summary["high"][0] == pytest.approx(0.5 + 12.706204736 / 2, rel=1e-9)
        assert summary.loc[1, ["std", "low", "high"]].isna().all()

    def test_refusals(self):
        with pytest.raises(ValueError, match="there are no runs"):
            summarise(pd.DataFrame())
        with pytest.raises(ValueError, match="no column b"):
            summarise(pd.DataFrame({"srocc": [1.0]}), ["b"])


class TestRepeat:
    def test_every_run_has_its_split_and_starts_alike(self, done, root):
        result, out = done
        assert result.table["run"].tolist() == [0, 1, 2] == result.table["seed"].tolist()
        assert result.table["n"].tolist() == [4] * 3
        database = load_data(ONE.steps[0].data, root)
        digest = digest_weights(chain_module.Run.load(out / "before/00_before").model)
        for k in range(3):
            run = chain_module.Run.load(out / f"run_0{k}" / "00_fine_tuning")
            assert run.record["data"]["test"]["references"] == database.split(seed=k)[2].references
            assert (run.stage.seed, run.record["start"]) == (k, digest)
            test = run.predictions.query("split == 'test'")
            assert result.table["srocc"][k] == pytest.approx(test["q"].corr(test["score"], method="spearman"))

    def test_tables_are_written(self, done):
        result, out = done
        pd.testing.assert_frame_equal(pd.read_csv(out / "runs.csv"), result.table, check_dtype=False)
        pd.testing.assert_frame_equal(pd.read_csv(out / "summary.csv"), result.summary, check_dtype=False)
        srocc = result.summary.set_index("metric").loc["srocc"]
        assert srocc["mean"] == pytest.approx(result.table["srocc"].mean())
        assert (srocc["database"], srocc["n"]) == ("small", 3)

    def test_again_only_what_is_missing_is_trained(self, done, root, trained):
        result, out = done
        pd.testing.assert_frame_equal(run_many(repeat(TWO, 3), out, root=root, progress=False).table, result.table)
        assert trained == []
        assert len(run_many(repeat(TWO, 4), out, root=root, progress=False).table) == 4
        assert trained == ["run_03/00_fine_tuning"]

    def test_one_stage_alone_has_other_first_weights_each_time(self):
        first, second = (run.chain for run in repeat(ONE, 2))
        assert first == ONE
        assert second.seed == 1
        assert [run.chain.seed for run in repeat(TWO, 2)] == [0, 0]

    def test_one_failure_is_named_and_the_others_finish(self, root, tmp_path, trained, monkeypatch):
        fit = chain_module.train

        def train(*args, out, **options):
            if "run_01" in str(out):
                raise OSError("the disk is full")
            return fit(*args, out=out, **options)

        with monkeypatch.context() as patch:
            patch.setattr(chain_module, "train", train)
            with pytest.raises(RunsFailed, match=r"1 of 3 runs failed: run_01 \(OSError: the disk is full\)"):
                run_many(repeat(ONE, 3), tmp_path / "out", root=root, progress=False)
        assert pd.read_csv(tmp_path / "out" / "runs.csv")["run"].tolist() == [0, 2]
        trained.clear()
        assert len(run_many(repeat(ONE, 3), tmp_path / "out", root=root, progress=False).table) == 3
        assert trained == ["run_01/00_fine_tuning"]

    def test_interruption_ends_all(self, root, tmp_path, monkeypatch):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(chain_module, "train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_many(repeat(ONE, 3), tmp_path / "out", root=root, progress=False)

    @pytest.mark.parametrize(
        ("options", "settings", "message"),
        [
            ({"num_runs": 0}, {}, "either num_runs, from 1"),
            ({}, {"steps.0.data.split": "all"}, "nothing is tested by the last stage"),
            ({"workers": 2}, {"devices": 2}, "runs at once have one device each"),
            ({"workers": -1}, {}, "workers must be None or an integer from 0"),
            ({}, {"steps.0.data.database": "table:root=nowhere:higher_better=false"}, "no folder"),
            ({}, {"steps.0.data.ratios": [0.9, 0.05, 0.05]}, "too few for a split"),
        ],
    )
    def test_refusals(self, options, settings, message, root, tmp_path):
        chain = changed(ONE, settings)
        with pytest.raises(ValueError, match=message):
            run_many(repeat(chain, options.pop("num_runs", 10)), tmp_path / "out", root=root, progress=False, **options)
        assert not (tmp_path / "out").exists()

    def test_torchrun_is_refused_for_runs_at_once(self, root, tmp_path, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ValueError, match="without torchrun"):
            run_many(repeat(ONE, 10), tmp_path / "out", workers=2, root=root, progress=False)


class TestProcesses:
    def test_runs_at_once_end_like_runs_in_a_row(self, root, tmp_path):
        """One of them cannot begin, as a file is in its way; the other one finishes."""
        (tmp_path / "out" / "run_01").mkdir(parents=True)
        (tmp_path / "out" / "run_01" / "00_fine_tuning").write_text("in the way")
        with pytest.raises(RunsFailed, match=r"1 of 2 runs failed: run_01 \(.*Error") as error:
            run_many(repeat(ONE, 2), tmp_path / "out", workers=2, root=root, progress=False)
        assert "00_fine_tuning" in str(error.value)
        assert "00_fine_tuning" in (tmp_path / "out" / "run_01" / "log.txt").read_text()
        (tmp_path / "out" / "run_01" / "00_fine_tuning").unlink()
        assert pd.read_csv(tmp_path / "out" / "runs.csv")["run"].tolist() == [0]
        here = run_many(repeat(ONE, 1), tmp_path / "here", root=root, progress=False).table
        assert pd.read_csv(tmp_path / "out/runs.csv")["srocc"][0] == pytest.approx(here["srocc"][0])

    @pytest.fixture
    def stand_in(self, monkeypatch, tmp_path):
        """Processes that do what a script says, in place of runs."""
        code = tmp_path / "code.py"

        class Popen(subprocess.Popen):
            def __init__(self, _, **options):
                super().__init__([sys.executable, str(code)], **options)

        monkeypatch.setattr(apart.subprocess, "Popen", Popen)
        return code

    def run_all(self, out, chains, workers=2, gpus=()):
        return list(repeat_module._run_all(chains, out, Path(), False, None, workers, gpus))

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ("print('fine')", ""),
            ("print('Traceback'); raise ValueError('bad')", "ValueError: bad"),
            ("raise SystemExit(1)", "its process ended with status 1"),
            ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL; is there memory"),
        ],
    )
    def test_what_a_process_says(self, code, message, stand_in, tmp_path):
        stand_in.write_text(code)
        ((_, said),) = self.run_all(tmp_path, {"r": ONE})
        assert message in said
        assert bool(said) == bool(message)

    def test_gpus_are_taken_in_turns(self, stand_in, tmp_path, monkeypatch):
        stand_in.write_text(
            "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ.get('RANK'), flush=True); time.sleep(1)"
        )
        monkeypatch.setenv("RANK", "0")
        for visible, expected in (("", {"3 None", "5 None"}), ("a,b,c,d,e,f", {"d None", "f None"})):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
            out = tmp_path / f"out{visible}"
            self.run_all(out, dict.fromkeys("rs", ONE), gpus=(3, 5))
            assert {(out / name / "log.txt").read_text().strip() for name in "rs"} == expected
        with pytest.raises(ValueError, match="there is no GPU 6"):
            self.run_all(tmp_path / "o", {"r": ONE}, gpus=(6,))

    def test_an_interruption_ends_the_processes(self, stand_in, tmp_path, monkeypatch):
        """What waits is not begun, and what runs ends when its standard input does."""
        stand_in.write_text("import os; print(os.getpid(), flush=True); os.read(0, 1)")
        log = tmp_path / "r" / "log.txt"

        def interrupt_once_it_runs(_):
            while not (log.is_file() and log.read_text().strip()):
                time.sleep(0.01)
            raise KeyboardInterrupt

        monkeypatch.setattr(repeat_module, "as_completed", interrupt_once_it_runs)
        with pytest.raises(KeyboardInterrupt):
            self.run_all(tmp_path, {"r": ONE, "s": ONE}, workers=1)
        with pytest.raises(ProcessLookupError):
            os.kill(int(log.read_text()), 0)
        assert not (tmp_path / "s" / "log.txt").exists()

    @pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
    def test_a_run_ends_with_the_process_that_started_it(self):
        """Loaders, forked meanwhile, close their standard input first, which must not wait for who reads it."""
        code = """
import multiprocessing, threading, time
from vtamiq.training.apart import _end_with_parent
threading.Thread(target=_end_with_parent, daemon=True).start()
time.sleep(0.3)
worker = multiprocessing.get_context("fork").Process(target=int)
worker.start()
worker.join(10)
print(worker.exitcode, flush=True)
time.sleep(60)
"""
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "0\n"
            assert process.poll() is None
            process.stdin.close()  # as the system does for a process that is gone
            assert process.wait(timeout=30) == 1


class TestFolds:
    def test_every_content_is_tested_once(self, root, tmp_path):
        result = run_many(repeat(ONE, folds=2), tmp_path / "out", root=root, progress=False)
        assert result.table["fold"].tolist() == [0, 1]
        tested = [
            reference
            for k in range(2)
            for reference in chain_module.Run.load(tmp_path / f"out/fold_0{k}/00_fine_tuning").record["data"]["test"][
                "references"
            ]
        ]
        assert sorted(tested) == [f"r{k}" for k in range(10)]
        assert result.table[["train", "val", "test"]].to_numpy().tolist() == [[8, 2, 10]] * 2
        with pytest.raises(ValueError, match="folds, from 2"):
            repeat(ONE, folds=1)


class TestGrid:
    def test_every_combination(self, root, tmp_path, trained):
        settings = {"steps.-1.stage.optimizer.lr": [1e-3, 2e-3], "steps.0.stage.epochs": [1, 2]}
        result = run_many(grid(TWO, settings), tmp_path / "out", root=root, progress=False)
        assert result.table["folder"].tolist() == [
            f"lr={rate},epochs={epochs}"
            for rate in (0.001, 0.002) for epochs in (1, 2)
        ]  # fmt: skip
        assert len([folder for folder in trained if "00_before" in folder]) == 2  # one for each number of epochs
        assert len(trained) == 6
        assert result.table[["lr", "epochs"]].to_numpy().tolist() == [[1e-3, 1], [1e-3, 2], [2e-3, 1], [2e-3, 2]]
        srocc = result.summary.query("metric == 'srocc'")
        assert srocc["mean"].tolist() == result.table["srocc"].tolist()
        runs = [
            chain_module.Run.load(tmp_path / "out" / folder / "00_fine_tuning") for folder in result.table["folder"]
        ]
        assert [run.stage.optimizer.lr for run in runs] == [1e-3, 1e-3, 2e-3, 2e-3]
        assert len({run.record["start"] for run in runs}) == 2

    def test_with_repeats(self):
        settings = {"model.num_groups": [0, 1], "steps.-1.data.split.ratios": [(0.6, 0.2, 0.2)]}
        plan = grid(ONE, settings, num_runs=2)
        assert [run.folder for run in plan] == [
            f"num_groups={groups},ratios=0.6-0.2-0.2/run_0{k}" for groups in (0, 1) for k in (0, 1)
        ]
        assert plan[3].tells == {"num_groups": 1, "ratios": "0.6-0.2-0.2", "run": 1}
        assert plan[3].chain == repeat(changed(ONE, {"model.num_groups": 1}), 2)[1].chain
        plan = grid(ONE, {"model.num_groups": [0]}, folds=3)
        assert [run.folder for run in plan] == [f"num_groups=0/fold_0{k}" for k in range(3)]
        assert plan[2].chain.steps[0].data == replace(ONE.steps[0].data, split=FoldSplit(folds=3, fold=2))

    def test_names_of_settings(self):
        names = ["steps.0.stage.epochs", "steps.1.stage.epochs", "steps.1.data.seed", "model.width"]
        # `seed` is a column of the results.
        assert repeat_module._short_names(names) == ["0.stage.epochs", "1.stage.epochs", "data.seed", "width"]
        assert repeat_module._text([1, "a/b"]) == "1-a_b"

    @pytest.mark.parametrize(
        ("settings", "options", "message"),
        [
            ({}, {}, "at least one setting"),
            ({"seed": []}, {}, "seed: give the values to try as a list"),
            ({"seed": "12"}, {}, "as a list, got '12'"),
            ({"sed": [1]}, {}, "Chain has no field `sed`; did you mean `seed`"),
            ({"seed": [1, 1]}, {}, "look alike as names of folders: "),
            ({"seed": [1]}, {"num_runs": 2, "folds": 2}, "either num_runs, from 1, or folds"),
            ({"seed": [1]}, {"folds": 1}, "folds, from 2"),
        ],
    )
    def test_refusals(self, settings, options, message, root, tmp_path):
        with pytest.raises(ValueError, match=message):
            run_many(grid(ONE, settings, **options), tmp_path / "out", root=root)
        assert not (tmp_path / "out").exists()


class TestCheck:
    def test_every_run_is_checked(self, root):
        """Other splits of other runs, the stage before them in each, and nothing twice."""
        table = check_many(repeat(TWO, 2), root=root)
        assert table[["run", "folder", "train", "test"]].to_numpy().tolist() == [
            [f"run_0{k}", *row] for k in range(2) for row in (["00_before", 8, 0], ["01_fine_tuning", 12, 4])
        ]
        table = check_many(repeat(ONE, folds=2), root=root)
        assert table[["run", "train", "val", "test"]].to_numpy().tolist() == [
            [f"fold_0{k}", 8, 2, 10] for k in range(2)
        ]
        settings = {"steps.0.data.ratios": [[0.6, 0.2, 0.2], [0.4, 0.2, 0.4]], "steps.0.stage.epochs": [1]}
        table = check_many(grid(ONE, settings), root=root)
        assert table[["run", "train", "test"]].to_numpy().tolist() == [
            ["ratios=0.6-0.2-0.2,epochs=1", 12, 4],
            ["ratios=0.4-0.2-0.4,epochs=1", 8, 8],
        ]
        alike = check_many(repeat(changed(ONE, {"steps.0.data.ratios": [0.4, 0.2, 0.4]}), folds=2), root=root)
        assert alike["test"].tolist() == [10, 10]  # folds take the place of a random split and its ratios
        assert len(check_many(grid(ONE, {"steps.0.stage.loss.mae_weight": [0, 0.0]}), root=root)) == 1

    def test_what_stops_one_run_is_named(self, root):
        settings = {"steps.0.stage.distorted_per_reference": [1, 2, 4]}
        with pytest.raises(ValueError, match=r"^distorted_per_reference=4: steps\[0\] \(fine_tuning\): .*images/r"):
            check_many(grid(ONE, settings), root=root)
        with pytest.raises(ValueError, match=r"^fold_00: steps\[0\] \(fine_tuning\): .*folds"):
            check_many(repeat(ONE, folds=11), root=root)
        with pytest.raises(ValueError, match="look alike as names of folders"):
            check_many(grid(ONE, {"seed": [1, 1]}), root=root)


class TestCompare:
    def test_named_variants(self, root, tmp_path, trained):
        variants = {"as it is": {}, "no DiffNet": {"model.num_groups": 0, "steps.-1.stage.loss.mae_weight": 0.5}}
        out = tmp_path / "out"
        runs = run_many(compare(ONE, variants), out, root=root, progress=False)
        assert runs.table["variant"].tolist() == list(variants)
        assert runs.table["folder"].tolist() == ["as_it_is", "no_DiffNet"]
        kept = Chain.load(out / "no_DiffNet" / "chain.yaml")
        assert kept == changed(ONE, variants["no DiffNet"])
        assert Chain.load(out / "as_it_is" / "chain.yaml") == ONE
        assert runs.summary["variant"].unique().tolist() == list(variants)
        alone = run_many(grid(ONE, {"model.num_groups": [1]}), tmp_path / "grid", root=root, progress=False)
        assert runs.table.loc[0, "srocc"] == alone.table.loc[0, "srocc"]
        trained.clear()
        run_many(compare(ONE, variants | {"1 register": {"model.num_registers": 1}}), out, root=root, progress=False)
        assert trained == ["1_register/00_fine_tuning"]

    @pytest.mark.parametrize(
        ("variants", "options", "message"),
        [
            ({}, {}, "at least one variant"),
            ({"a": {"sed": 1}}, {}, "variant 'a': sed: Chain has no field `sed`; did you mean `seed`"),
            ({"a b": {}, "a_b": {"seed": 1}}, {}, "look alike as names of folders: a_b"),
            ({"a": {}}, {"num_runs": 2, "folds": 2}, "either num_runs, from 1, or folds"),
        ],
    )
    def test_refusals(self, variants, options, message, root, tmp_path):
        with pytest.raises(ValueError, match=message):
            run_many(compare(ONE, variants, **options), tmp_path / "out", root=root)
        assert not (tmp_path / "out").exists()
