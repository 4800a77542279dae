"""What a GPU computes at best, by its name, and the share of it that a step uses."""

import pytest

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
        ("NVIDIA A10G", None),
        ("NVIDIA L40", None),
        ("AMD EPYC, 2 threads", None),
        ("", None),
    ],
)
def test_a_device_is_found_by_whole_words_of_its_name(device, peak):
    assert find_peak(device, "bf16") == peak
    assert find_peak(device, "fp32") is None


def test_the_share_is_of_counted_operations():
    size = Size(64, 64)
    operations = step_operations("mit_tiny", size, 4)
    assert operations == 12 * forward_operations(ModelConfig(encoder="mit_tiny"), size)
    share = utilisation(operations, 0.5, "NVIDIA A100-SXM4-80GB", "bf16", num_devices=2)
    assert share == pytest.approx(operations / 0.5 / 2 / 312e12)
    assert utilisation(operations, 0.5, "Some GPU", "bf16") is None
