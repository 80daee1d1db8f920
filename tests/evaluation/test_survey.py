"""What is on the disk, and whether it gives the answers that are known."""

import shutil

import pytest
from PIL import Image

import vtamiq.evaluation.survey
from tests.layouts import build_csiq, build_live, build_tid2013, noisy
from vtamiq.__main__ import main
from vtamiq.databases.loading import find_databases, load_database
from vtamiq.databases.schema import DatabaseError
from vtamiq.evaluation.survey import check_known_answer, survey

REFERENCES = ("01", "07", "25")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """TID2013, complete, as an archive may unpack: one folder deeper."""
    root = tmp_path_factory.mktemp("whole")
    build_tid2013(root / "TID2013" / "tid2013", image=noisy)
    return root


@pytest.fixture
def data(tmp_path):
    build_tid2013(tmp_path / "TID2013", references=REFERENCES)
    build_csiq(tmp_path / "csiq")
    return tmp_path


def test_databases_are_found_whatever_their_case_and_depth(whole, data):
    assert find_databases(data) == {"tid2013": data / "TID2013", "csiq": data / "csiq"}
    assert find_databases(whole) == {"tid2013": whole / "TID2013" / "tid2013"}
    with pytest.raises(DatabaseError, match=r"no folder .*nothing; put databases there"):
        find_databases(data / "nothing")


def test_a_nested_folder_is_loaded_by_name_or_root(whole, monkeypatch):
    monkeypatch.setenv("VTAMIQ_DATA", str(whole))
    assert len(load_database("tid2013")) == len(load_database("TID2013", whole / "TID2013")) == 3000


def test_each_database_is_described(data):
    table = survey(data).set_index("database")
    assert table.loc["csiq", ["folder", "pairs", "references", "status"]].tolist() == ["csiq", 866, 30, "complete"]
    assert table.loc["csiq", "problems"] == []
    assert table.loc["csiq", ["lowest", "highest", "better"]].tolist() == [0, 1, "lower"]
    assert table.loc["tid2013", ["pairs", "references", "status", "better"]].tolist() == [360, 3, "partial", "higher"]
    (problem,) = table.loc["tid2013", "problems"]
    assert "360 of 3000 pairs and 3 of 25 references" in problem


def test_what_was_named_is_looked_for(data):
    table = survey(data, ["live", "csiq"])
    assert table[["database", "status"]].to_numpy().tolist() == [["live", "not found"], ["csiq", "complete"]]


def test_names_are_taken_in_any_case_and_unknown_ones_refused(data):
    assert survey(data, ["CSIQ"]).iloc[0]["status"] == "complete"
    with pytest.raises(DatabaseError, match="unknown database 'tid2012'; did you mean `tid2013`"):
        survey(data, ["tid2012"])


def test_a_damaged_part_is_not_hidden_by_a_good_one(data):
    for folder, name in (("Val_Ref", "A0005.bmp"), ("Val_Dist", "A0005_10_00.bmp"), ("Train_Ref", "A0001.bmp")):
        (data / "PIPAL" / folder).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(data / "PIPAL" / folder / name)
    (data / "PIPAL" / "Train_Label").mkdir()
    (data / "PIPAL" / "Train_Label" / "A0001.txt").write_text("A0001_00_00.bmp,1500".encode("utf-16").decode("latin1"))
    table = survey(data, ["pipal"]).set_index("database")
    assert table["status"].to_dict() == {"pipal (train)": "unusable", "pipal_val": "partial"}
    assert table.loc["pipal (train)", "problems"]


def test_what_is_there_of_kadis_is_said_and_a_damaged_table_is_not_passed_over(data):
    root = data / "kadis700k"
    (root / "ref_imgs").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(root / "ref_imgs" / "a-1.png")
    (root / "kadis700k_ref_imgs.csv").write_text("ref_im,dist_type_1\na-1.png,3\n")
    row = survey(data, ["kadis700k"]).iloc[0]
    assert (row["status"], row["pairs"], row["score"]) == ("partial", 5, "none published")
    assert "without kadis700k_friqa.csv: no scores" in row["problems"]
    assert any("rendered" in problem for problem in row["problems"])
    (root / "kadis700k_friqa.csv").write_text("damaged")
    row = survey(data, ["kadis700k"]).iloc[0]
    assert row["status"] == "unusable"
    assert "kadis700k_friqa.csv:1" in row["problems"][0]


