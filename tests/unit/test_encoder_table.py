"""`glioma-dist encoders`: every encoder once, with figures that a fresh count gives too."""

import json
import re

import pytest
import torch
from helpers import REPOSITORY, command
from torch import nn

from glioma_dist.benchmark import encoder_costs, encoder_table
from glioma_dist.config import ModelConfig
from glioma_dist.model.unet import UNet
from glioma_dist.registry import encoders
from glioma_dist.size import Size

ROWS = {row["encoder"]: row for row in json.loads(encoder_table.FILE.read_text())}


def test_every_encoder_has_a_row():
    assert tuple(ROWS) == encoders.names()


def test_what_is_written_is_what_is_counted(monkeypatch):
    """If this fails, the code counts otherwise now: `python benchmarks/count_encoders.py` writes the file again."""
    monkeypatch.setattr(encoder_costs, "SIZES", {"704p": Size(704, 512)})
    for name, value in encoder_costs.count_encoder("mit_tiny").items():
        expected = ROWS["mit_tiny"][name]
        assert value == (expected if isinstance(expected, str) else pytest.approx(expected, rel=0.02)), name


def test_operations_are_two_for_each_weight_and_place():
    """VGG19, convolution by convolution."""
    model = UNet(ModelConfig(encoder="vgg19")).to("meta").eval()
    total = []

    def add(module, inputs, output):
        total.append(2 * module.weight.numel() * output.shape[2] * output.shape[3])

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
    model(torch.empty(1, 3, 512, 704, device="meta"))
    assert sum(total) / 1e9 == pytest.approx(ROWS["vgg19"]["gflop_704p"], abs=0.1)


def test_memory_is_that_of_the_readme():
    row = re.search(r"\| glioma-dist, fp32 \| ([\d.]+) \| ([\d.]+) \|", (REPOSITORY / "README.md").read_text())
    assert (float(row[1]), float(row[2])) == (ROWS["mit_b3"]["peak_gib_704p"], ROWS["mit_b3"]["peak_gib_1472p"])


def test_the_command_prints_it():
    ended = command("encoders")
    assert ended.exit_code == 0, ended.stderr
    assert encoder_table.encoder_table() in ended.stdout
    lines = ended.stdout.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(encoders.names())]] == list(encoders.names())
