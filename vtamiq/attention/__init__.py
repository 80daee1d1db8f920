"""What the model looks at, and whether it finds a local distortion."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "localisation": ["localise"],
        "maps": ["attention_maps", "capture", "channel_attention", "head_maps", "token_shares"],
    },
)
