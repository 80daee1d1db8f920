"""Training by stages: losses, one stage, a chain of stages, repeated runs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["losses"],
    submod_attrs={
        "chain": ["Chain", "Data", "FoldSplit", "RandomSplit", "Step", "check_chain", "load_data", "run_chain"],
        "apart": ["launch"],
        "repeats": ["compare", "grid", "repeat", "run_many"],
        "run": ["Run", "train"],
        "stage": ["Optimizer", "PreferenceLoss", "Runtime", "Schedule", "ScoreLoss", "Stage"],
    },
)
