"""From prediction tables to correlations, comparisons and result tables."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "baselines": ["iqm_predictions", "lookup_predictions"],
        "correlation": ["correlations", "logistic_fit"],
        "published": ["published_results"],
        "significance": ["compare_metrics"],
        "tables": ["evaluate", "evaluate_preferences"],
    },
)
