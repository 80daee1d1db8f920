"""Files that appear complete or not at all."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest

from tests.small import files_up_to
from vtamiq.utils.files import (
    clear_unfinished,
    holding,
    list_folder,
    list_images,
    read_json,
    read_table,
    replacing,
    write_table,
    write_text,
)


def test_the_old_file_stays_when_the_block_fails(tmp_path):
    path = tmp_path / "new folder" / "file"
    with replacing(path) as temporary:
        temporary.write_text("old")
        assert not path.exists()

    def fail_half_way():
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_text_is_the_same_on_every_system(tmp_path):
    write_text(tmp_path / "a" / "t.txt", "ä\nb\n")
    write_text(str(tmp_path / "a" / "t.txt"), "ö\nb\n")
    assert (tmp_path / "a" / "t.txt").read_bytes() == "ö\nb\n".encode()
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_what_a_killed_process_left_is_removed(tmp_path):
    code = f"""
import os
from vtamiq.utils.files import replacing
with replacing({str(tmp_path / "run" / "part" / "file")!r}) as temporary:
    temporary.write_text("half")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    (left,) = (tmp_path / "run" / "part").iterdir()
    (tmp_path / "run" / ".mine-1.tmp").write_text("of the user")
    clear_unfinished(tmp_path / "run")
    assert not left.exists()
    assert (tmp_path / "run" / ".mine-1.tmp").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_a_file_is_held_by_one_process(tmp_path):
    path = tmp_path / "new" / "lock"
    code = f"from vtamiq.utils.files import holding\nwith holding({str(path)!r}): print('held', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match="lock is held by another process"), holding(path):
            pass
    finally:
        other.kill()
        other.communicate()
    with holding(path):  # it is let go by whatever ends the process
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_who_asks_for_a_held_folder_waits_until_its_holder_is_gone(tmp_path, caplog):
    folder, got = tmp_path / "new" / "folder", threading.Event()
    folder.mkdir(parents=True)
    code = f"""
from vtamiq.utils.files import holding
with holding({str(folder)!r}, wait=True):
    print("held", flush=True)
    input()
"""

    def wait():
        with holding(folder, wait=True):
            got.set()

    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    thread = threading.Thread(target=wait)
    try:
        assert other.stdout.readline() == b"held\n"
        thread.start()
        assert not got.wait(0.2)
    finally:
        other.kill()
        other.communicate()
    assert got.wait(10)
    thread.join()
    assert caplog.messages == ["folder is held by another process; waiting for that"]
    assert list(folder.iterdir()) == []


def test_a_folder_is_given_to_the_block_where_there_are_no_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("vtamiq.utils.files.fcntl", None)
    with holding(tmp_path), holding(tmp_path, wait=True):
        assert list(tmp_path.iterdir()) == []


def test_images_of_a_folder_are_regular_files_that_are_not_hidden(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", "._a.png", "Thumbs.db", "in/c.bmp", ".hidden/d.png", "e.png/f.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        (tmp_path / "loop").symlink_to(tmp_path)
    names = [entry.name for entry in list_folder(tmp_path)]
    assert names == sorted({"a.JPG", "b.png", "e.png", "in", "notes.txt"} | ({"loop", "pipe.png"} & {*names}))
    assert list_images(tmp_path) == [tmp_path / "a.JPG", tmp_path / "b.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits there")
@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.tex", "t.txt"])
def test_a_full_disk_names_the_file(tmp_path, name):
    write = write_text if name == "t.txt" else lambda path, text: write_table(pd.DataFrame({"a": list(text)}), path)
    text = "".join(map(chr, range(10_000, 20_000)))
    with files_up_to(4000), pytest.raises(OSError, match="File too large") as error:
        write(tmp_path / name, text)
    assert error.value.filename == str(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", '{"n": NaN}', '{"n": 1e400}', '{"n": -Infinity}', '{"n": "1"}', '{"n": true}',
             '{"m": 1}', '{"n": ' + 5000 * "9" + "}", '{"n": 1, "x": ' + 100_000 * "[", "\udcff"], ids=range(13),
)  # fmt: skip
def test_a_damaged_json_file_is_named(tmp_path, text):
    path = tmp_path / "f.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"f.json is damaged \(.*\); throw it away"):
        read_json(path, "throw it away", n=int | None)
    path.write_text('{"n": null, "x": [1.5]}')
    assert read_json(path, n=int | None) == {"n": None, "x": [1.5]}


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_damaged_table_is_named(tmp_path, name):
    path = write_table(pd.DataFrame({"a": [1, 2]}), tmp_path / name)
    assert read_table(path, ["a"])["a"].tolist() == [1, 2]
    for content in (b"", b"\xff\xfe", b"b,c\n1,2\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is damaged \(.*\); remove it and run again") as error:
            read_table(path, ["a"])
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError):
        read_table(Path("none.csv"))
