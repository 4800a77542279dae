"""Read shards without this package: they are plain WebDataset tars.

python examples/read_shards_with_webdataset.py runs/demo/shards/glioma_c6/train
"""

import sys
from pathlib import Path

import numpy as np
import webdataset

urls = [str(path) for path in sorted(Path(sys.argv[1]).glob("*.tar"))]
for sample in webdataset.WebDataset(urls, shardshuffle=False).decode("pil"):
    image, mask, metadata = sample["png"], np.asarray(sample["mask.png"]), sample["json"]
    covered = (mask > 0).mean()
    print(f"{sample['__key__']}: {image.mode} {image.size[0]}x{image.size[1]}, {covered:.1%} cells, {metadata}")
