"""Files that appear complete or not at all."""

import pytest

from vtamiq.files import replacing, write_text


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
