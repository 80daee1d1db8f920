"""Figures, one style for all."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "attention": ["channel_gates", "map_grid", "pair_maps"],
        "charts": ["ablation_curve", "agreement_matrix", "bars", "draws_spread", "heatmap", "label_histograms",
                   "learning_curves", "prediction_scatter", "repeated_runs", "variants"],
        "diagrams": ["vit_diagram", "vtamiq_diagram"],
        "sampling": ["contact_sheet", "pair_scores", "patch_canvas", "patch_coverage", "patch_density", "patch_sampling",
                     "patch_sampling_multiscale", "sampling_components", "seen_patches", "uv_indexing"],
        "style": ["save_figure"],
    },
)  # fmt: skip
