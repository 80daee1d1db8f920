"""Read any image, distort it in 25 ways, measure it with eleven conventional metrics."""

import lazy_loader

_HOMES = {
    "distortions": ["DISTORTIONS", "distort", "find_distortion"],
    "iqms": ["IQMS", "iqm_scores"],
    "reading": ["ImageError", "read_image", "read_images", "write_png"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=_HOMES, submod_attrs=_HOMES)
