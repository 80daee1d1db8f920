"""Full-reference image quality databases, each as one table of image pairs; and their images as torch datasets."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "loading": ["LOADERS", "data_folder", "find_databases", "load_database", "load_from_text"],
        "pairs": ["PairImages", "TripletImages"],
        "patches": ["PairPatches", "PreferencePatches"],
        "schema": ["Database", "DatabaseError", "LabelScale"],
        "simulated": ["simulate_preferences"],
        "splits": ["fold_split", "original_split", "repeated_splits", "shared_pictures"],
        "demo": ["demo_database", "demo_photographs"],
        "synthesis": ["synthesize"],
    },
)
