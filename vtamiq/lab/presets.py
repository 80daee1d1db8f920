"""The three sizes at which the notebooks run, and where each reads and writes.

`smoke`: seconds, for tests. `demo`: minutes on two CPU cores, with photographs from Python packages. `full`: the
authors' network (2024 state) on a database of your own, for a GPU.
"""

import logging
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from vtamiq.caps import CAPS
from vtamiq.databases.demo import demo_database
from vtamiq.databases.loading import load_database, load_from_text
from vtamiq.databases.schema import Database, DatabaseError
from vtamiq.databases.seen import unseen
from vtamiq.databases.splits import worth_testing
from vtamiq.lab.candidates import Candidate, load_candidate, tell_apart
from vtamiq.model.config import VTAMIQConfig
from vtamiq.model.network import VTAMIQ
from vtamiq.plots.style import save_figure
from vtamiq.training.chain import Data
from vtamiq.training.run import COMPUTES
from vtamiq.training.stage import Optimizer, PreferenceLoss, Runtime, Schedule, ScoreLoss, Stage
from vtamiq.utils.configs import did_you_mean, plain
from vtamiq.utils.digests import digest, digest_file
from vtamiq.utils.files import write_table, write_text

log = logging.getLogger(__name__)

_VERSIONS_OF = ("vtamiq", "torch", "timm", "lightning", "piq", "numpy", "pandas", "matplotlib")


@dataclass(frozen=True)
class Preset:
    """Network and training of one size."""

    model: VTAMIQConfig
    weak: Stage  # weak pre-training on synthetic labels
    preferences: Stage
    fine_tuning: Stage
    ablation: Stage  # of the many small trainings that are compared with each other
    simulate: int  # preferences for each reference, where nobody was asked
    repeats: int  # of fine-tuning, over splits and seeds
    ratios: tuple[float, ...] = (0.5, 0.25, 0.25)  # of these random splits: train, validation, test


_TINY = VTAMIQConfig(backbone="vit_tiny_patch16_384", zero_anchor=True)


def _smoke() -> Preset:
    small = {"width": 32, "num_heads": 2, "num_blocks": 2, "num_registers": 1, "num_groups": 1, "blocks_per_group": 1}
    base = Stage(caps=CAPS(num_patches=32), test_patches=32, num_draws=2, epochs=1, batch_size=8)
    return Preset(
        model=replace(_TINY, **small, reduction=4),
        weak=replace(base, name="weak_pretraining", epochs=2, optimizer=Optimizer(lr=1e-3)),
        preferences=replace(base, name="preferences", loss=PreferenceLoss(), optimizer=Optimizer(lr=1e-4)),
        fine_tuning=replace(base, optimizer=Optimizer(lr=3e-4)),
        ablation=replace(base, name="ablation", num_draws=1, optimizer=Optimizer(lr=1e-3)),
        simulate=8,
        repeats=2,
    )


def _demo() -> Preset:
    small = {"width": 96, "num_heads": 3, "num_blocks": 3, "num_registers": 4, "num_groups": 2, "blocks_per_group": 2}
    schedule = Schedule("cosine", warmup=0.1)
    base = Stage(caps=CAPS(num_patches=32), test_patches=32, schedule=schedule, runtime=Runtime(1, in_memory=True))
    scores = replace(base, batch_size=40, distorted_per_reference=5, loss=ScoreLoss(mae_weight=1.0))
    start = replace(scores, optimizer=Optimizer("muon", lr=1e-3, momentum=0.95))  # from random weights
    return Preset(
        model=replace(_TINY, **small),
        weak=replace(start, name="weak_pretraining", epochs=48, batch_size=80, schedule=replace(schedule, warmup=0.05)),
        preferences=replace(base, name="preferences", loss=PreferenceLoss(), epochs=4, optimizer=Optimizer(lr=5e-5)),
        fine_tuning=replace(scores, epochs=8, optimizer=Optimizer(lr=5e-5)),
        # Ten of these take about three minutes.
        ablation=replace(start, name="ablation", num_draws=2, epochs=4, runtime=Runtime(in_memory=True)),
        simulate=60,
        repeats=5,
    )


