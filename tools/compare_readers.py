"""Read every file of a folder twice, by this package and by an independent reader, and list where they disagree.

    python tools/compare_readers.py FOLDER --with opencv --out readers.csv

Each row of the CSV is a file: its answer is `same` (differences up to --tolerance, for decoders of JPEG round in different
ways), `differs` (the largest and the mean difference of 8-bit samples are given), `size` (the readers see other sizes),
`refused` (here only, with the reason), `other refused` or `both refused`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from vtamiq.images.reading import WHITE, ImageError, read_image


def by_opencv(path: Path) -> np.ndarray:
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError("OpenCV cannot read it")
    if image.ndim == 3:
        image = image[:, :, [2, 1, 0, 3][: image.shape[2]]]
    return image


def by_imageio(path: Path) -> np.ndarray:
    import imageio.v3

    return imageio.v3.imread(path, index=0)


def by_tifffile(path: Path) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        image, photometric = page.asarray(), page.photometric
        if photometric == tifffile.PHOTOMETRIC.PALETTE:
            narrow = page.colormap.max() < 256
            return page.colormap.T[image].astype(np.uint8 if narrow else np.uint16)
        if page.planarconfig == 2 and image.ndim == 3:
            image = image.transpose(1, 2, 0)
        if photometric not in (0, 1, 2):
            raise ValueError(f"tifffile leaves {photometric.name} as it is")
        image = image if photometric else np.iinfo(image.dtype).max - image
        bits = page.bitspersample
        return image if image.dtype.kind != "u" or bits in (8, 16) else image / (2**bits - 1)


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    "opencv": by_opencv, "imageio": by_imageio, "tifffile": by_tifffile,
}  # fmt: skip


def to_rgb(image: np.ndarray) -> np.ndarray:
    """8-bit RGB over white of another reader's samples, by plain arithmetic."""
    values = image.astype(float).reshape(*image.shape[:2], -1)
    if image.dtype.kind in "iu":
        values = np.floor(values * 255 / np.iinfo(image.dtype).max + 0.5)
    elif image.dtype.kind == "f":
        values = np.rint(values * 255)
    else:
        values *= 255
    if values.shape[2] in (2, 4):
        alpha = values[:, :, -1:] / 255
        values = np.floor(values[:, :, :-1] * alpha + WHITE[0] * (1 - alpha) + 0.5)
    return np.broadcast_to(values[:, :, :3], (*values.shape[:2], 3))


def compare(path: Path, other: Callable[[Path], np.ndarray], tolerance: float) -> dict[str, object]:
    """One row of the table; `tolerance` is the largest mean difference of 8-bit samples that counts as the same."""
    ours = theirs = reason = None
    try:
        ours = read_image(path)
    except ImageError as error:
        reason = str(error).replace(str(path), "it")
    try:
        theirs = to_rgb(other(path))
    except Exception as error:
        reason = reason or f"{type(error).__name__}: {error}"
    row = {"answer": "both refused", "largest": None, "mean": None, "reason": reason}
    if ours is None or theirs is None:
        return row | {
            "answer": ["both refused", "other refused", "refused"][2 * (theirs is not None) + (ours is not None)]
        }
    if ours.shape != theirs.shape:
        return row | {"answer": "size", "reason": f"here {ours.shape[1::-1]}, there {theirs.shape[1::-1]}"}
    difference = np.abs(ours - theirs)
    row |= {"largest": difference.max(), "mean": difference.mean().round(3)}
    return row | {"answer": "same" if row["mean"] <= tolerance else "differs"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--with", dest="reader", choices=READERS, default="imageio", help="the independent reader")
    parser.add_argument("--out", type=Path, help="CSV to write; without: rows that are not `same` are printed")
    parser.add_argument("--tolerance", type=float, default=1.0, help="mean difference that counts as the same")
    arguments = parser.parse_args()
    paths = sorted(path for path in arguments.folder.rglob("*") if path.is_file())
    rows = [
        {"file": str(path.relative_to(arguments.folder))}
        | compare(path, READERS[arguments.reader], arguments.tolerance)
        for path in paths
    ]
    table = pd.DataFrame(rows)
    if arguments.out:
        table.to_csv(arguments.out, index=False)
    else:
        print(table[table["answer"] != "same"].to_csv(index=False), end="")
    print(table["answer"].value_counts().to_string())


if __name__ == "__main__":
    main()
