"""The network, its weights in and out, and what runs it."""

import lazy_loader

_HOMES = {
    "checkpoints": ["CheckpointError"],
    "complexity": ["cost_table"],
    "config": ["VTAMIQConfig"],
    "inference": ["choose_device", "fingerprint", "load_default"],
    "initialise": ["start_from_scratch"],
    "network": ["VTAMIQ", "preference"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=_HOMES, submod_attrs=_HOMES)
