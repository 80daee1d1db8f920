"""The command line, in process: what is printed, the exit status, and which errors are one line."""

import io
import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import vtamiq
from tests.small import TINY, small_table
from vtamiq import __version__
from vtamiq.__main__ import main
from vtamiq.caps import CAPS, caps_for
from vtamiq.databases.loading import load_database
from vtamiq.databases.synthetic import MANIFEST
from vtamiq.lab import pipeline
from vtamiq.model.config import VTAMIQConfig
from vtamiq.model.inference import fingerprint
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring import scores as scoring
from vtamiq.training import chain, repeats
from vtamiq.training.chain import Chain, Data, Step
from vtamiq.training.stage import Optimizer, Stage
from vtamiq.utils.configs import changed


@pytest.fixture(autouse=True)
def _restore_logging():
    loggers = [logging.getLogger(name) for name in (None, "vtamiq", "papermill", "asyncio")]
    before = [(logger, list(logger.handlers), logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    config = VTAMIQConfig(
        backbone="vit_tiny_patch16_384",
        width=32,
        num_heads=2,
        num_blocks=1,
        num_registers=0,
        num_groups=1,
        blocks_per_group=1,
        reduction=4,
        zero_anchor=True,
    )
    VTAMIQ(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    noisy = np.clip(reference + rng.normal(0, 30, reference.shape), 0, 255).astype(np.uint8)
    for name, image in (("reference", reference), ("noisy", noisy), ("cropped", reference[:32])):
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


class TestParser:
    def test_version(self, capsys):
        with pytest.raises(SystemExit) as end:
            main(["--version"])
        assert end.value.code == 0
        assert capsys.readouterr().out == f"vtamiq {__version__}\n"

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            ([], "required"),
            (["skore"], "invalid choice"),
            (["score", "one.png"], "DIST"),
            (["score", "a.png", "b.png", "--repeats", "0"], "must be at least 1, got 0"),
            (["score", "a.png", "b.png", "--patches", "x"], "--patches: expected a whole number, at least 1, got 'x'"),
            (["reproduce", "--forc"], "unrecognized arguments: --forc"),
        ],
    )
    def test_refuses(self, argv, message, capsys):
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == 2
        assert message in capsys.readouterr().err


class TestScore:
    def test_prints_the_score(self, images, model, capsys):
        pair = [str(images / "reference.png"), str(images / "noisy.png")]
        assert main(["score", *pair, "--model", str(model), "--patches", "8", "--seed", "3"]) == 0
        network = VTAMIQ.from_pretrained(model)
        expected = scoring.score(*pair, model=network, seed=3, caps=caps_for(network, num_patches=8))
        assert capsys.readouterr().out == f"{expected:.4f}\n"

    def test_fast_changes_rounding_only(self, images, model, capsys, monkeypatch):
        monkeypatch.setattr("vtamiq.model.accelerate._worth_it", lambda *shape: torch.backends.mkldnn.is_available())
        optimised = []
        original = VTAMIQ.optimize_for_inference
        monkeypatch.setattr(VTAMIQ, "optimize_for_inference", lambda model: optimised.append(original(model)) or model)
        pair = [str(images / "reference.png"), str(images / "noisy.png")]
        scores = []
        for extra in ([], ["--fast"]):
            assert main(["score", *pair, "--model", str(model), "--device", "cpu", "--json", *extra]) == 0
            scores.append(json.loads(capsys.readouterr().out)["q"])
        assert len(optimised) == 1
        assert abs(scores[0] - scores[1]) < 1e-5

    def test_perfect_copy_scores_zero(self, images, model, capsys):
        reference = str(images / "reference.png")
        assert main(["score", reference, reference, "--model", str(model), "--patches", "8"]) == 0
        assert float(capsys.readouterr().out) == 0

    def test_json_says_what_the_score_depends_on(self, images, model, capsys):
        pair = [str(images / "reference.png"), str(images / "noisy.png")]
        options = ["--model", str(model), "--patches", "8", "--repeats", "3", "--json"]
        assert main(["score", *pair, *options]) == 0
        result = json.loads(capsys.readouterr().out)
        network = VTAMIQ.from_pretrained(model)
        q, error = scoring.score(
            *pair, model=network, repeats=3, caps=caps_for(network, num_patches=8), return_std=True
        )
        assert result == {
            "reference": pair[0],
            "distorted": pair[1],
            "q": pytest.approx(q),
            "standard_error": pytest.approx(error),
            "lower_better": True,
            "model": str(model),
            "weights": fingerprint(network),
            "num_patches": 8,
            "repeats": 3,
            "seed": 0,
            "precision": "float32",
            "background": [255, 255, 255],
        }

    def test_json_of_one_draw_has_no_standard_error(self, images, model, capsys):
        reference = str(images / "reference.png")
        main(["score", reference, reference, "--model", str(model), "--json"])
        result = json.loads(capsys.readouterr().out)
        assert result["standard_error"] is None
        assert result["num_patches"] == 256

    def test_repeats_print_the_standard_error(self, images, model, capsys):
        pair = [str(images / "reference.png"), str(images / "noisy.png")]
        main(["score", *pair, "--model", str(model), "--patches", "8", "--repeats", "2"])
        q, error = capsys.readouterr().out.split(" ± ")
        assert float(error) > 0
        assert np.isfinite(float(q))

    def test_a_terminal_of_ascii_letters_is_no_obstacle(self, images, model, monkeypatch):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr("sys.stdout", stdout)
        pair = [str(images / "reference.png"), str(images / "noisy.png")]
        assert main(["score", *pair, "--model", str(model), "--patches", "8", "--repeats", "2"]) == 0
        stdout.flush()
        assert b" \\xb1 " in stdout.buffer.getvalue()

    @pytest.mark.parametrize(
        ("distorted", "options", "message"),
        [
            ("missing.png", [], "missing.png"),
            ("cropped.png", [], "32"),
            ("noisy.png", ["--model", "no such folder"], "no such folder"),
        ],
    )
    def test_bad_input_is_one_line(self, images, model, distorted, options, message, capsys):
        pair = [str(images / "reference.png"), str(images / distorted)]
        assert main(["score", *pair, *(options or ["--model", str(model)])]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("vtamiq: ")
        assert output.err.count("\n") == 1
        assert message in output.err

    def test_missing_model_says_where_one_comes_from(self, images, capsys):
        reference = str(images / "reference.png")
        for missing in ("no such folder", "runs/demo/03_weak_pretraining/run/model", "someone/vtamiq"):
            assert main(["score", reference, reference, "--model", missing]) == 2
            hub = " (or the id of a model on the Hugging Face Hub: --download fetches it)"
            assert capsys.readouterr().err == (
                f"vtamiq: no such folder: {missing}{hub if missing.startswith('someone') else ''}; `make reproduce` trains "
                "one into runs/demo/03_weak_pretraining/run/model; without --model the one that ships with the package "
                "scores\n"
            )

    def test_folder_without_a_model_is_named(self, images, tmp_path, capsys):
        reference = str(images / "reference.png")
        assert main(["score", reference, reference, "--model", str(tmp_path)]) == 2
        errors = capsys.readouterr().err
        assert errors.startswith(f"vtamiq: {tmp_path}: has no config.json")
        assert "no such folder" not in errors

    def test_hub_id_in_the_local_cache(self, images, model, monkeypatch, capsys):
        monkeypatch.setattr("vtamiq.model.checkpoints._fetch", lambda hub_id, *_: {"someone/vtamiq": model}[hub_id])
        reference = str(images / "reference.png")
        assert main(["score", reference, reference, "--model", "someone/vtamiq", "--patches", "8"]) == 0
        assert float(capsys.readouterr().out) == 0

    def test_network_is_asked_only_with_download(self, images, model, monkeypatch, capsys):
        asked = []
        monkeypatch.setattr(
            "vtamiq.model.checkpoints._fetch", lambda name, download, _: asked.append((name, download)) or model
        )
        command = ["score", *[str(images / "reference.png")] * 2, "--model", "someone/vtamiq", "--patches", "8"]
        assert main(command) == main([*command, "--download"]) == 0
        assert asked == [("someone/vtamiq", False), ("someone/vtamiq", True)]

    def test_a_failed_download_says_why(self, images, monkeypatch, capsys):
        def offline(*_, **__):
            raise ConnectionError("no route to host")

        monkeypatch.setattr("vtamiq.model.checkpoints.snapshot_download", offline)
        assert main(["score", *[str(images / "reference.png")] * 2, "--model", "someone/vtamiq", "--download"]) == 2
        assert "no route to host" in capsys.readouterr().err

    @pytest.mark.parametrize("options", [["--precision", "bfloat16"], ["--batch-size", "3"], ["--device", "cpu"]])
    def test_options_of_speed_change_little(self, images, model, options, capsys):
        command = ["score", *(str(images / f"{name}.png") for name in ("reference", "noisy")), "--model", str(model)]
        command += ["--repeats", "3", "--patches", "8", "--json"]
        main(command)
        expected = json.loads(capsys.readouterr().out)
        assert main([*command, *options]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["q"] == pytest.approx(expected["q"], abs=1e-2)
        if options[0] == "--device":
            assert found == expected
        assert found["precision"] == (options[1] if options[0] == "--precision" else "float32")

    def test_without_a_model_the_one_that_ships_scores(self, images, capsys, caplog):
        pair = [str(images / "reference.png"), str(images / "noisy.png")]
        assert main(["score", *pair, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["model"] == "vtamiq-tiny"
        assert found["q"] == vtamiq.score(*pair)
        assert f"vtamiq-tiny, trained on synthetic labels (weights {found['weights']})" in caplog.text
        assert main(["score", *pair, "--json", "--model", "vtamiq-tiny"]) == 0
        assert json.loads(capsys.readouterr().out) == found

    def test_an_installation_without_weights(self, images, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr("vtamiq.model.inference.SHIPPED", tmp_path)
        assert main(["score", str(images / "reference.png"), str(images / "noisy.png")]) == 2
        assert "vtamiq-tiny, which ships with vtamiq, is missing from this installation" in capsys.readouterr().err

    def test_errors_of_libraries_keep_their_traceback(self, images, model, monkeypatch):
        monkeypatch.setattr(scoring, "score", lambda *_, **__: pd.to_datetime("no date"))
        reference = str(images / "reference.png")
        with pytest.raises(ValueError, match="no date"):
            main(["score", reference, reference, "--model", str(model)])


class TestSynthesize:
    @pytest.fixture
    def photographs(self, images, tmp_path):
        """A folder with one photograph."""
        folder = tmp_path / "photographs"
        folder.mkdir()
        shutil.copy(images / "reference.png", folder)
        return folder

    def test_makes_a_database(self, photographs, tmp_path, capsys):
        options = ["--types", "1", "10", "--size", "40x32", "--workers", "0", "--seed", "7"]
        out = tmp_path / "made"
        assert main(["synthesize", "--images", str(photographs), "--out", str(out), *options]) == 0
        assert capsys.readouterr().out == f"{out}: 10 pairs of 1 photographs, with synthetic labels\n"
        database = load_database("synthetic", out)
        assert len(database.pairs) == 10
        assert json.loads((out / MANIFEST).read_text())["seed"] == 7
        with Image.open(next((out / "images").glob("*.png"))) as image:
            assert image.size == (40, 32)

    @pytest.mark.parametrize(
        ("options", "message"),
        [(["--images", "nowhere"], "nowhere"), (["--images", ".", "--types", "nosuchtype"], "nosuchtype")],
    )
    def test_refusals_are_one_line(self, options, message, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["synthesize", "--out", "made", *options]) == 2
        errors = capsys.readouterr().err
        assert errors.startswith("vtamiq: ")
        assert message in errors
        assert not (tmp_path / "made").exists()

    def test_file_in_the_way_is_one_line(self, images, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        Path("README.md").touch()
        assert main(["synthesize", "--images", str(images), "--out", "README.md/made", "--workers", "0"]) == 2
        assert capsys.readouterr().err == "vtamiq: README.md: Not a directory\n"

    def test_recipes(self, photographs, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        options = ["--recipes-only", "--types", "jpeg", "gblur", "--size", "40x32", "--workers", "0", "--one-type"]
        labelled = ["--images", str(photographs), "--out", "labelled", "--metrics", "gmsd", "ssim"]
        assert main(["synthesize", *labelled, *options]) == 0
        assert capsys.readouterr().out == "labelled: recipes of 5 pairs of 1 photographs, with synthetic labels\n"
        assert main(["synthesize", "--images", str(photographs), "--out", "bare", "--unlabelled", *options]) == 0
        assert capsys.readouterr().out == "bare: recipes of 5 pairs of 1 photographs, without labels\n"
        for folder, metrics in (("labelled", ["ssim", "gmsd"]), ("bare", [])):
            manifest = json.loads(Path(folder, MANIFEST).read_text())
            assert (manifest["recipes_only"], manifest["one_type"], manifest["metrics"]) == (True, True, metrics)
            assert not list(Path(folder).rglob("*.png"))
        with pytest.raises(SystemExit):
            main(["synthesize", *labelled, *options, "--unlabelled"])
        assert "not allowed with" in capsys.readouterr().err

    def test_images_without_labels_are_refused(self, photographs, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["synthesize", "--images", str(photographs), "--out", "made", "--unlabelled"]) == 2
        assert "only recipes may go without labels" in capsys.readouterr().err
        assert not Path("made").exists()

    @pytest.mark.parametrize("size", ["384", "384x", "ax9", "-3x8"])
    def test_size_must_be_two_numbers(self, size, capsys):
        with pytest.raises(SystemExit):
            main(["synthesize", "--images", "a", "--out", "b", f"--size={size}"])
        assert "expected WIDTHxHEIGHT" in capsys.readouterr().err


class TestTrain:
    """The commands run here, on a few small pictures; `tests/test_chain.py` has what training does."""

    @pytest.fixture
    def here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        database = small_table(tmp_path / "small", references=10, levels=2)
        stage = Stage(
            caps=CAPS(num_patches=8), test_patches=8, num_draws=1, epochs=1, batch_size=8, optimizer=Optimizer(lr=1e-3)
        )
        Chain(model=TINY, steps=(Step(Data(database), stage),), accelerator="cpu").save("run.yaml")
        return tmp_path

    @pytest.fixture
    def calls(self, here, monkeypatch):
        """Stands in for training: notes how it is called."""
        calls = []

        def run_many(plan, out, **options):
            calls.append(([run.folder for run in plan], str(out), options))
            table = pd.DataFrame({"metric": ["srocc"], "mean": [0.51239], "n": [2]})
            return repeats.Runs(out, table, table)

        monkeypatch.setattr(repeats, "run_many", run_many)
        return calls

    def test_trains_and_goes_on(self, here, capsys):
        assert main(["train", "run.yaml", "--set", "steps.0.data.seed=4"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split()[:3] == ["folder", "database", "synthetic"]
        assert lines[1].split()[:2] == ["00_fine_tuning", "small"]
        assert lines[-1] == f"{Path('runs/run')}: trained, see chain.csv"
        written = Chain.load("runs/run/chain.yaml")
        assert written == changed(Chain.load("run.yaml"), {"steps.0.data.seed": 4})
        assert main(["train", "run.yaml"]) == 2  # another split in the same folder
        assert "holds another run (other data" in capsys.readouterr().err

    def test_check_trains_nothing(self, here, capsys):
        assert main(["train", "run.yaml", "--check"]) == 0
        head, row = (line.split() for line in capsys.readouterr().out.splitlines())
        said = dict(zip(head, row, strict=True))
        assert (said["start"], said["train"], said["val"], said["test"]) == ("random", "12", "4", "4")
        assert not Path("runs").exists()

    def test_check_of_many_runs(self, here, capsys):
        for options, runs in (
            (["--runs", "2"], ["run_00", "run_01"]),
            (["--folds", "3"], ["fold_00", "fold_01", "fold_02"]),
            (["--grid", "seed=1,2"], ["seed=1", "seed=2"]),
            (["--grid", "seed=1", "--folds", "2"], ["seed=1/fold_00", "seed=1/fold_01"]),
        ):
            assert main(["train", "run.yaml", "--check", *options]) == 0
            head, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
            assert head[:2] == ["run", "folder"]
            assert [row[0] for row in rows] == runs
        assert main(["train", "run.yaml", "--check", "--grid", "steps.0.stage.distorted_per_reference=1,4"]) == 2
        assert capsys.readouterr().err.startswith(
            "vtamiq: distorted_per_reference=4: steps[0] (fine_tuning): distorted_per_reference=4, but "
        )
        assert not Path("runs").exists()

    def test_example_is_a_file_to_begin_with(self, here, capsys):
        assert main(["train", "--example"]) == 0
        assert capsys.readouterr().out == chain.example()

    def test_options_of_devices(self, here, monkeypatch):
        asked = []
        monkeypatch.setattr(chain, "run_chain", lambda chain, out, **options: asked.append((chain, str(out), options)))
        monkeypatch.setenv("LOCAL_RANK", "1")
        options = ["--devices", "-1", "--num-nodes", "2", "--strategy", "ddp", "--accelerator", "gpu"]
        assert main(["train", "run.yaml", "--out", "o", *options, "--precision", "bf16-mixed"]) == 0
        ((given, out, options),) = asked
        assert (given.devices, given.num_nodes, given.strategy, given.accelerator) == (-1, 2, "ddp", "gpu")
        assert given.steps[0].stage.precision == "bf16-mixed"
        assert (out, options) == ("o", {"progress": False})

    def test_only_the_first_process_prints(self, here, monkeypatch, capsys):
        monkeypatch.setenv("RANK", "1")
        assert main(["train", "run.yaml", "--check", "--devices", "2"]) == 0
        assert capsys.readouterr() == ("", "")

    def test_many_runs(self, calls, capsys):
        assert main(["train", "run.yaml", "--runs", "3", "--gpus", "0,2"]) == 0
        assert capsys.readouterr().out.splitlines()[1].split() == ["srocc", "0.5124", "2"]
        assert main(["train", "run.yaml", "--folds", "5", "--workers", "2", "--out", "o"]) == 0
        values = ["--grid", "steps.0.stage.epochs=1,2", "--grid", "steps.0.data.ratios=[0.6,0.2,0.2]"]
        assert main(["train", "run.yaml", *values, "--runs", "2"]) == 0
        options = {"progress": False, "workers": None, "gpus": ()}
        assert calls == [
            ([f"run_0{k}" for k in range(3)], str(Path("runs/run")), options | {"gpus": (0, 2)}),
            ([f"fold_0{k}" for k in range(5)], "o", options | {"workers": 2}),
            (
                [f"epochs={epochs},ratios=0.6-0.2-0.2/run_0{k}" for epochs in (1, 2) for k in (0, 1)],
                str(Path("runs/run")),
                options,
            ),
        ]

    def test_failed_runs_are_another_exit_status(self, here, monkeypatch, capsys):
        def fail(*_, **__):
            raise repeats.RunsFailed("1 of 3 runs failed: run_01")

        monkeypatch.setattr(repeats, "run_many", fail)
        assert main(["train", "run.yaml", "--runs", "3"]) == 1
        assert capsys.readouterr().err == "vtamiq: 1 of 3 runs failed: run_01\n"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                ["--set", "steps.0.stage.epoch=3"],
                "vtamiq: steps[0].stage.epoch: Stage has no field `epoch`; did you mean",
            ),
            (["--set", "seed=[1"], "vtamiq: seed=[1: the value cannot be read"),
            (["--set", "steps"], "vtamiq: expected NAME=VALUE, got 'steps'"),
            (["--grid", "steps"], "vtamiq: expected NAME=VALUE, got 'steps'"),
            (["--precision", "half"], "vtamiq: steps[0].stage.precision must be one of"),
            (["--devices", "0"], "vtamiq: devices must be at least 1"),
            (["--set", "steps.0.data.database=nowhere"], "vtamiq: steps[0] (fine_tuning): unknown database 'nowhere'"),
        ],
    )
    def test_refusals_are_one_line(self, options, message, here, capsys):
        assert main(["train", "run.yaml", *options]) == 2
        errors = capsys.readouterr().err
        assert errors.startswith(message)
        assert errors.count("\n") == 1
        assert not Path("runs").exists()

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            ([], "required: FILE"),
            (["a.yaml", "--runs", "2", "--folds", "2"], "either --runs or --folds"),
            (["a.yaml", "--workers", "2"], "--workers and --gpus are for"),
            (["a.yaml", "--gpus", "0,x"], "expected numbers with commas between, such as 0,1, got '0,x'"),
        ],
    )
    def test_usage(self, argv, message, capsys):
        with pytest.raises(SystemExit) as end:
            main(["train", *argv])
        assert end.value.code == 2
        assert message in capsys.readouterr().err

    def test_file_is_named(self, here, capsys):
        assert main(["train", "no.yaml"]) == 2
        assert capsys.readouterr().err == "vtamiq: no.yaml: No such file or directory\n"
        Path("bad.yaml").write_text("steps: [{data: {database: a}, stage: {epochs: 0}}]")
        assert main(["train", "bad.yaml"]) == 2
        assert capsys.readouterr().err == "vtamiq: bad.yaml: steps[0].stage.epochs must be at least 1, got 0\n"


class TestReproduce:
    @pytest.fixture
    def calls(self, monkeypatch):
        """Stands in for `reproduce`: notes how it is called and gives the statuses that the test puts in."""
        calls = []
        statuses = ["done", "cached"]

        def reproduce(*args, **kwargs):
            calls.append((args, kwargs))
            rows = [(f"0{i}_x", status, 1.0, "", "") for i, status in enumerate(statuses)]
            return pd.DataFrame(rows, columns=pipeline.COLUMNS)

        monkeypatch.setattr(pipeline, "reproduce", reproduce)
        return calls, statuses

    def test_defaults(self, calls, capsys):
        assert main(["reproduce"]) == 0
        assert calls[0] == [(("demo",), {"only": None, "parameters": {}, "out": "runs", "force": False})]
        assert "00_x   done" in capsys.readouterr().out

    def test_options(self, calls):
        chosen = ["--preset", "smoke", "--only", "03", "06_cross", "-p", "epochs=2", "-p", "tag=x"]
        main(["reproduce", *chosen, "--out", "elsewhere", "--force"])
        expected = {"only": ["03", "06_cross"], "parameters": {"epochs": 2, "tag": "x"}, "out": "elsewhere"}
        assert calls[0] == [(("smoke",), expected | {"force": True})]

    def test_formats_and_style_of_figures(self, calls, monkeypatch, tmp_path, capsys):
        monkeypatch.chdir(tmp_path)
        for name in ("VTAMIQ_FIGURE_FORMATS", "VTAMIQ_FIGURE_STYLE"):
            monkeypatch.setenv(name, "")  # to be undone after the test
        Path("mine.mplstyle").write_text("font.size: 9\n")
        assert main(["reproduce", "--format", "svg", "pdf", "--style", "mine.mplstyle"]) == 0
        assert os.environ["VTAMIQ_FIGURE_FORMATS"] == "svg pdf"
        assert os.environ["VTAMIQ_FIGURE_STYLE"] == str(tmp_path / "mine.mplstyle")
        assert main(["reproduce", "--list", "--style", "none.mplstyle"]) == 2
        assert "vtamiq: none.mplstyle: No such file or directory" in capsys.readouterr().err
        Path("mine.mplstyle").write_text("font.size: big\n")
        assert main(["reproduce", "--list", "--style", "mine.mplstyle"]) == 2
        assert "is no Matplotlib style file" in capsys.readouterr().err

    @pytest.mark.parametrize("status", ["failed", "skipped"])
    def test_exit_status_tells_of_failures(self, calls, status):
        calls[1].append(status)
        assert main(["reproduce"]) == 1

    def test_interruption_says_what_to_type(self, monkeypatch, capsys, tmp_path):
        monkeypatch.chdir(tmp_path)

        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(pipeline, "reproduce", interrupt)
        assert main(["reproduce", "--force", "-p", "tag=two words"]) == 130
        assert f"to go on: {sys.executable} -m vtamiq reproduce -p 'tag=two words'\n" in capsys.readouterr().err

    def test_interpreter_below_the_current_folder_is_named_from_there(self, monkeypatch, capsys, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "executable", str(Path.cwd() / ".venv" / "bin" / "python"))
        monkeypatch.setattr(pipeline, "reproduce", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        assert main(["reproduce"]) == 130
        assert f"to go on: {Path('.venv/bin/python')} -m vtamiq reproduce\n" in capsys.readouterr().err

    @pytest.mark.skipif(os.name == "nt", reason="SIGTERM ends a process there without asking")
    def test_sigterm_is_answered_like_ctrl_c(self, monkeypatch, capsys):
        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(pipeline, "reproduce", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
        assert main(["reproduce", "--only", "03"]) == 143
        assert "stopped; to go on: " in capsys.readouterr().err
        assert signal.getsignal(signal.SIGTERM) == before

    def test_force_says_what_it_does_not_repeat(self, capsys):
        with pytest.raises(SystemExit):
            main(["reproduce", "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert "a finished training run of the same settings is loaded, not repeated" in text

    def test_printed_errors_are_short(self, monkeypatch, capsys):
        errors = ["ValueError: " + 40 * "long ", "", "x" * 60]
        rows = [(f"0{i}_x", "failed", 1.0, "", error) for i, error in enumerate(errors)]
        summary = pd.DataFrame(rows, columns=pipeline.COLUMNS)
        monkeypatch.setattr(pipeline, "reproduce", lambda *_, **__: summary)
        assert main(["reproduce"]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].endswith(" ValueError: " + 9 * "long " + "lo…")
        assert lines[3].endswith("x" * 60)
        assert max(map(len, lines)) < 100
        assert list(summary["error"]) == errors

    @pytest.mark.parametrize("out", ["README.md", "README.md/runs"])
    def test_file_in_the_way_is_one_line(self, out, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        Path("README.md").touch()
        monkeypatch.setattr(pipeline, "find_notebooks", lambda _: [])
        assert main(["reproduce", "--out", out]) == 2
        assert capsys.readouterr().err == "vtamiq: README.md: Not a directory\n"

    def test_errors_of_the_system_are_one_line(self, monkeypatch, capsys):
        def fail(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(pipeline, "reproduce", fail)
        assert main(["reproduce"]) == 2
        assert capsys.readouterr().err == "vtamiq: No space left on device\n"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--preset", "dmeo"], "no preset 'dmeo'; did you mean `demo`?"),
            (["-p", "steps"], "expected NAME=VALUE, got 'steps'"),
            ([], "no numbered notebooks in"),
            (["--list"], "no numbered notebooks in"),
            (["--list", "--preset", "dmeo"], "no preset 'dmeo'; did you mean `demo`?"),
            (["--list", "-p", "steps"], "expected NAME=VALUE, got 'steps'"),
        ],
    )
    def test_refusals_are_one_line(self, options, message, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["reproduce", *options]) == 2
        errors = capsys.readouterr().err
        assert message in errors
        assert "Traceback" not in errors
        assert list(tmp_path.iterdir()) == []

    def test_list(self, monkeypatch, capsys, tmp_path):
        preset = pipeline.Parameter("preset", "demo", "smoke, demo or full")
        first = pipeline.Notebook(tmp_path / "00_a.ipynb", "A title", (), {"preset": preset}, ())
        second = pipeline.Notebook(tmp_path / "01_b.ipynb", "Another", (), {}, ("00_a",))
        monkeypatch.setattr(pipeline, "find_notebooks", lambda _: [first, second])
        assert main(["reproduce", "--list"]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert lines == [
            ["00_a:", "A", "title"],
            ["preset", "=", "'demo'", "smoke,", "demo", "or", "full"],
            ["01_b:", "Another"],
            ["needs", "00_a"],
        ]
        main(["reproduce", "--list", "--only", "1"])
        assert "A title" not in capsys.readouterr().out
        assert main(["reproduce", "--list", "-p", "epohcs=2"]) == 2
        assert "no selected notebook has a parameter 'epohcs'" in capsys.readouterr().err
