"""fp16's loss scale: a restarted run ends with the same bits, and a skipped step is known as one.

In real fp16, which PyTorch's autocast and scaler compute on CPUs too; accelerate takes them for GPUs only and is told.
"""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import TINY_CHANNELS, run, start_fp16

from glioma_dist.config import ModelConfig
from glioma_dist.errors import InputError
from glioma_dist.scale.loss_scale import load_scaler_state, scale_is_exhausted, scaler_state, step_was_skipped


def take_steps(file: Path | None, first: int, last: int, with_scale: bool = True) -> dict:
    """Steps `first` to `last`, from what was saved in `file`. Returns what can be saved, and what was said of skips."""
    from glioma_dist.losses import segmentation_loss
    from glioma_dist.model.unet import UNet
    from glioma_dist.scale.batch_norm import synchronise_batch_norm

    torch.set_num_threads(1)
    here = start_fp16()
    saved = None if file is None else torch.load(file)
    torch.manual_seed(0)
    model = UNet(ModelConfig(encoder="mit_tiny", decoder_channels=TINY_CHANNELS))
    if here.num_processes > 1:
        synchronise_batch_norm(model, here.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    model, optimizer = here.accelerator.prepare(model, optimizer)
    if saved and with_scale:
        load_scaler_state(here.accelerator, json.loads(saved["scale"]))
    skipped, moved, scales = [], [], []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(10 * step + here.rank)
        images = torch.randn(1, 3, 32, 32, generator=generator)
        masks = (torch.rand(1, 32, 32, generator=generator) > 0.5).to(torch.uint8)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        with here.accelerator.autocast():
            logits = model(images, torch.arange(1))
        here.accelerator.backward(segmentation_loss("dice+bce", logits, masks).sum())
        here.accelerator.unscale_gradients()
        optimizer.step()
        skipped.append(step_was_skipped(here.accelerator, optimizer))
        moved.append(any(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)))
        scales.append(here.accelerator.scaler.get_scale())
        optimizer.zero_grad()
    plain = here.accelerator.unwrap_model(model)
    return {
        "model": plain.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scale": json.dumps(scaler_state(here.accelerator)),
        "skipped": skipped,
        "moved": moved,
        "scales": scales,
        "exhausted": scale_is_exhausted(here.accelerator),
    }


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_restarted_run_ends_with_the_same_bits(tmp_path, num_processes):
    """After an odd number of steps, half way to the scale's next growth."""
    whole = run(take_steps, None, 0, 18, num_processes=num_processes)
    skipped, scales = whole[0]["skipped"], whole[0]["scales"]
    assert any(skipped)
    assert not all(skipped)
    assert max(later / earlier for earlier, later in pairwise(scales)) == 2, "it grows, too"
    for rank in whole:
        assert rank["skipped"] == skipped
        assert rank["moved"] == [not each for each in skipped]
        assert not rank["exhausted"]
    first = run(take_steps, None, 0, 13, num_processes=num_processes)
    torch.save(first[0], tmp_path / "saved")
    (second, *_) = run(take_steps, tmp_path / "saved", 13, 18, num_processes=num_processes)
    assert first[0]["scales"] + second["scales"] == scales
    assert second["scale"] == whole[0]["scale"]
    for name, tensor in whole[0]["model"].items():
        assert torch.equal(second["model"][name], tensor), name
    (without, *_) = run(take_steps, tmp_path / "saved", 13, 18, False, num_processes=num_processes)
    assert without["skipped"] != skipped[13:], "the counter-check: a scale that begins again skips steps"


def refusals(states: list) -> list[str]:
    here = start_fp16()
    said = []
    for state in states:
        try:
            load_scaler_state(here.accelerator, state)
            said.append("taken")
        except InputError as error:
            said.append(str(error))
    return said


def test_a_state_that_is_none_is_refused_in_one_line():
    good = {"scale": 4.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2, "_growth_tracker": 1}
    bad = [
        {**good, "scale": "4"},
        {**good, "scale": 0},
        {**good, "scale": float("nan")},
        {"scale": 4.0},
        [4.0],
        "x" * 999,
    ]
    (said,) = run(refusals, [good, None, *bad])
    assert said[:2] == ["taken", "taken"]
    for line in said[2:]:
        assert "loss scale holds" in line
        assert len(line) < 490


def test_without_fp16_there_is_no_scale(runtime):
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    assert scaler_state(runtime.accelerator) is None
    load_scaler_state(runtime.accelerator, {"scale": 4.0})
    assert not step_was_skipped(runtime.accelerator, optimizer)
    assert not scale_is_exhausted(runtime.accelerator)