def test_live_without_its_second_download_is_usable(tmp_path):
    build_live(tmp_path / "LIVE")
    (tmp_path / "LIVE" / "dmos_realigned.mat").unlink()
    row = survey(tmp_path, ["live"]).iloc[0]
    assert (row["status"], row["score"], row["pairs"]) == ("complete", "DMOS", 779)
    assert "a separate download" in row["problems"][0]


def test_two_folders_of_one_database_hide_no_other(data, caplog):
    (data / "CSIQ").mkdir(exist_ok=True)
    if len(list(data.iterdir())) == 2:
        pytest.skip("this file system does not tell case apart")
    assert find_databases(data) == {"tid2013": data / "TID2013"}
    assert "csiq cannot be told" in caplog.text


def test_unusable_copies_say_why(data):
    (data / "csiq" / "csiq.DMOS.xlsx").write_bytes(b"no workbook")
    row = survey(data, ["csiq"]).iloc[0]
    assert row["status"] == "unusable"
    assert "csiq.DMOS.xlsx" in row["problems"][0]


def test_images_are_opened_unless_it_is_to_be_fast(data):
    path = next((data / "csiq" / "dst_imgs" / "blur").iterdir())
    path.unlink()
    path.write_bytes(b"no image")
    assert survey(data, ["csiq"]).iloc[0]["status"] == "partial"
    assert survey(data, ["csiq"], check_images=False).iloc[0]["status"] == "complete"


def test_known_answers(whole, tmp_path, monkeypatch):
    options = {"workers": 0, "cache": tmp_path, "progress": False}
    result = check_known_answer("tid2013", whole / "TID2013", **options)
    assert (result["n"], result["srocc_published"], result["krocc_published"]) == (3000, 0.6869, 0.4958)
    assert result["srocc"] > 0.99  # these pictures were made so
    assert not result["agrees"]
    answer = {"srocc": result["srocc"] + 0.0009, "krocc": result["krocc"] - 0.0009}
    monkeypatch.setattr(vtamiq.evaluation.survey, "known_answer", lambda name: answer)
    assert check_known_answer("tid2013", whole / "TID2013", **options)["agrees"]
    monkeypatch.setattr(
        vtamiq.evaluation.survey, "known_answer", lambda name: answer | {"krocc": result["krocc"] - 0.0011}
    )
    assert not check_known_answer("tid2013", whole / "TID2013", **options)["agrees"]
    monkeypatch.setattr(vtamiq.evaluation.survey, "known_answer", lambda name: None)
    assert check_known_answer("tid2013", whole / "TID2013", **options)["agrees"] is None


class TestCommand:
    def test_lists_what_is_there_and_what_is_not(self, data, capsys):
        assert main(["databases", "--data", str(data)]) == 1  # one is partial
        lines = capsys.readouterr().out.splitlines()
        assert "tid2013 in TID2013: partial, 360 pairs of 3 references; MOS (higher is better)" in lines[1]
        assert lines[0] == "csiq: complete, 866 pairs of 30 references; DMOS (lower is better) 0 … 1, mean 0.35074"
        assert lines[-1].startswith(f"not found in {data}: live, tid2008, kadid10k")
        shutil.rmtree(data / "TID2013")
        assert main(["databases", "--data", str(data)]) == 0

    def test_many_problems_are_counted(self, data, capsys):
        shutil.rmtree(data / "csiq" / "dst_imgs" / "blur")
        assert main(["databases", "csiq", "--data", str(data)]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 5
        assert lines[-1] == "    … and 148 more (--all)"
        assert main(["databases", "csiq", "--data", str(data), "--all"]) == 1
        assert len(capsys.readouterr().out.splitlines()) == 1 + 151

    def test_check_compares_with_the_published_values(self, whole, capsys):
        assert main(["databases", "--data", str(whole), "--check", "--workers", "0"]) == 1
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("tid2013: PSNR has SROCC 0.99")
        assert last.endswith("published: SROCC 0.6869, KROCC 0.4958: DIFFERS")

    def test_check_of_a_partial_copy_is_refused(self, data, capsys):
        assert main(["databases", "tid2013", "--data", str(data), "--check"]) == 1
        assert "tid2013: not checked: tid2013: a complete copy has" in capsys.readouterr().out

    def test_no_folder(self, tmp_path, capsys):
        assert main(["databases", "--data", str(tmp_path / "none")]) == 2
        assert "no folder" in capsys.readouterr().err
