"""Read any image, distort it in 25 ways, measure it with eleven conventional metrics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "distortions": ["DISTORTIONS", "distort", "find_distortion"],
        "iqms": ["IQMS", "iqm_scores"],
        "reading": ["ImageError", "read_image", "read_images", "write_png"],
    },
)
