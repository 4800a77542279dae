"""What a GPU computes at best, by its name, the share of it that a step uses, and the peak of its memory."""

import pytest
import torch

from glioma_dist.benchmark import peak_memory
from glioma_dist.benchmark.peak_speed import find_peak, step_operations, utilisation
from glioma_dist.config import ModelConfig
from glioma_dist.scale.operations import forward_operations
from glioma_dist.size import Size


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GH200 480GB", None),  # another product, whose sheet says other figures
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),  # a seventh of the GPU
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", None),
        ("GRID A100-10C", None),
        ("NVIDIA A40-48Q", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),  # another chip
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA A10G", None),
        ("NVIDIA L40", None),
        ("AMD EPYC, 2 threads", None),
        ("", None),
    ],
)
def test_a_device_is_found_by_whole_words_of_its_name(device, peak):
    assert find_peak(device, "bf16") == peak
    assert find_peak(device, "fp32") is None


def test_where_the_system_tells_no_peak_there_is_none(monkeypatch, tmp_path):
    """As gVisor's /proc, in which cloud functions and notebooks run."""
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmSize:\t 2097152 kB\nVmRSS:\t 1048576 kB\n")
    monkeypatch.setattr(peak_memory, "STATUS", status)
    memory = peak_memory.PeakMemory(torch.device("cpu"))
    assert peak_memory.resident_gib("VmRSS") == 1
    assert memory.allocated() is None
    status.write_text("VmHWM:\t 3145728 kB\nVmRSS:\t 1048576 kB\n")
    assert memory.allocated() == 2


def test_the_share_is_of_counted_operations():
    size = Size(64, 64)
    operations = step_operations("mit_tiny", size, 4)
    assert operations == 12 * forward_operations(ModelConfig(encoder="mit_tiny"), size)
    share = utilisation(operations, 0.5, "NVIDIA A100-SXM4-80GB", "bf16", num_devices=2)
    assert share == pytest.approx(operations / 0.5 / 2 / 312e12)
    assert utilisation(operations, 0.5, "Some GPU", "bf16") is None
