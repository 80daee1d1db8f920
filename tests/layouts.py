"""The layouts of real databases, with their real labels and names but small images.

Each `build_*` makes a complete copy below `root` from the tables in `tests/data/labels`; `references` restricts it to
some
of them. Images are one file per size under many names unless a function makes them.
"""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
from PIL import Image
from scipy.io import savemat

LABELS = Path(__file__).parent / "data" / "labels"
SIDE = 16
LIVE_FOLDERS = ("jp2k", "jpeg", "wn", "gblur", "fastfading")
LIVE_SHRINK = 8  # images have an eighth of the real width and height, so that sizes still tell references apart
CSIQ_FILES = {  # dst_type in the labels → folder, token in file names
    "noise": ("awgn", "AWGN"),
    "jpeg": ("jpeg", "JPEG"),
    "jpeg 2000": ("jpeg2000", "jpeg2000"),
    "fnoise": ("fnoise", "fnoise"),
    "blur": ("blur", "BLUR"),
    "contrast": ("contrast", "contrast"),
}

# (reference, type, level, score) → uint8 RGB (H, W, 3); type and level are 0 and the score is None for the reference itself
MakeImage = Callable[[str, int, int, float | None], np.ndarray]


def read_labels(name: str) -> pd.DataFrame:
    """One of the real tables; all columns as text, as published."""
    return pd.read_csv(LABELS / f"{name}.csv.xz", dtype=str)


def noisy(reference, type, level, score):
    """For `image`: the lower the score, the more noise, so that PSNR orders all pictures as people do."""
    rng = np.random.default_rng(int(reference[1:]))
    image, noise = rng.integers(96, 160, (16, 16, 3)), rng.standard_normal((16, 16, 3))
    strength = 0 if score is None else 32 - 4 * score
    return np.clip(np.rint(image + strength * noise), 0, 255).astype(np.uint8)


def build_live(root: Path) -> pd.DataFrame:
    """LIVE with both score files and an `info.txt` per folder. Returns the table it was built from, with numbers."""
    table = pd.read_csv(LABELS / "live.csv.xz")
    cells = np.empty((1, len(table)), dtype=object)
    cells[0] = table["ref"]
    arrays = {name: table[[name]].T.to_numpy(float) for name in ("dmos", "dmos_new", "dmos_std", "org")}
    root.mkdir(parents=True, exist_ok=True)
    savemat(root / "refnames_all.mat", {"refnames_all": cells})
    savemat(root / "dmos.mat", {"dmos": arrays["dmos"], "orgs": arrays["org"]})
    realigned = {"dmos_new": arrays["dmos_new"], "dmos_std": arrays["dmos_std"], "orgs": arrays["org"]}
    savemat(root / "dmos_realigned.mat", realigned)
    (root / "readme.txt").write_text("stands for the readme of the database\n")
    place = _Placer(root)
    for row in table.itertuples():
        size = (row.width // LIVE_SHRINK, row.height // LIVE_SHRINK)
        place(f"refimgs/{row.ref}", size)
        place(f"{row.folder}/img{row.index}.bmp", size)
    for folder, rows in table.groupby("folder"):
        lines = [f"{row.ref} img{row.index}.bmp {row.dmos / 100:.4f}" for row in rows.sort_values("ref").itertuples()]
        (root / folder / "info.txt").write_text("\n".join(lines) + "\n")
    return table


def build_csiq(root: Path, *, references: Iterable[str] | None = None, workbook: bool = True) -> pd.DataFrame:
    """CSIQ with its workbook or, instead, the tab-separated export. Returns the table it was built from."""
    table = _chosen(read_labels("csiq"), "image", references)
    place = _Placer(root)
    for row in table.itertuples():
        folder, token = CSIQ_FILES[row.dst_type]
        place(f"src_imgs/{row.image}.png")
        place(f"dst_imgs/{folder}/{row.image}.{token}.{row.dst_lev}.png")
    if workbook:
        write_csiq_workbook(root / "csiq.DMOS.xlsx", table)
    else:
        rows = table.assign(dst_type=table["dst_type"].str.replace(" ", ""))
        rows.to_csv(root / "csiq_dmos.txt", sep="\t", header=False, index=False)
    return table


def write_csiq_workbook(path: Path, table: pd.DataFrame) -> None:
    """Labels in the cells of the real workbook: header in row 4, columns D to I, another sheet before and after."""
    book = openpyxl.Workbook()
    book.active.title = "raw"
    book.active["A1"] = "#REF!"
    sheet = book.create_sheet("all_by_image")
    sheet["D2"] = "any remark"
    for at, row in enumerate([table.columns.tolist(), *table.to_numpy().tolist()], start=4):
        for column, value in zip("DEFGHI", row, strict=True):
            sheet[f"{column}{at}"] = _cell(value)
    other = book.create_sheet("all_by_distortion")
    other["D4"], other["F4"], other["G4"], other["L4"] = "dst_idx", "image", "dst_lev", "dmos"
    book.save(path)


def build_tid2008(root: Path, *, references: Iterable[str] | None = None) -> pd.DataFrame:
    """TID2008, without `mos_std.txt`. Returns the table it was built from."""
    table = _tid_table("tid2008", references)
    _build_tid(root, table, table["disk_name"], None)
    return table


def build_tid2013(
    root: Path, image: MakeImage | None = None, *, references: Iterable[str] | None = None
) -> pd.DataFrame:
    """TID2013; `image` makes the images. `references` are "01" to "25". Returns the table it was built from."""
    table = _tid_table("tid2013", references)
    _build_tid(root, table, table["label_name"], image)
    write_lines(root / "mos_std.txt", table["std"])
    return table


def build_kadid10k(root: Path, *, references: Iterable[str] | None = None) -> pd.DataFrame:
    """KADID-10k; the column `var` is invented, but in its first two rows. Returns the table it was built from."""
    table = read_labels("kadid10k")
    table["ref_img"] = table["dist_img"].str[:3] + ".png"
    table["var"] = [f"{0.4 + i % 7 / 10:.3f}" for i in range(len(table))]
    table.loc[:1, "var"] = ["0.496", "0.869"]
    table = _chosen(table, "ref_img", references)[["dist_img", "ref_img", "dmos", "var"]]
    place = _Placer(root)
    for row in table.itertuples():
        place(f"images/{row.ref_img}")
        place(f"images/{row.dist_img}")
    table.to_csv(root / "dmos.csv", index=False)
    return table


def write_lines(path: Path, lines: Iterable[str], end: str = "\r\n") -> None:
    """A text file with CRLF, as the label files of Tampere have it; an existing file is replaced, not written into."""
    path.unlink(missing_ok=True)
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode())


