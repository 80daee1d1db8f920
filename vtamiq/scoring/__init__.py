"""Score image pairs: one by one, in tables, over databases, as a loss and as a metric."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "loss": ["VTAMIQLoss"],
        "metric": ["VTAMIQMetric"],
        "predictions": ["predict"],
        "scores": ["ReferenceEmbedding", "score"],
        "table": ["score_table"],
    },
)
