"""The benchmark measures what it says. Nothing here depends on time."""

import json
import platform
from dataclasses import replace

import pandas as pd
import pytest
import torch

from tools.benchmark import __main__ as shell
from tools.benchmark import report as module
from tools.benchmark.__main__ import main
from tools.benchmark.report import PARTS, benchmark, described
from tools.benchmark.timing import COLUMNS, Benchmark

QUICK = Benchmark(
    backbone="vit_tiny_patch16_384", blocks=2, width=32, num_heads=2, patches=6, batch=4, versions=2, megapixels=(0.01,),
    rounds=2, compile=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def table():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    table = benchmark(QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    return table


class TestBenchmark:
    def test_rows(self, table):
        assert tuple(table) == COLUMNS
        assert table["part"].tolist() == ["network"] * 13 + ["data"] * 2
        assert table["what"].tolist() == [
            "scoring 4 × 6 patches", "scoring 4 × 6 patches, optimised",
            "scoring 4 × 6 patches", "scoring 4 × 6 patches, optimised",
            "scoring 2 × 12 patches", "scoring 2 × 12 patches, optimised",
            "scoring 2 × 12 patches", "scoring 2 × 12 patches, optimised",
            "2 triplets × 6 patches, reference shared", "2 triplets × 6 patches, reference shared, optimised",
            "training step of 4 × 6 patches", "training step of 4 × 6 patches, optimised",
            "2 versions × 6 patches, ReferenceEmbedding, optimised",
            "116 × 87: 12 patches sampled", "116 × 87: a whole item",
        ]  # fmt: skip
        against = ["plain twin"] * 2 + ["best float32 rate"] * 2
        last = ["score, optimised", "decoding two PNG files", "decoding two PNG files"]
        assert table["against"].tolist() == against * 2 + ["plain twin"] * 4 + last
        assert (table["lowest"] <= table["ratio"]).all()
        assert (table["ratio"] <= table["highest"]).all()

    def test_results_agree(self, table):
        errors = table["error"].dropna()
        assert len(errors) == 6
        assert (errors < 1e-5).all()

    def test_settings_are_kept(self, table):
        assert table.attrs["patches"] == 6
        assert table.attrs["threads"] == torch.get_num_threads()
        assert table.attrs["gflops"] > 0
        assert table.attrs["onednn_gain"] > 0

    def test_goals(self, table, monkeypatch):
        monkeypatch.setattr(module, "product_rates", lambda: [1.0, 2.0])
        assert module._goals()["triplets"] == {"": 1.6, ", optimised": 3.0}
        monkeypatch.setattr(module, "product_rates", lambda: [1.0, 1.9])
        assert module._goals()["scoring"] == {"": 1.2, ", optimised": 1.2}
        plain = table[~table["what"].str.contains("optimised")].set_index("what")["goal"]
        assert plain["training step of 4 × 6 patches"] == 1.2
        assert plain["116 × 87: a whole item"] == pytest.approx(2 / 3)
        assert table[table["against"] == "best float32 rate"]["goal"].dropna().tolist() == [0.85, 0.85]
        assert table["goal"].isna().sum() == 2  # the share of the best rate without oneDNN

    def test_a_file_of_it_explains_itself(self, table):
        row = described(table).iloc[0]
        assert row["backbone"] == "vit_tiny_patch16_384"
        assert row["megapixels"] == "0.01"
        assert {"cpu", "gpu", "cores", "threads", "torch", "system", "gflops", "onednn_gain"} <= set(row.index)
        assert platform.node() not in " ".join(map(str, row))

    def test_parts(self):
        assert benchmark(replace(QUICK, rounds=1), parts=["data"])["what"].str.startswith("116 × 87").all()
        with pytest.raises(ValueError, match=r"parts must be among network, data, .*gpu, got disk"):
            benchmark(QUICK, parts=["disk"])


OPTIONS = ["--backbone", "vit_tiny_patch16_384", "--width", "32", "--num-heads", "2", "--blocks", "1", "--patches", "4"]
OPTIONS += ["--batch", "2", "--versions", "1", "--rounds", "1", "--megapixels", "0.01"]


def test_shell_prints_a_table(capsys):
    threads = torch.get_num_threads()
    assert main([*OPTIONS]) == 0
    printed = capsys.readouterr().out
    first, second, *_ = printed.splitlines()
    assert first.startswith("vit_tiny_patch16_384, 1 blocks; ")
    assert "1 thread(s)" in first
    assert second.startswith("best rate of a float32 product ")
    assert "scoring 2 × 4 patches, optimised" in printed
    assert "116 × 87: a whole item" in printed
    assert torch.get_num_threads() == threads


def test_shell_prints_json(capsys):
    assert main([*OPTIONS, "--only", "data", "--threads", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["settings"]["threads"] == 2
    assert [row["what"] for row in result["rows"]] == ["116 × 87: 8 patches sampled", "116 × 87: a whole item"]
    assert result["rows"][0]["error"] is None


def test_shell_writes_a_file(tmp_path, capsys):
    out = tmp_path / "new" / "costs.csv"
    assert main([*OPTIONS, "--only", "batch", "--out", str(out)]) == 0
    table = pd.read_csv(out)
    assert table["x"].tolist() == [1, 2, 4, 8]
    assert table["backbone"].tolist() == ["vit_tiny_patch16_384"] * 4
    printed = capsys.readouterr().out
    assert "\nbatch\n" in printed
    assert "error" not in printed


@pytest.mark.parametrize("gpu", [False, True])
def test_shell_measures_all_that_there_is(monkeypatch, gpu):
    asked = []

    def measured(settings, parts, progress):
        asked.append(tuple(parts))
        return pd.DataFrame(columns=list(COLUMNS))

    monkeypatch.setattr(module, "benchmark", measured)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for options in (["--all"], [], ["--only", "table", "memory"]):
        main([*options, "--out", "x.txt"])
    assert asked == []
    monkeypatch.setattr(shell, "_text", lambda table: "")
    for options in (["--all"], [], ["--only", "table", "memory"]):
        main([*options])
    everything = tuple(PARTS) if gpu else tuple(part for part in PARTS if part != "gpu")
    assert asked == [everything, ("network", "data"), ("table", "memory")]


def test_shell_refuses_bad_settings(capsys, tmp_path):
    assert main(["--out", str(tmp_path / "x.txt")]) == 2
    assert "the table is written as .csv" in capsys.readouterr().err
    assert main(["--batch", "1"]) == 2
    assert "Benchmark.batch must be at least 2" in capsys.readouterr().err
