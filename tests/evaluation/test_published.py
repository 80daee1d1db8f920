"""Published results: every row says where it comes from, and names are ours where the metric is."""

import pytest

from vtamiq.evaluation.published import known_answer, published_results
from vtamiq.images.iqms import IQMS, agreement_weights


def test_every_row_has_protocol_and_source():
    table = published_results()
    assert not table.duplicated(["database", "metric", "protocol", "source"]).any()
    assert table[["database", "metric", "protocol", "source", "srocc"]].notna().all().all()
    assert table["srocc"].between(0, 1).all()  # sources print absolute values


@pytest.mark.parametrize(
    ("database", "srocc", "krocc"),
    [
        ("tid2013", 0.6869, 0.4958),
        ("csiq", 0.8087, 0.5989),
        ("live", 0.8730, 0.6801),
        ("tid2008", 0.5245, 0.3696),
        ("kadid10k", 0.6757, 0.4876),
    ],
)
def test_known_answers(database, srocc, krocc):
    assert known_answer(database) == {"srocc": srocc, "krocc": krocc}


def test_live_is_published_with_its_old_scores():
    table = published_results("live")
    assert table["protocol"].str.endswith("old DMOS").all()
    assert not published_results("csiq")["protocol"].str.contains("DMOS").any()


def test_nothing_is_known_of_others():
    assert known_answer("pipal") is None
    assert published_results("pipal").empty


def test_names_are_those_of_our_metrics():
    table = published_results("tid2013").set_index("metric")
    assert set(IQMS) - set(table.index) == {"dss"}  # no source has it
    assert set(table.loc["fsimc", "srocc"]) == {0.8509, 0.851}
    assert set(table.loc["fsim", "srocc"]) == {0.8015, 0.801}


def test_agreement_weights_come_from_the_same_table():
    table = published_results("kadid10k").set_index("metric")
    raw = {}
    for name in agreement_weights():
        rows = table.loc[[name]]
        own = rows[rows["protocol"].str.contains("computed by piq")]
        srocc = (own if len(own) else rows)["srocc"].iloc[0]
        raw[name] = srocc / (1 - srocc**2)
    for name, weight in agreement_weights().items():
        assert weight == pytest.approx(raw[name] / sum(raw.values()))
