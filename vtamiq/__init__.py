"""VTAMIQ: Vision Transformer for Attention Modulated Image Quality (Chubarau & Clark 2021, arXiv:2110.01655).

A full-reference image quality metric: it says how distorted an image looks beside its reference. **Lower is better, 0
is a
perfect copy** (exactly 0 for models with `zero_anchor`). There is no upper bound, and nothing keeps a model from giving a
nearly perfect copy a score slightly below 0: see `VTAMIQ.score_range`. What a number means depends on the weights, on the
labels that they were trained on: compare scores of one model only. `model.origin` says where its weights come from, and
`fingerprint(model)` tells them from any others.

Where no model is given, the one that ships with the package scores, `vtamiq-tiny`. It was trained on SYNTHETIC labels: it
imitates a consensus of conventional metrics, not human opinion. `VTAMIQ.from_pretrained("vtamiq-tiny")` gives one of your
own, and its model card, beside its weights in `vtamiq/weights`, says how well it does and what it must not be used for.

>>> import vtamiq
>>> q = vtamiq.score(reference, distorted)  # paths, PIL images, arrays, tensors, or lists of them
>>> q = vtamiq.score(reference, distorted, model=model)  # VTAMIQ.from_pretrained(folder), or one that you have trained
>>> mean, standard_error = vtamiq.score(reference, distorted, model=model, repeats=8, return_std=True)
>>> table = vtamiq.score_table("pairs.csv", "scores.csv", model=model)  # resumable; columns reference, distorted
>>> embedding = vtamiq.ReferenceEmbedding(reference, model=model)  # one reference, many versions
>>> loss = vtamiq.VTAMIQLoss(model, new_places=True)  # loss(x, y).backward() reaches the pixels of x
>>> metric = vtamiq.VTAMIQMetric(model)  # torchmetrics

Coming from pyiqa, piq or LPIPS

    ==================  =============================  =====================  ====================  ======================
                        vtamiq                         pyiqa                  piq                   lpips
    ==================  =============================  =====================  ====================  ======================
    make it             VTAMIQ.from_pretrained(…)      create_metric("lpips") LPIPS()               LPIPS(net="alex")
    call it             score(reference, distorted)    metric(dist, ref)      metric(dist, ref)     metric(a, b)
    as a loss           VTAMIQLoss(model)(dist, ref)   as_loss=True           the same module       the same module
    images              any kind and size; tensors     paths, or tensors      tensors (N, C, H, W)  tensors (N, 3, H, W)
                        in [0, 1]                      in [0, 1]              in [0, data_range]    in [-1, 1]
    result              float, or array (M,)           tensor                 tensor, reduced       tensor (N, 1, 1, 1)
    direction           lower_better is True           lower_better           by metric             lower is better
    weights             a small model ships, others    downloaded when made   downloaded when made  backbone downloaded,
                        from where you say; nothing                                                 the rest shipped
                        is fetched unasked
    randomness          patches drawn by seed          none                   none                  none
    ==================  =============================  =====================  ====================  ======================

    Mind the order: `score` takes the reference first, as one speaks of it; `VTAMIQLoss` and `VTAMIQMetric` take the
    distorted image first, as piq's and torchmetrics' modules do.

Choosing the number of patches

    `score(..., caps=CAPS(num_patches=N), repeats=K)`. N patches make one draw, K draws are averaged.

    - Start with the number that the model was trained with, 256 if nothing is said. Another number is not only noisier or
      surer, it is another input: the model may answer it with a shift of all scores.
    - K draws divide the variance by K, since they are independent: the standard error of the mean is s / sqrt(K), with s
      the standard deviation between draws, and `return_std` estimates it. To tell two versions apart whose scores
      differ by
      d, choose K so that the standard error is well below d / 2; four times the draws halve it.
    - More patches in a draw lower s too, but more slowly than 1 / sqrt(N): attention weighs patches unequally, and
    what it
      makes of them is not an average. With the weights that ship, s went from 0.033 at 32 patches to 0.010 at 512, about
      as N to the power of -0.4 (notebook 00, `figures/score_spread.csv`).
    - Time grows with K N for the network, and a little faster in N for its attention; each draw also looks at the whole
      images once to find its places.
    - Scores at the same seed share much of their noise when the versions differ in the same places. For ranking
    versions of
      one reference, `ReferenceEmbedding` or `shared_positions=True` compares all of them at the same places.
"""

import lazy_loader

__version__ = "0.1.0"

# Every name is imported when it is first used: reading a database or an image costs no torch.
_HOMES = {
    "attention.maps": ["attention_maps"],
    "caps": ["CAPS", "PatchSample"],
    "databases.loading": ["load_database"],
    "databases.schema": ["Database", "DatabaseError"],
    "databases.synthesis": ["demo_database", "synthesize"],
    "images.distortions": ["DISTORTIONS", "distort"],
    "images.reading": ["ImageError", "read_image", "read_images"],
    "model.checkpoints": ["CheckpointError"],
    "model.network": ["VTAMIQ", "VTAMIQConfig", "preference"],
    "scoring.loss": ["VTAMIQLoss"],
    "scoring.metric": ["VTAMIQMetric"],
    "scoring.scores": ["ReferenceEmbedding", "score"],
    "scoring.table": ["score_table"],
}
_WINGS = ("attention", "databases", "evaluation", "images", "lab", "model", "plots", "scoring", "training", "utils")
__getattr__, __dir__, _ = lazy_loader.attach(__name__, submodules=_WINGS, submod_attrs=_HOMES)
__all__ = sorted(name for names in _HOMES.values() for name in names)
