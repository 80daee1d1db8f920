"""Figures, one style for all."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "attention": ["channel_gates", "map_grid", "pair_maps"],
        "charts": [
            "agreement_matrix",
            "bars",
            "contact_sheet",
            "draws_spread",
            "heatmap",
            "label_histograms",
            "learning_curves",
            "pair_scores",
            "patch_canvas",
            "patch_coverage",
            "patch_density",
            "patch_sampling",
            "patch_sampling_multiscale",
            "prediction_scatter",
            "sampling_components",
            "save_figure",
            "seen_patches",
            "uv_indexing",
        ],
        "diagrams": ["vit_diagram", "vtamiq_diagram"],
        "results": ["ablation_curve", "repeated_runs", "variants"],
    },
)
