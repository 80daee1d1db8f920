"""VTAMIQ: Vision Transformer for Attention Modulated Image Quality (Chubarau & Clark 2021, arXiv:2110.01655).

A full-reference image quality metric: it says how distorted an image looks beside its reference. **Lower is better, 0 is
a perfect copy** (exactly 0 for models with `zero_anchor`); there is no upper bound (`VTAMIQ.score_range`). Compare scores
of one model only: `model.origin` says where its weights come from.

Without a model, the one that ships with the package scores: `vtamiq-tiny`, trained on SYNTHETIC labels. It imitates a
consensus of conventional metrics, not human opinion; its model card is beside its weights in `vtamiq/weights`.

>>> import vtamiq
>>> q = vtamiq.score(reference, distorted)  # paths, PIL images, arrays, tensors, or lists of them
>>> q = vtamiq.score(reference, distorted, model=model)  # VTAMIQ.from_pretrained(folder), or one that you have trained
>>> mean, standard_error = vtamiq.score(reference, distorted, model=model, repeats=8, return_std=True)
>>> table = vtamiq.score_table("pairs.csv", "scores.csv", model=model)  # resumable; columns reference, distorted
>>> embedding = vtamiq.ReferenceEmbedding(reference, model=model)  # one reference, many distorted images
>>> loss = vtamiq.VTAMIQLoss(model, new_places=True)  # loss(x, y).backward() reaches the pixels of x
>>> metric = vtamiq.VTAMIQMetric(model)  # torchmetrics

`score` takes the reference first; `VTAMIQLoss` and `VTAMIQMetric` take the distorted image first, as piq and torchmetrics
do. How many patches to take, and a table for those who come from pyiqa, piq or LPIPS, are in `docs/` of the repository.
The command line is `python -m vtamiq --help`.
"""

import lazy_loader

__version__ = "0.1.0"

# Every name is imported when it is first used: reading a database or an image costs no torch.
_HOMES = {
    "attention.maps": ["attention_maps"],
    "caps": ["CAPS", "PatchSample"],
    "databases.loading": ["load_database"],
    "databases.schema": ["Database", "DatabaseError"],
    "databases.demo": ["demo_database"],
    "databases.synthesis": ["synthesize"],
    "images.distortions": ["DISTORTIONS", "distort"],
    "images.reading": ["ImageError", "read_image", "read_images"],
    "model.checkpoints": ["CheckpointError"],
    "model.config": ["VTAMIQConfig"],
    "model.network": ["VTAMIQ", "preference"],
    "scoring.loss": ["VTAMIQLoss"],
    "scoring.metric": ["VTAMIQMetric"],
    "scoring.scores": ["ReferenceEmbedding", "score"],
    "scoring.table": ["score_table"],
}
_WINGS = ("attention", "databases", "evaluation", "images", "lab", "model", "plots", "scoring", "training", "utils")
__getattr__, __dir__, _ = lazy_loader.attach(__name__, submodules=_WINGS, submod_attrs=_HOMES)
__all__ = sorted(name for names in _HOMES.values() for name in names)
