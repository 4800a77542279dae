"""timm's batch norm with an activation, with statistics over all processes. Imported only beside timm."""

from __future__ import annotations

from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn

from glioma_dist.scale.batch_norm_layer import GpuBatchNorm2d, ProcessesBatchNorm2d


class ProcessesBatchNormAct2d(ProcessesBatchNorm2d, BatchNormAct2d):
    """timm's BatchNormAct2d, batch norm and an activation, over (all processes' B, H, W)."""

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, C, H, W), of any float type."""
        output = super().forward(features)
        # In evaluation mode this was BatchNormAct2d's own forward, activation included.
        return self.act(self.drop(output)) if self.training else output


class GpuBatchNormAct2d(GpuBatchNorm2d, SyncBatchNormAct):
    """The same on GPUs."""

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, C, H, W) on a GPU, of any float type."""
        output = super().forward(features)
        # Where nothing is exchanged this was SyncBatchNormAct's own forward, activation included.
        return self.act(self.drop(output)) if self.is_exchanging else output


CPU_COUNTERPARTS: dict[type[nn.Module], type[nn.Module]] = {BatchNormAct2d: ProcessesBatchNormAct2d}
GPU_COUNTERPARTS: dict[type[nn.Module], type[nn.Module]] = {BatchNormAct2d: GpuBatchNormAct2d}
