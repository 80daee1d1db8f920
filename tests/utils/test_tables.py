"""Tables of text: every form of CSV that programs write is read, every other one refused by line."""

import os
import time

import pandas as pd
import pytest

import vtamiq.utils.tables
from vtamiq.utils.tables import numbers_where_exact, read_table

PAIRS = ("reference", "distorted")


@pytest.fixture
def read(tmp_path):
    """Function of the content of `labels.csv`, and of arguments: what is read from it."""

    def call(content, columns=("image", "score"), **options):
        (tmp_path / "labels.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_table(tmp_path / "labels.csv", columns, name="labels.csv", **options)

    return call


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "BOM"])
def test_line_ends_byte_order_marks_and_blank_rows(read, start, end):
    lines = ["", "image, Score ,more", "a.png,1.5,x", " ", '"b,c.png", 2 ,y', ",,", "é.png,3,", ""]
    table, problems = read(start + end.join(lines), ("score", "image"))
    assert table.to_dict("list") == {"score": ["1.5", "2", "3"], "image": ["a.png", "b,c.png", "é.png"]}
    assert (table.index.name, table.index.tolist(), problems) == ("line", [3, 5, 7], {})


def test_blank_columns_at_the_end_and_those_without_a_name_are_passed_over(read):
    table, problems = read(
        ",Note,Image,score,,\n0,x,a,1,,\n1,,b,2\n2,y,c,3,,,,\n3,z,d,4,,5", optional=("level", "note")
    )
    assert table.to_numpy().tolist() == [["a", "1", "x"], ["b", "2", ""], ["c", "3", "y"], ["", "", ""]]
    assert list(table) == ["image", "score", "note"]
    assert problems == {5: "4 fields expected, found 6"}


def test_other_columns_are_kept_if_asked(read):
    table, _ = read("Note,IMAGE,score\nx,a,1\n", ("image",), others=True)
    assert table.to_dict("list") == {"image": ["a"], "Note": ["x"], "score": ["1"]}


@pytest.mark.parametrize("header", ["Reference,DISTORTED,x", "ref_path,Dist_Img,x", "reference,dist,ref"])
def test_columns_are_found_by_any_letter_case_and_alias(read, header):
    table, _ = read(f"{header}\n" + r"img\a.png,b\c\d.png,e", PAIRS)
    assert table.to_dict("list") == {"reference": ["img/a.png"], "distorted": ["b/c/d.png"]}


def test_tables_without_a_header_or_with_a_foreign_one(read):
    table, _ = read("5.5 i01.bmp\r\n\t4  i02.bmp\r\n", ("mos", "name"), header="none", separator=None)
    assert table.to_dict("list") == {"mos": ["5.5", "4"], "name": ["i01.bmp", "i02.bmp"]}
    assert table.index.tolist() == [1, 2]
    table, _ = read("Bild;Wert\na;1\n", header="foreign", separator=";")
    assert table.loc[2].tolist() == ["a", "1"]
    with pytest.raises(ValueError, match=r"labels\.csv:1: a header was expected, found numbers"):
        read("a,1\nb,2\n", header="foreign")


def test_quoted_fields_have_line_ends(read):
    table, problems = read('image,score,note\na,1,"two\r\n""lines"""\nb,2,\nc,"3\n\n"\nd,4,x', others=True)
    assert table["note"].tolist() == ['two\n"lines"', "", "", "", "x"]
    assert table.index.tolist() == [2, 4, 5, 7, 8]
    assert problems == dict.fromkeys((5, 7), "a quotation mark is not closed")


@pytest.mark.parametrize("bad", ['"b,2', 'b,"2', 'b"2,"3', 'b"b,"' + "x" * 200_000])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_quotation_mark_that_is_not_closed_spoils_its_own_line_only(read, bad, place):
    lines = ["a,1", '"c, ""d""",3']
    lines.insert(place, bad)
    table, problems = read("\n".join(["image,score", *lines, ""]))
    assert table.drop(place + 2).to_numpy().tolist() == [["a", "1"], ['c, "d"', "3"]]
    assert table.loc[place + 2].tolist() == ["", ""]
    assert problems == {place + 2: "a quotation mark is not closed"}


def test_many_rows_in_blocks(read, monkeypatch):
    monkeypatch.setattr(vtamiq.utils.tables, "_BLOCK", 7)
    table, problems = read("image,score\n" + "".join(f"{n}.png,{n}\n" for n in range(21)) + "x\n")
    assert table["image"].tolist() == [f"{n}.png" for n in range(21)] + [""]
    assert problems == {23: "2 fields expected, found 1"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "labels.csv is empty"),
        (b"\n \n", "labels.csv is empty"),
        (b"image,score\n", "no rows below its header"),
        (b"image,scores\na,1", r"labels.csv:1: no column score; did you mean `scores`\?; the header is image, scores"),
        (b"image,score,score\na,1,2", r"labels.csv:1: more than one column score; the header is image, score, score"),
        (b"image,mos,dmos\na,1,2", r"labels.csv:1: more than one column score \(mos and dmos\)"),
        (b"image,score\na,1\n\xff,2\n", r"labels.csv:3: not UTF-8"),
        (b"image,score\ra,1\r\xff,2\r", r"labels.csv:3: not UTF-8"),
        ("image,score\na,1\n".encode("utf-16"), r"labels.csv:1: not UTF-8"),
        ("image,score\na,1\n".encode("utf-16-le"), r"labels.csv:1: not UTF-8"),
    ],
)
def test_bad_tables_are_refused_by_name_and_line(read, content, message):
    with pytest.raises(ValueError, match=message):
        read(content)


def test_the_same_column_cannot_be_two(read):
    with pytest.raises(ValueError, match=r"labels\.csv:1: ref cannot be both reference and ref"):
        read("ref,x\n1,2\n", ("reference", "ref"))


def test_thousands_of_columns_take_no_time(read):
    names = [f"c{n}" for n in range(10_000)]
    start = time.process_time()
    table, _ = read(",".join(["image", "score", *names]) + "\n" + ",".join(["1"] * 10_002), others=True)
    assert table.shape == (1, 10_002)
    with pytest.raises(ValueError, match=r"more than one column c9999; the header is image, c0, .* c18 and 9982 more"):
        read(",".join(["image", *names, "c9999"]) + "\n")
    assert time.process_time() - start < 3  # about 0.5


def test_only_regular_files_of_some_size_are_read(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "labels.csv", PAIRS)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.csv")
        for path in (tmp_path / "pipe.csv", "/dev/zero", tmp_path):
            with pytest.raises(ValueError, match=f"{path} is no regular file"):
                read_table(path, PAIRS)
    (tmp_path / "labels.csv").write_text("reference,distorted\na,b\n")
    monkeypatch.setattr(vtamiq.utils.tables, "MAX_BYTES", 20)
    with pytest.raises(ValueError, match=r"labels\.csv has 24 bytes; tables of more than 20 are not read"):
        read_table(tmp_path / "labels.csv", PAIRS)


def test_names_of_digits_are_no_numbers():
    for text, expected in (
        (["007", "010"], ["007", "010"]), (["1", "2"], [1, 2]), (["1.5", "2.25"], [1.5, 2.25]), (["1", "x"], ["1", "x"]),
        (["1", ""], ["1", ""]),
    ):  # fmt: skip
        assert numbers_where_exact(pd.Series(text, dtype="str")).tolist() == expected
