"""What costs how much: rows for the right settings, and memory and errors that are measured. Nothing depends on time."""

import math
from dataclasses import replace
from functools import partialmethod

import numpy as np
import pytest
import torch
from torch import nn

from tests.tools.benchmark.test_report import QUICK
from tools.benchmark import costs
from tools.benchmark.costs import ANEW, PLAIN, gpu_throughput, pair_files
from tools.benchmark.report import benchmark
from tools.benchmark.timing import pictures
from vtamiq.images.reading import read_image
from vtamiq.model import accelerate as fast

ONCE = replace(QUICK, rounds=1, megapixels=(0.01, 0.08), rows=2000)


@pytest.fixture(scope="module")
def table():
    state = torch.get_rng_state()
    table = benchmark(ONCE, parts=["patches", "images", "batch", "blocks", "workers", "table"])
    assert torch.equal(torch.get_rng_state(), state)
    return table


def settings_of(table, part):
    """Its settings by what was measured."""
    rows = table[table["part"] == part]
    assert (rows["ratio"] > 0).all()
    assert (rows["fastest"] <= rows["seconds"]).all()
    assert (rows["seconds"] <= rows["slowest"]).all()
    assert rows.groupby("what")["ratio"].first().eq(1).all()  # against itself
    return rows.groupby("what", sort=False)["x"].apply(list).to_dict()


def test_costs_against_settings(table):
    counts = [1, 3, 6, 12, 24]
    assert settings_of(table, "patches") == {"scoring": counts, "training step": counts}
    assert settings_of(table, "batch") == {"scoring": [1, 2, 4, 8, 16]}
    assert settings_of(table, "blocks") == {"scoring": [1, 2], "training step": [1, 2]}
    sizes = [0.01, 0.02, 0.04, 0.08]
    assert settings_of(table, "images") == {
        "decoding two PNG files": sizes, "6 patches sampled": sizes, "network": sizes,
    }  # fmt: skip
    assert settings_of(table, "table") == {"an item": [16, 2000]}


def test_workers_up_to_the_cores(table, monkeypatch):
    (found,) = settings_of(table, "workers").values()
    assert found[:2] == [0, 1]
    asked = []
    monkeypatch.setattr(costs, "_loading", lambda settings, workers: asked.append(workers) or [])
    for cores in (1, 3, 8):
        monkeypatch.setattr(costs.os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        for step in costs.worker_costs(ONCE):
            step()
    assert asked == [[0, 1], [0, 1, 2], [0, 1, 2, 4, 8]]


def test_fewer_blocks_are_the_first_ones(monkeypatch):
    seen = []
    run = costs.without_gradient

    def watched(model, *given):
        seen.append([id(block) for block in model.encoder.blocks])
        return run(model, *given)

    monkeypatch.setattr(costs, "without_gradient", watched)
    costs.block_costs(ONCE)[0]()
    one, two = seen[-2:]
    assert [len(one), len(two)] == [1, 2]
    assert one == two[:1]


@pytest.mark.parametrize(("rows", "files"), [(1, 1), (16, 16), (40, 40), (2000, 16)])
def test_files_of_pairs(rows, files):
    images = pictures(16, 20)
    with pair_files(images, rows) as database:
        folder = database.root
        assert len(database) == rows
        assert len(list(folder.glob("*.png"))) == 2 * files
        for row in costs._real_rows(rows):
            for image, name in zip(images, ("ref_path", "dist_path"), strict=True):
                assert np.array_equal(read_image(folder / database.pairs[name].iloc[row]), image)
    assert not folder.exists()


class TestMemory:
    def test_peaks_are_those_of_a_fresh_process(self):
        held = np.ones(300 * 2**20, dtype=np.uint8)  # by this process
        before, after = costs._in_a_fresh_process(costs._peaks, ONCE, PLAIN, [4], 1)
        assert 50 < before < after
        here = costs._peak_resident() / 2**20
        assert math.isnan(here) or here > held.nbytes / 2**20

    def test_rows(self, monkeypatch):
        peaks = {"scoring": [10, 20, 40], PLAIN: [10, 60, 120], ANEW: [10, 40, 60]}
        asked = []

        def measured(function, settings, kind, batches, threads):
            asked.append((function, settings, list(batches), threads))
            return peaks[kind]

        monkeypatch.setattr(costs, "_in_a_fresh_process", measured)
        table = benchmark(ONCE, parts=["memory"])
        assert asked == [(costs._peaks, ONCE, [4, 16], torch.get_num_threads())] * 3
        found = table.dropna(subset=["mebibytes"]).pivot(index="x", columns="what", values="mebibytes")
        assert found.index.tolist() == [0, 4, 16]
        assert {kind: found[kind].tolist() for kind in peaks} == peaks
        less = table[(table["what"] == ANEW) & (table["x"] == 16)].iloc[0]
        assert (less["against"], less["ratio"]) == (PLAIN, 2)
        (time,) = table[table["mebibytes"].isna()]["what"]
        assert time == "time of a training step, gradient checkpointing"

    def test_the_option_is_what_is_measured(self):
        model = ONCE.network()
        costs._memory_call(model, ONCE, ANEW, 2)()
        assert model.encoder.recompute
        costs._memory_call(model, ONCE, PLAIN, 2)()
        assert not model.encoder.recompute
        assert costs._memory_call(model, ONCE, "scoring", 2)().shape == (2, 1)


class TestPrecisions:
    def test_errors_are_those_of_the_score(self, monkeypatch):
        monkeypatch.setattr(fast, "_worth_it", lambda *_: True)
        table = benchmark(ONCE, parts=["precision"]).set_index("what")
        assert table.index.tolist() == ["CPU: float32", "CPU: float32, oneDNN", "CPU: bfloat16", "CPU: float16"]
        error = table["error"]
        assert error["CPU: float32"] == 0
        assert error["CPU: float32, oneDNN"] < 1e-5
        assert error["CPU: float32, oneDNN"] < error["CPU: float16"] < error["CPU: bfloat16"]
        assert error["CPU: bfloat16"] < table["score_range"].iloc[0]

    def test_compiled(self, monkeypatch):
        def backend(graph, inputs):
            def run(*given):
                return tuple(value + 1 if value.is_floating_point() else value for value in graph(*given))

            return run

        torch._dynamo.reset()
        monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=backend))
        table = benchmark(replace(ONCE, compile=True), parts=["precision"]).set_index("what")
        assert "CPU: compiling once" in table.index
        assert table["error"]["CPU: float32, compiled"] > 1e-6  # so compiled code is what runs there
        assert table["error"]["CPU: float32"] == 0
        monkeypatch.setattr(costs, "compile_blocks", lambda *_: False)
        assert not benchmark(replace(ONCE, compile=True), parts=["precision"])["what"].str.contains("compil").any()


