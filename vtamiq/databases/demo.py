"""Two small databases with SYNTHETIC labels, made on first use from photographs inside installed packages."""

import contextlib
import os
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image

from vtamiq.databases.schema import Database, DatabaseError
from vtamiq.databases.simulated import simulate_preferences
from vtamiq.databases.synthesis import Recipe, request_digest, synthesize
from vtamiq.databases.synthetic import load_synthetic, read_manifest
from vtamiq.images.iqms import CHEAP_IQMS
from vtamiq.images.reading import centre_crop, read_image


@dataclass(frozen=True)
class Photograph:
    """A photograph inside scikit-image, scikit-learn or Matplotlib."""

    name: str
    database: str
    subset: str
    loader: str  # "<package>:<name>"
    credit: str
    licence: str
    rows: tuple[int, int] | None = None  # the only ones to keep, so that a centre crop shows the subject
    reduce: int = 1  # both sides are averaged down by this before the centre is cropped
    views: int = 1  # crops in the demo database: the centre, or also top left and bottom right at full resolution

    def load(self) -> np.ndarray:
        """uint8 RGB (H, W, 3)."""
        package, _, name = self.loader.partition(":")
        return read_image(_package_image(package, name))[slice(*self.rows) if self.rows else slice(None)]

    def crops(self, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """The views of this photograph, (width, height) pixels each: name → uint8 RGB."""
        image = self.load()
        whole = np.asarray(Image.fromarray(image).reduce(self.reduce))
        corners = [image[: size[1], : size[0]], image[-size[1] :, -size[0] :]][: self.views - 1]
        parts = {f"{self.name}-{number}": corner for number, corner in enumerate(corners, start=2)}
        return {self.name: centre_crop(whole, size)} | parts


def _package_image(package: str, name: str) -> np.ndarray | Path:
    if package == "scikit-learn":
        from sklearn.datasets import load_sample_image  # slow to import, and only needed here

        return load_sample_image(name)
    if package == "matplotlib":
        return Path(get_sample_data(name, asfileobj=False))
    from skimage import data

    image = getattr(data, name)()
    return image[0] if isinstance(image, tuple) else image  # a stereo pair: left, right, disparity


# Contents that belong together are in one part: the two portraits, the three textures.
PHOTOGRAPHS = (
    Photograph("astronaut", "photos", "train", "scikit-image:astronaut", "NASA", "public domain", reduce=2, views=2),
    Photograph("coffee", "photos", "train", "scikit-image:coffee", "Rachel Michetti", "CC0", reduce=2, views=2),
    Photograph("rocket", "photos", "train", "scikit-image:rocket", "SpaceX", "public domain", reduce=2, views=2),
    Photograph("china", "photos", "train", "scikit-learn:china.jpg", "danielbuechele (flickr.com/photos/danielbuechele/"
               "6061409035)", "CC BY 2.0", reduce=2, views=2),
    Photograph("ihc", "photos", "train", "scikit-image:immunohistochemistry", "Center for Microscopy and "
               "Molecular Imaging", "no known copyright restrictions", reduce=2, views=2),
    Photograph("hopper", "photos", "train", "matplotlib:grace_hopper.jpg", "United States Navy",
               "none stated by Matplotlib", reduce=2, views=2),
    Photograph("camera", "photos", "train", "scikit-image:camera", "Lav Varshney", "CC0", rows=(16, 400), reduce=2,
               views=2),
    Photograph("flower", "photos", "val", "scikit-learn:flower.jpg", "vultilion (flickr.com/photos/vultilion/6056698931)",
               "CC BY 2.0", reduce=2),
    Photograph("hubble", "photos", "val", "scikit-image:hubble_deep_field", "NASA", "public domain", reduce=3),
    Photograph("chelsea", "photos", "test", "scikit-image:chelsea", "Stefan van der Walt", "CC0"),
    Photograph("retina", "photos", "test", "scikit-image:retina", "Mikael Häggström", "CC0", reduce=4),
    Photograph("motorcycle", "photos", "test", "scikit-image:stereo_motorcycle", "Scharstein and others, Middlebury "
               "stereo 2014", "none stated by scikit-image", reduce=2),
    Photograph("brick", "textures", "train", "scikit-image:brick", "CC0Textures", "CC0"),
    Photograph("grass", "textures", "train", "scikit-image:grass", "linolafett", "CC0"),
    Photograph("gravel", "textures", "train", "scikit-image:gravel", "CC0Textures", "CC0"),
    Photograph("coins", "textures", "val", "scikit-image:coins", "Brooklyn Museum", "no known copyright restrictions"),
    Photograph("cell", "textures", "test", "scikit-image:cell", "Paul Müller and others", "CC0", reduce=2),
    Photograph("moon", "textures", "test", "scikit-image:moon", "not stated", "none stated by scikit-image", reduce=2),
)  # fmt: skip

# Small, for eleven metrics on every pair; 192 pixels are enough for each of them, at one scale (as are 160 for the four).
# The textures are grey, which three colour types (4, 7 and 8) leave as they are: they keep the perfect score.
_DEMOS = {
    "demo": Recipe(size=(256, 192)),
    "smoke": Recipe(types=(1, 10, 11, 25), levels=(1, 3, 5), metrics=CHEAP_IQMS, size=(192, 160)),
}
_SMOKE_NAMES = ("astronaut", "coffee", "flower", "chelsea", "brick", "grass", "coins", "cell")
DEMO_NAMES = ("photos", "textures")


def demo_photographs(name: str | None = None) -> dict[str, np.ndarray]:
    """The photographs of a demo database (None: of all), name → uint8 RGB (H, W, 3), not yet cropped to one size."""
    photographs = PHOTOGRAPHS if name is None else _photographs_of(name)
    return {photo.name: photo.load() for photo in photographs}


def _photographs_of(name: str) -> list[Photograph]:
    if name not in DEMO_NAMES:
        raise DatabaseError(f"unknown demo database {name!r}; known: {', '.join(DEMO_NAMES)}")
    return [photo for photo in PHOTOGRAPHS if photo.database == name]


def demo_database(
    name: str = "photos",
    *,
    cache: str | os.PathLike[str] | None = None,
    preset: str = "demo",
    label: str = "consensus",
    workers: int | None = None,
    progress: bool = True,
    keep: bool = True,
) -> Database:
    """A small database with SYNTHETIC labels, made from photographs inside installed packages on first use.

    Args:
        name: "photos" (twelve photographs) or "textures" (six grey pictures of other things, for tests across databases).
        cache: folder to keep it in, see `cache_folder`; every recipe has a folder of its own there.
        preset: "demo" (25 distortions at 5 levels, eleven metrics) or "smoke" (four photographs, four metrics: seconds).
        label: what the scores are, see `load_synthetic`.
        keep: False leaves nothing in the cache that is not there yet: its images are gone afterwards, its table is not.
        workers, progress: see `synthesize`; by default "smoke" works in this process.

    Returns:
        The database with a distributed split whose parts share no photograph, and with SIMULATED preferences.
    """
    if preset not in _DEMOS:
        raise DatabaseError(f"unknown preset {preset!r} of a demo database; known: demo, smoke")
    recipe = _DEMOS[preset]
    photographs = _photographs_of(name)
    if preset == "smoke":
        photographs = [replace(photo, views=1) for photo in photographs if photo.name in _SMOKE_NAMES]
        workers = 0 if workers is None else workers  # starting processes would take longer than the work
    images, subsets, contents = {}, {}, {}
    for photo in photographs:
        views = photo.crops(recipe.size)
        images |= views
        subsets |= dict.fromkeys(views, photo.subset)
        contents |= dict.fromkeys(views, photo.name)
    digest = request_digest(images, recipe, subsets, contents)
    folder = cache_folder(cache) / "demo" / f"{preset}-{digest}" / name
    options = {**asdict(recipe), "subsets": subsets, "contents": contents, "workers": workers, "progress": progress}
    with contextlib.ExitStack() as stack:
        if not keep and not (read_manifest(folder) or {}).get("complete"):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / name
        database = synthesize(images, folder, **options)
        if label != "consensus":
            database = load_synthetic(database.root, label=label, check_images=False)
        return replace(database, preferences=simulate_preferences(database))


def cache_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """`cache` if given, else `$VTAMIQ_CACHE`, else `vtamiq` in the user's cache folder (`$XDG_CACHE_HOME`, ~/.cache)."""
    chosen = cache or os.environ.get("VTAMIQ_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vtamiq"