def _full() -> Preset:
    base = Stage(caps=CAPS(num_patches=384), epochs=20, precision="bf16-mixed", runtime=Runtime(workers=8))
    return Preset(
        model=VTAMIQConfig(zero_anchor=True),
        weak=replace(base, name="weak_pretraining", loss=ScoreLoss(mae_weight=1.0)),
        preferences=replace(base, name="preferences", loss=PreferenceLoss(), optimizer=Optimizer(lr=5e-5)),
        fine_tuning=replace(base, optimizer=Optimizer(lr=5e-5)),
        ablation=replace(base, name="ablation"),
        simulate=200,
        repeats=20,
        ratios=(0.6, 0.2, 0.2),
    )


PRESETS = {"smoke": _smoke(), "demo": _demo(), "full": _full()}


@dataclass(frozen=True)
class Workspace:
    """Where the notebooks of one preset read and write; paths are relative to `root`, the repository or current folder."""

    preset: str
    root: Path
    out: Path

    @property
    def settings(self) -> Preset:
        return PRESETS[self.preset]

    @property
    def figures(self) -> Path:
        """The gallery of the repository for the demo in its usual place, a folder of the run for all else."""
        usual = self.out == self.root / "runs" / "demo" and (self.root / "notebooks").is_dir()
        return self.root / "figures" if usual else self.out / "figures"

    def folder(self, notebook: str) -> Path:
        """Folder for what a notebook leaves: tables, checkpoints, predictions. Created if missing."""
        folder = self.out / notebook
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def fresh(self, folder: Path, *settings: Any) -> Path:
        """Empty a folder that holds runs of other settings (dataclasses, values, paths of the run to start from)."""
        key, note = digest([COMPUTES, *map(_decides, settings)]), folder / "settings.txt"
        if folder.is_dir() and not (note.is_file() and note.read_text() == key):
            log.info("%s held runs of other settings: emptied", folder)
            shutil.rmtree(folder)
        write_text(note, key)
        return folder

    def path(self, path: str) -> Path:
        """A path that a parameter of a notebook gives, relative to the repository unless absolute."""
        return self.root / path

    def demo(self, name: str, label: str = "consensus") -> Database:
        """The demo database of that name, in the size of the preset; `label` as for `parts`."""
        return demo_database(name, preset="smoke" if self.preset == "smoke" else "demo", label=label)

    def parts(
        self, database: str = "", seed: int = 0, label: str = "consensus", cache: str = ""
    ) -> tuple[Database, Database, Database]:
        """Pairs to train, validate and test on, split by content.

        `database` is a folder made by `python -m vtamiq synthesize`, empty for the demo photographs; `label` as for
        `load_synthetic`; `cache` a folder for the images that recipes make, if any.
        """
        if not database:
            return self.demo("photos", label).distributed_split()
        kept_in = self.path(cache) if cache else None
        pairs = load_database("synthetic", self.path(database), label=label, cache=kept_in)
        return pairs.split(seed=seed) if (pairs.pairs["subset"] == "none").any() else pairs.distributed_split()

    def data(self, database: str = "", demo: str = "photos", split: str = "", **options: Any) -> Data:
        """`Data(database, split, **options)` for a chain, or of the demo database `demo` with its own split."""
        own = f"demo:{demo}" + (":preset=smoke" if self.preset == "smoke" else "")
        return Data(database or own, split=split or ("random" if database else "distributed"), **options)

    def stage(self, name: str, epochs: int = 0, seed: int = 0) -> Stage:
        """The preset's stage "weak", "preferences", "fine_tuning" or "ablation"; with other epochs, unless they are 0."""
        stage = getattr(self.settings, name)
        return replace(stage, seed=seed, epochs=epochs or stage.epochs)

    def stages(self) -> dict[str, Path]:
        """Folders of the finished runs of notebooks 03 to 05; FileNotFoundError if 03 has not run."""
        folders = {
            "weak labels": self.out / "03_weak_pretraining" / "run",
            "preferences": self.out / "04_preference_training" / "run" / "00_preferences",
            "fine-tuned": self.out / "05_fine_tuning" / "run" / "00_fine_tuning",
        }
        finished = {name: folder for name, folder in folders.items() if (folder / "result.json").is_file()}
        if "weak labels" not in finished:
            raise FileNotFoundError("03_weak_pretraining/run holds no finished run: run notebook 03 first")
        return finished

    def candidates(self, checkpoints: str = "", *, num_patches: int = 0) -> list[Candidate]:
        """Models to test, the last for figures: of `checkpoints`, with commas between, or notebooks 03 to 05."""
        found = [("", self.path(path.strip())) for path in checkpoints.split(",") if path.strip()]
        found = found or [(f"VTAMIQ, {name}", folder) for name, folder in self.stages().items()]
        return tell_apart([load_candidate(folder, name, num_patches=num_patches) for name, folder in found])

    def databases(self, names: str = "", database: str = "", seed: int = 0) -> list[Database]:
        """Databases to test on, reduced to pairs that are `worth_testing`.

        `names` as `load_from_text` takes them, with commas between; empty for the test part of `parts` and the textures.
        """
        if names.strip():
            loaded = [load_from_text(text, self.root) for text in names.split(",")]
        else:
            loaded = [self.parts(database, seed)[-1], self.demo("textures")]
        return [worth_testing(database) for database in loaded]

    def unseen(self, database: Database, model: VTAMIQ) -> Database:
        """The pairs of images that a model was not trained or validated on; DatabaseError if there are none."""
        part = unseen(database, model.seen or ())
        if part is None:
            raise DatabaseError(f"the model has seen all pictures of this part of {database.name}")
        return part

    def save_figure(
        self, figure: Figure, name: str, data: pd.DataFrame | Mapping[str, Any] | None = None, *, gallery: bool = True
    ) -> list[Path]:
        """Save a figure with its data beside it (`vtamiq.plots.save_figure`); without `gallery`, in the run only."""
        return save_figure(figure, self.figures if gallery else self.out / "figures", name, data)

    def publish(self, table: pd.DataFrame, name: str, folder: Path, columns: Sequence[str] = ()) -> None:
        """Write a result table as CSV into `folder` and beside the figures, and some columns, or all, as LaTeX."""
        write_table(table, folder / f"{name}.csv")
        write_table(table, self.figures / f"{name}.csv")
        write_table(table[list(columns)] if len(columns) else table, folder / f"{name}.tex")

    @staticmethod
    def versions() -> pd.DataFrame:
        """One row: the versions that a result depends on."""
        return pd.DataFrame([{"python": platform.python_version()} | {name: version(name) for name in _VERSIONS_OF}])


def _decides(setting: Any) -> Any:
    if isinstance(setting, Path):  # of a run, of a saved model, or a file with weights
        weights = [setting] if setting.is_file() else sorted(setting.rglob("*.safetensors"))
        return [digest_file(path) for path in weights]
    return plain(setting) if is_dataclass(setting) else setting


def workspace(preset: str = "demo", out: str = "") -> Workspace:
    """The workspace of a preset in run folder `out` (empty: `runs/{preset}`), relative to the repository's root.

    Outside the repository, the current folder takes its place. ValueError for no such preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}{did_you_mean(preset, PRESETS)}; there are {', '.join(PRESETS)}")
    here = Path.cwd()
    root = here.parent if here.name == "notebooks" else here
    return Workspace(preset, root, root / (out or f"runs/{preset}"))
