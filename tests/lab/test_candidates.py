"""Who may be tested on what, and everything measured on the same rows."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import vtamiq.lab.candidates
from tests.small import TINY, small_database
from vtamiq.caps import CAPS
from vtamiq.databases.schema import DatabaseError
from vtamiq.lab.candidates import (
    Candidate,
    held_out,
    load_candidate,
    lookup_rows,
    perfect_value,
    predict_all,
    shared_content,
    tell_apart,
    training_marks,
)
from vtamiq.model.checkpoints import CheckpointError
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring.predictions import predict
from vtamiq.training.run import train
from vtamiq.training.stage import Stage

QUIET = {"repeats": 1, "progress": False}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return small_database(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(database, tmp_path_factory):
    stage = Stage(name="test", caps=CAPS(num_patches=8), test_patches=12, num_draws=1, epochs=1, batch_size=4)
    parts = (database.subset(names) for names in (["r0", "r1"], ["r2"], ["r3"]))
    return train(VTAMIQ(TINY), stage, *parts, out=tmp_path_factory.mktemp("run"), progress=False)


def candidate(name="VTAMIQ", seen=None):
    """`seen`: database → contents."""
    entries = [{"database": name, "contents": names, "pictures": []} for name, names in (seen or {}).items()]
    return Candidate(name, VTAMIQ(TINY).eval(), CAPS(num_patches=4), seen=entries)


def test_a_run_knows_what_it_has_seen(run):
    loaded = load_candidate(run.folder)
    assert (loaded.name, loaded.trained_on) == ("VTAMIQ (small)", "small")
    assert [(entry["database"], entry["contents"]) for entry in loaded.seen] == [
        ("small", ["r0", "r1"]),
        ("small", ["r2"]),
    ]
    assert loaded.caps.num_patches == 12
    assert load_candidate(run.folder, "mine", num_patches=5).caps.num_patches == 5


def test_a_model_remembers_without_its_run_unless_it_comes_from_elsewhere(run, tmp_path):
    loaded = load_candidate(run.folder / "model")
    assert (loaded.name, loaded.trained_on) == (f"VTAMIQ {run.folder.name}/model", "small")
    assert loaded.seen == load_candidate(run.folder).seen
    assert not loaded.model.training
    shutil.copytree(run.folder / "model", tmp_path / "model")
    (tmp_path / "model" / "seen.json").unlink()
    foreign = load_candidate(tmp_path / "model")
    assert (foreign.trained_on, foreign.seen) == ("unknown data", None)
    with pytest.raises(CheckpointError):
        load_candidate(run.folder / "nothing")


def test_a_later_stage_has_seen_what_earlier_ones_saw(run, tmp_path):
    other = small_database(tmp_path / "other", references=3, name="other")
    parts = [other.subset([name]) for name in ("r0", "r1")]
    later = train(
        load_candidate(run.folder).model, replace(run.stage, seed=1), *parts, out=tmp_path / "run", progress=False
    )
    fine = load_candidate(later.folder)
    assert [entry["database"] for entry in fine.seen] == ["small", "small", "other", "other"]
    unknown = VTAMIQ(TINY)
    unknown.seen = None
    lost = train(unknown, run.stage, *parts, out=tmp_path / "lost", progress=False)
    assert load_candidate(lost.folder).seen is None


def test_the_same_picture_under_another_name_is_seen(run, database, tmp_path):
    """Files of r0 to r2 were seen, whatever they are called here."""
    shutil.copytree(database.root, tmp_path / "mine")
    pairs = database.pairs.assign(database="mine", ref_id="x" + database.pairs["ref_id"]).astype({"database": "str"})
    mine = replace(database, name="mine", root=tmp_path / "mine", pairs=pairs.astype({"ref_id": "str"}))
    (part,), _ = held_out([mine], [load_candidate(run.folder)])
    assert part.references == ["xr3", "xr4"]


def test_only_what_nobody_has_seen_is_tested(database):
    one, other = candidate("a", {"small": ["r0"]}), candidate("b", {"small": ["r3"], "x": ["r1"]})
    (part,), overview = held_out([database], [one, other])
    assert part.references == ["r1", "r2", "r4"]
    assert overview.loc[0, ["references", "tested", "pairs tested", "better"]].tolist() == [5, 3, 12, "lower"]
    assert held_out([database], [])[0][0].references == database.references
    whole = candidate(seen={"small": list(database.references)})
    pairs = database.pairs.assign(database="other").astype({"database": "str"})
    (part,), overview = held_out([database, replace(database, name="other", pairs=pairs)], [whole])
    assert (part.name, overview["tested"].tolist()) == ("other", [0, 5])
    with pytest.raises(DatabaseError, match="nothing is left to test"):
        held_out([database], [whole])


def test_another_view_of_a_seen_picture_is_seen(database):
    views = database.pairs.assign(content=database.pairs["ref_id"].replace({"r1": "r0"}).astype("str"))
    (part,), _ = held_out([replace(database, pairs=views)], [candidate(seen={"small": ["r0"]})])
    assert part.references == ["r2", "r3", "r4"]


def test_what_cannot_be_known_from_names_is_said(database):
    pairs = database.pairs.assign(database="tid2013").astype({"database": "str"})
    tid = replace(database, name="tid2013", pairs=pairs)
    sentences = shared_content([candidate("a", {"live": ["x"]}), replace(candidate("b"), seen=None)], [tid, database])
    assert sentences == [
        "a saw pictures of live, tid2013 has the same source: Kodak",
        "b: it is not known which pictures it was trained on",
    ]


def test_everything_is_measured_on_the_same_rows(database):
    part = database.subset(["r3", "r4"])
    models = [candidate("a"), candidate("b")]
    table = predict_all(models, [part], ["psnr", "ssim"], **QUIET)
    assert table["method"].unique().tolist() == ["a", "b", "PSNR", "SSIM"]
    for _, rows in table.groupby("method"):
        assert rows["dist_path"].tolist() == part.pairs["dist_path"].tolist()
    expected = predict(models[1].model, part, models[1].caps, progress=False)
    np.testing.assert_array_equal(table.query("method == 'b'")["q"], expected["q"])
    assert table.groupby("method")["lower_better"].first().to_dict() == {
        "a": True,
        "b": True,
        "PSNR": False,
        "SSIM": False,
    }


def test_finished_predictions_are_read_unless_something_changed(database, tmp_path, monkeypatch):
    part, model = database.subset(["r3"]), candidate()
    calls = []
    monkeypatch.setattr(vtamiq.lab.candidates, "predict", lambda *a, **o: calls.append(1) or predict(*a, **o))
    options = QUIET | {"iqms": [], "cache": tmp_path}
    first = predict_all([model], [part], **options)
    pd.testing.assert_frame_equal(predict_all([model], [part], **options), first)
    assert len(calls) == 1
    predict_all([model], [part], **options | {"seed": 1})
    predict_all([replace(model, caps=CAPS(num_patches=5))], [part], **options)
    predict_all([candidate()], [part], **options)  # other weights
    relabelled = part.pairs.assign(score=part.pairs["score"] + 1)
    again = predict_all([model], [replace(part, pairs=relabelled)], **options)
    assert len(calls) == 5
    assert (again["score"] == first["score"] + 1).all()
    other_heads = VTAMIQ(replace(TINY, num_heads=4)).eval()
    other_heads.load_state_dict(model.model.state_dict())
    predict_all([replace(model, model=other_heads)], [part], **options)  # the same weights, read otherwise
    human = predict_all([model], [replace(part, synthetic=False)], **options)
    assert len(calls) == 7
    assert not human["synthetic"].any()


def test_a_perfect_copy_has_one_score_only_where_both_are_looked_at_in_the_same_places():
    one = candidate()
    assert one.perfect == 0.0
    assert replace(one, caps=CAPS(num_patches=4, aligned=False)).perfect is None
    assert Candidate("other", VTAMIQ(replace(TINY, zero_anchor=False)), one.caps).perfect is None


def test_rows_say_where_they_come_from(database, run):
    table = predict_all([load_candidate(run.folder)], [database.subset(["r3"])], ["psnr", "mdsi"], **QUIET)
    first = table.groupby("metric").first()
    assert first["checkpoint"].to_dict() == {"VTAMIQ": "/".join(run.folder.parts[-2:]), "psnr": "", "mdsi": ""}
    assert first["perfect"].to_dict() == {"VTAMIQ": 0.0, "psnr": 100.0, "mdsi": 0.0}
    assert set(table["split"]) == {"held out"}
    assert perfect_value(table) == 0.0
    assert perfect_value(table.assign(perfect=None)) is None


def test_candidates_of_one_name_are_told_apart(run):
    one, same, other = load_candidate(run.folder), load_candidate(run.folder / "model", "VTAMIQ (small)"), candidate()
    names = [c.name for c in tell_apart([one, same, other])]
    assert names == [
        f"VTAMIQ (small) {'/'.join(run.folder.parts[-2:])}", f"VTAMIQ (small) {run.folder.name}/model", "VTAMIQ"
    ]  # fmt: skip


def test_the_look_up_is_for_synthetic_labels(database):
    training, test = database.subset(["r0"]), database.subset(["r4"])
    (table,) = lookup_rows(training, [test])
    assert (table["method"] == "look-up").all()
    assert lookup_rows(training, [replace(test, synthetic=False)]) == []
    assert lookup_rows(replace(training, synthetic=False), [test]) == []
    assert lookup_rows(None, [test]) == []


def test_what_methods_have_to_do_with_databases_is_marked(database):
    databases = [
        replace(database, name=name, pairs=database.pairs.assign(database=name, **ranks))
        for name, ranks in (("made", {"rank_ssim": 0.5}), ("weak", {}), ("fine", {}))
    ]
    both = candidate("A", {"weak": ["x"], "fine": ["y"]}), candidate("B")
    rows = pd.DataFrame(
        [
            {"method": method, "metric": metric, "trained_on": trained_on, "database": name}
            for method, metric, trained_on in (
                ("A", "VTAMIQ", "fine"), ("B", "VTAMIQ", "unknown data"), ("SSIM", "ssim", ""), ("PSNR", "psnr", ""),
                ("look-up", "lookup", "made"),
            )
            for name in ("made", "weak", "fine")
            if (method, name) != ("PSNR", "fine")
        ]
        * 2
    )  # fmt: skip
    marks = training_marks(rows, both, databases)
    assert marks.index.tolist() == ["A", "B", "SSIM", "PSNR", "look-up"]
    assert marks.columns.tolist() == ["made", "weak", "fine"]
    assert marks.to_numpy().tolist() == [
        ["", "†", "*"], ["", "", ""], ["‡", "", ""], ["", "", ""], ["*", "", ""],
    ]  # fmt: skip


def test_bad_calls_are_refused(database):
    with pytest.raises(ValueError, match="different names, got a, a"):
        predict_all([candidate("a"), candidate("a")], [database])
    unlabelled = database.pairs.assign(score=np.nan)
    with pytest.raises(ValueError, match="small: 20 pairs have no score"):
        predict_all([candidate()], [replace(database, pairs=unlabelled)])
