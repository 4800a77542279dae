"""The augmentations of transforms.py and augmentations.py by name. Nothing heavy here.

kind: "transforms" is a function that returns transforms of albumentations, "chain" one that draws a chain of changes of
--data.num-ops and --data.magnitude, "function" a change of image and mask (data/transforms.py).
"""

from glioma_dist.registry import AugmentationEntry

DECLARED = (
    *(
        AugmentationEntry(name, f"glioma_dist.data.augmentations:{name}", kind="transforms")
        for name in ("flips", "sharpen", "contrast")
    ),
    *(
        AugmentationEntry(name, "glioma_dist.data.augmentations:draw_ops", kind="chain")
        for name in ("rand-augment", "trivial-augment")
    ),
)
