"""SegFormer's Mix Transformers (mit.py) by name, and their shapes. No torch here."""

from glioma_dist.registry import EncoderEntry

MIT_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "mit_tiny": {"depths": (1, 1, 1, 1), "hidden_sizes": (8, 16, 24, 32), "num_attention_heads": (1, 1, 1, 1)},
    "mit_b0": {"depths": (2, 2, 2, 2), "hidden_sizes": (32, 64, 160, 256)},
    "mit_b1": {"depths": (2, 2, 2, 2), "hidden_sizes": (64, 128, 320, 512)},
    "mit_b2": {"depths": (3, 4, 6, 3), "hidden_sizes": (64, 128, 320, 512)},
    "mit_b3": {"depths": (3, 4, 18, 3), "hidden_sizes": (64, 128, 320, 512)},
    "mit_b4": {"depths": (3, 8, 27, 3), "hidden_sizes": (64, 128, 320, 512)},
    "mit_b5": {"depths": (3, 6, 40, 3), "hidden_sizes": (64, 128, 320, 512)},
}
"""Table 6 of SegFormer (Xie et al. 2021, arXiv 2105.15203); the rest of its columns are SegformerConfig's defaults.
mit_tiny is ours, for demos and tests."""

DECLARED = tuple(
    EncoderEntry(
        name,
        "glioma_dist.model.encoders.mit:MitEncoder",
        family="mit",
        smp_name=None if name == "mit_tiny" else name,
        has_spatial_layers=True,
    )
    for name in MIT_SHAPES
)
