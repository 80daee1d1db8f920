"""The network, its weights in and out, and what runs it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checkpoints": ["CheckpointError"],
        "complexity": ["cost_table"],
        "inference": ["choose_device", "fingerprint", "load_default"],
        "initialise": ["start_from_scratch"],
        "network": ["VTAMIQ", "VTAMIQConfig", "preference"],
    },
)
