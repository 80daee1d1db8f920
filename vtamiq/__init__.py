"""VTAMIQ: Vision Transformer for Attention Modulated Image Quality (Chubarau & Clark 2021, arXiv:2110.01655).

A full-reference image quality metric: `score(reference, distorted, model=...)` says how distorted an image looks. Lower is
better, 0 is a perfect copy.
"""

__version__ = "0.1.0"

from vtamiq.batch import score_table
from vtamiq.caps import CAPS, PatchSample
from vtamiq.databases import Database, DatabaseError, load_database
from vtamiq.distortions import DISTORTIONS, distort
from vtamiq.images import ImageError, read_image, read_images
from vtamiq.model import VTAMIQ, CheckpointError, VTAMIQConfig, preference
from vtamiq.modules import VTAMIQLoss
from vtamiq.scoring import ReferenceEmbedding, score
from vtamiq.synthesis import demo_database, synthesize

__all__ = [
    "CAPS",
    "DISTORTIONS",
    "VTAMIQ",
    "CheckpointError",
    "Database",
    "DatabaseError",
    "ImageError",
    "PatchSample",
    "ReferenceEmbedding",
    "VTAMIQConfig",
    "VTAMIQLoss",
    "VTAMIQMetric",
    "demo_database",
    "distort",
    "load_database",
    "preference",
    "read_image",
    "read_images",
    "score",
    "score_table",
    "synthesize",
]


def __getattr__(name: str):
    if name == "VTAMIQMetric":  # only on demand: torchmetrics takes longer to import than all the rest
        from vtamiq.torchmetric import VTAMIQMetric

        return VTAMIQMetric
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
