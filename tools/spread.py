"""How far one draw of patches moves a score, by kind of distortion: codecs at several qualities, and KADID's 25 types.

    python -m tools.spread --out figures/spread_by_kind.csv        the photographs that come with scikit-image and others
    python -m tools.spread --images FOLDER --out FILE.csv --seeds 12

Each pair is scored with default settings and `--seeds` seeds. Its spread is the standard deviation (ddof 1) over seeds; a
share is that of the range of mean scores over all pairs. A step of a codec's ladder is in order if, at one seed, the lower
quality scores worse; only steps of 0.5 dB PSNR or more count.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from vtamiq.databases.demo import demo_photographs
from vtamiq.images.distortions import DISTORTIONS, distort
from vtamiq.images.iqms import psnr
from vtamiq.images.reading import read_image
from vtamiq.model.inference import load_default
from vtamiq.scoring.scores import score
from vtamiq.utils.files import list_images, write_table
from vtamiq.utils.shell import answer, positive

CODECS = {  # format and quality setting of Pillow, best quality first
    "JPEG": ("JPEG", "quality", (90, 70, 50, 30, 20, 10, 5)),
    "WebP": ("WEBP", "quality", (90, 70, 50, 30, 20, 10, 3)),
    "AVIF": ("AVIF", "quality", (80, 65, 50, 40, 30, 20, 10)),
    "JPEG 2000": ("JPEG2000", "quality_layers", ([10], [20], [40], [60], [80], [120], [200])),
}
LEVELS = (1, 3, 5)
SIDE = 512  # longest side of the photographs


def compressed(image: np.ndarray, codec: str) -> list[np.ndarray]:
    """The image (H, W, 3) uint8 after a codec, one for each quality, best first."""
    format, setting, values = CODECS[codec]
    ladder = []
    for value in values:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format=format, **{setting: value})
        ladder.append(np.asarray(Image.open(file).convert("RGB")))
    return ladder


def pairs_of(reference: np.ndarray) -> Iterator[tuple[str, int, np.ndarray]]:
    """(kind, number of the step, distorted image) for one reference."""
    for codec in CODECS:
        yield from ((codec, step, image) for step, image in enumerate(compressed(reference, codec)))
    for type, distortion in DISTORTIONS.items():
        yield from ((distortion.name, level, distort(reference, type, level)) for level in LEVELS)


def measure(references: dict[str, np.ndarray], seeds: int) -> pd.DataFrame:
    """A row for each pair and seed: `reference`, `kind`, `step`, `psnr`, `seed`, `q`."""
    model, rows = load_default(), []
    for name, reference in tqdm(references.items(), unit="reference"):
        made = list(pairs_of(reference))
        images = [image for _, _, image in made]
        for seed in range(seeds):
            q = score(reference, images, model=model, seed=seed, batch_size=4)
            rows += [
                {
                    "reference": name,
                    "kind": kind,
                    "step": step,
                    "psnr": psnr(reference, image),
                    "seed": seed,
                    "q": value,
                }
                for (kind, step, image), value in zip(made, q, strict=True)
            ]
    return pd.DataFrame(rows)


def spread_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each kind: pairs, mean score, median and largest spread, these as shares, and steps in order."""
    pairs = rows.groupby(["kind", "reference", "step"])["q"].agg(["mean", "std"]).reset_index()
    extent = pairs["mean"].max() - pairs["mean"].min()
    table = pairs.groupby("kind", sort=False).agg(
        pairs=("mean", "size"), mean=("mean", "mean"), median_std=("std", "median"), worst_std=("std", "max")
    )
    table["median_share"], table["worst_share"] = table["median_std"] / extent, table["worst_std"] / extent
    table["in_order"] = pd.Series({codec: ordered_share(rows[rows["kind"] == codec]) for codec in CODECS})
    return table.assign(range=extent, seeds=rows["seed"].nunique()).reset_index()


def ordered_share(rows: pd.DataFrame) -> float:
    """Share of a codec's steps of at least 0.5 dB that the scores of one seed put in order."""
    right = []
    for _, ladder in rows.groupby(["reference", "seed"]):
        steps = ladder.sort_values("step")[["psnr", "q"]].itertuples(index=False)
        right += [worse.q > better.q for better, worse in pairwise(steps) if better.psnr - worse.psnr >= 0.5]
    return float(np.mean(right)) if right else np.nan


def small(image: np.ndarray) -> np.ndarray:
    """The image, averaged down to at most `SIDE` pixels a side."""
    return np.asarray(Image.fromarray(image).reduce(-(-max(image.shape[:2]) // SIDE)))


def run(arguments: argparse.Namespace) -> int:
    """Measure and write both tables."""
    if arguments.images:
        references = {file.stem: small(read_image(file)) for file in list_images(arguments.images)}
    else:
        references = {name: small(image) for name, image in demo_photographs("photos").items()}
    table = spread_table(measure(references, arguments.seeds))
    write_table(table.round(5), arguments.out)
    print(table.round(4).to_string(index=False))
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of `python -m tools.spread`."""
    top = argparse.ArgumentParser(prog="python -m tools.spread", description=__doc__.splitlines()[0])
    top.add_argument("--images", metavar="DIR", help="photographs (default: those of the demo database)")
    top.add_argument("--out", required=True, metavar="FILE.csv", help="table to write")
    top.add_argument("--seeds", type=positive, default=12, metavar="N", help="draws of each pair (default: 12)")
    top.set_defaults(run=run, refuse=top.error)
    return top


if __name__ == "__main__":
    sys.exit(answer(parser(), None, "tools.spread"))
