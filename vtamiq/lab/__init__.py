"""What the notebooks share: run folders and presets, the headless pipeline, ablations, explorers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "explore": ["explore_attention", "explore_sampling", "explore_score"],
        "pipeline": ["reproduce"],
        "presets": ["PRESETS", "Workspace", "workspace"],
        "views": ["attention_view", "sampling_view", "score_view"],
    },
)
