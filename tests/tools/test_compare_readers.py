"""The comparison of readers finds files that are the same, that differ and that one of the two refuses."""

import numpy as np
import pandas as pd
import tifffile
from PIL import Image

from tools import compare_readers

RGBA = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)


def test_answers(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    Image.fromarray(RGBA).save(folder / "alpha.png")
    Image.fromarray(RGBA[:, :, 0]).save(folder / "below" / "grey.png")
    exif = Image.Exif()
    exif[274] = 6  # which imageio does not heed
    Image.fromarray(RGBA[:, :, :3]).save(folder / "turned.jpg", exif=exif)
    tifffile.imwrite(folder / "float.tif", RGBA[:, :, :3] / np.float32(255), photometric="rgb")
    (folder / "text.txt").write_text("no image")
    out = tmp_path / "readers.csv"
    monkeypatch.setattr("sys.argv", ["compare_readers", str(folder), "--with", "imageio", "--out", str(out)])
    compare_readers.main()
    answers = pd.read_csv(out).set_index("file")["answer"].to_dict()
    assert answers == {"alpha.png": "same", "below/grey.png": "same", "turned.jpg": "size", "float.tif": "refused",
                       "text.txt": "both refused"}  # fmt: skip
    assert "both refused" in capsys.readouterr().out


def test_tifffile_agrees(tmp_path):
    for order in "<>":
        values = (RGBA[:, :, :3].astype(f"{order}u2") * 257).transpose(2, 0, 1)
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", planarconfig="separate", byteorder=order)
        row = compare_readers.compare(tmp_path / "a.tif", compare_readers.by_tifffile, tolerance=0)
        assert (row["answer"], row["largest"]) == ("same", 0)
