"""Split the images of a network of another library over processes: each has some rows, and computes them as a whole.

python examples/split_any_network.py 2
"""

import sys
import tempfile
from functools import partial

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

import glioma_dist as gd

sum_of_losses = partial(binary_cross_entropy_with_logits, reduction="sum")


def take_step(rank: int, num_processes: int, store: str) -> None:
    """Compute loss and gradients of one process's rows. With GPUs: "nccl", a device for each rank, torchrun."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_processes)
    torch.set_num_threads(1)
    torch.manual_seed(0)  # the same weights on all processes
    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=1).double()
    images = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    masks = (images[:, :1] > 0).double()

    group = gd.SpatialGroup.over()
    rows = group.cut(images.shape[2])
    split = gd.spatial_parallel(network, group)
    loss = sum_of_losses(split(images[:, :, rows])["out"], masks[:, :, rows])
    loss.backward()
    for each in (loss.data, *(parameter.grad for parameter in network.parameters())):
        dist.all_reduce(each)  # loss and gradients of the whole image
    print(f"process {rank}: rows {rows.start} to {rows.stop}, loss of the image {loss:.9f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        count = int(sys.argv[1])
        start_processes(take_step, (count, f"{folder}/store"), nprocs=count, start_method="fork")
        print(f"the image was split over {count} processes")