def copy_layout(source: Path, target: Path) -> Path:
    """A copy by hard links where possible: files in it must be replaced, not written into. Returns `target`."""
    shutil.copytree(source, target, copy_function=_link)
    return target


def _tid_table(name: str, references: Iterable[str] | None) -> pd.DataFrame:
    table = read_labels(name)
    return _chosen(table.assign(number=table["label_name"].str[1:3]), "number", references)


def _build_tid(root: Path, table: pd.DataFrame, names: pd.Series, image: MakeImage | None) -> None:
    place = _Placer(root)
    for number in table["number"].unique():
        name = "i25.bmp" if number == "25" else f"I{number}.BMP"
        place(f"reference_images/{name}", image=image and image(f"I{number}", 0, 0, None))
    for row, name in zip(table.itertuples(), names, strict=True):
        _, type, level = name.split(".")[0].split("_")
        made = image and image(f"I{row.number}", int(type), int(level), float(row.mos))
        place(f"distorted_images/{name}", image=made)
    write_lines(root / "mos_with_names.txt", table["mos"] + " " + table["label_name"])
    write_lines(root / "mos.txt", table["mos"])


def _chosen(table: pd.DataFrame, column: str, values: Iterable[str] | None) -> pd.DataFrame:
    return table if values is None else table[table[column].isin(list(values))].reset_index(drop=True)


def _cell(text: str) -> str | int | float:
    """As a spreadsheet holds it: the image 1600 is a number."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text


class _Placer:
    """Puts images under a root: one file per ending and size, linked to all names that need it, or those given."""

    def __init__(self, root: Path):
        self.root = root
        self.made: dict[tuple[str, tuple[int, int]], Path] = {}

    def __call__(self, name: str, size: tuple[int, int] = (SIDE, SIDE), *, image: np.ndarray | None = None) -> None:
        path = self.root / name
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if image is not None:
            Image.fromarray(image).save(path)
            return
        key = (path.suffix.lower(), size)
        if key in self.made:
            _link(self.made[key], path)
        else:
            Image.effect_noise(size, 60).convert("RGB").save(path)
            self.made[key] = path


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # file systems without links, or too many of them
        shutil.copyfile(source, target)