class TestGPU:
    def test_without_one_it_is_refused(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ValueError, match="needs a CUDA GPU, and PyTorch sees none here"):
            benchmark(ONCE, parts=["gpu"])

    def test_sizes(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(costs, "choose_device", lambda name: torch.device("cuda"))
        monkeypatch.setattr(costs, "gpu_throughput", lambda *given: given)
        assert [step() for step in costs.gpu_costs(ONCE)] == [
            (ONCE, torch.device("cuda"), 64, 6), (ONCE, torch.device("cuda"), 32, 12),
        ]  # fmt: skip

    def test_shares_and_workers(self, monkeypatch):
        """On the CPU, with times that make all numbers plain."""
        monkeypatch.setattr(costs, "_loading", lambda settings, workers, patches: [{"seconds": 0.5}])
        monkeypatch.setattr(costs, "cost_table", lambda model, patches: costs_of_a_pair(2e-9 * 8**3))
        monkeypatch.setattr(costs, "interleaved", timed(seconds := [1.0, 8.0, 24.0]))
        rows = gpu_throughput(ONCE, torch.device("cpu"), 4, 6, side=8)
        assert [row["what"] for row in rows] == [
            "scoring, 4 × 6 patches, bfloat16", "scoring, 4 × 6 patches, bfloat16: workers that keep it busy",
            "training, 4 × 6 patches, bfloat16", "training, 4 × 6 patches, bfloat16: workers that keep it busy",
        ]  # fmt: skip
        assert [row["ratio"] for row in rows] == [4 / 8, 0.5 * 4 / 8, 3 * 4 / 24, 0.5 * 4 / 24]
        assert [row.get("goal") for row in rows] == [0.45, None, 0.35, None]
        assert [row.get("seconds") for row in rows] == [2.0, None, 6.0, None]
        assert seconds == [1.0, 8.0, 24.0]

    def test_all_of_it_runs(self, monkeypatch):
        compiled = []

        def compile_blocks(blocks: nn.ModuleList, width: int, training: bool) -> bool:
            compiled.append((width, training))
            return True

        monkeypatch.setattr(costs, "compile_blocks", compile_blocks)
        rows = gpu_throughput(replace(ONCE, compile=True), torch.device("cpu"), 4, 6, side=64)
        assert compiled == [(32, False), (32, True)]
        assert [row["what"].partition(" 4")[0] for row in rows[::2]] == [
            "scoring,", "training,", "scoring, compiled,", "training, compiled,",
        ]  # fmt: skip
        assert all(row["ratio"] > 0 for row in rows)


def costs_of_a_pair(gflops):
    import pandas as pd

    return pd.DataFrame({"gflops": [gflops]})


def timed(seconds):
    """Calls everything once and says that it took these seconds."""

    def interleaved(functions, rounds, clock):
        return np.array([seconds]), [function() for function in functions]

    return interleaved
