"""What a training step needs at which size, counted without a GPU: `python tools/plan_memory.py --help`."""

from dataclasses import dataclass
from functools import partial

import tyro

from glioma_dist.config import ModelConfig, SizeFlag
from glioma_dist.model.unet import UNet
from glioma_dist.runtime import run_command
from glioma_dist.scale.counting import count_step_memory
from glioma_dist.training.losses import segmentation_loss

KINDS = ("fp32", "bf16")


@dataclass(frozen=True)
class PlanConfig:
    """Peak memory of a training step, Adam included, at each size, in fp32 and bf16."""

    size: tuple[SizeFlag, ...]
    """Sizes of an image, as 704x512 2592x1952."""
    encoder: str = "mit_b3"
    batch_size: int = 1
    peer: bool = False
    """Count segmentation_models.pytorch's same network beside ours (pip install 'glioma-dist[bench]')."""


def main() -> None:
    plan = tyro.cli(PlanConfig)
    model = ModelConfig(encoder=plan.encoder)
    model.validate()
    builders = {"ours": lambda: UNet(model)}
    if plan.peer:
        import segmentation_models_pytorch as smp

        builders["peer"] = lambda: smp.Unet(plan.encoder, encoder_weights=None, decoder_interpolation="bilinear")
    loss = partial(segmentation_loss, "dice")
    print(f"U-Net {plan.encoder}, batch {plan.batch_size}: peak GiB of a step, counted on fake tensors")
    print("".join(f"{title:>12}" for title in ("size", *(f"{name} {kind}" for name in builders for kind in KINDS))))
    for size in plan.size:
        peaks = [
            count_step_memory(build(), loss, size, plan.batch_size, kind == "bf16").peak / 2**30
            for build in builders.values()
            for kind in KINDS
        ]
        print(f"{size!s:>12}" + "".join(f"{peak:12.2f}" for peak in peaks), flush=True)


if __name__ == "__main__":
    run_command(main)
