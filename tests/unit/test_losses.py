"""Every registered loss against numpy in fp64, image by image, and against another library."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from loss_helpers import NUM_CLASSES, SLOWLY, boundary, draw
from scipy import ndimage

from glioma_dist.config import DataConfig, ModelConfig, TrainConfig
from glioma_dist.errors import InputError
from glioma_dist.loss_terms import check_names, terms_of
from glioma_dist.losses import segmentation_loss
from glioma_dist.losses.lovasz import jaccard_extension
from glioma_dist.losses.pixels import boundary_weights
from glioma_dist.model.outputs import Outputs
from glioma_dist.registry import losses

OWN = [entry for name in losses.names() for entry in (losses.find(name),)]
ONE_CLASS = [entry.name for entry in OWN if entry.classes != "several"]
SEVERAL = [entry.name for entry in OWN if entry.classes != "one"]
CASES = [(name, 2) for name in ONE_CLASS] + [(name, NUM_CLASSES) for name in SEVERAL]


def outputs_of(num_classes: int, target: str | None = None) -> Outputs:
    return Outputs(1 if num_classes == 2 else num_classes, target)


def loss_of(name: str, logits: np.ndarray | torch.Tensor, masks: np.ndarray | torch.Tensor) -> torch.Tensor:
    logits, masks = torch.as_tensor(logits), torch.as_tensor(masks)
    return segmentation_loss(name, logits, masks, outputs=Outputs(logits.shape[1]))


@pytest.mark.parametrize(("name", "num_classes"), CASES)
def test_each_image_has_its_own_loss(name, num_classes):
    logits, masks = draw(num_classes=num_classes)
    found = loss_of(name, logits, masks)
    assert (found.dtype, found.shape) == (torch.float64, (5,))
    expected = [SLOWLY[name](*pair) for pair in zip(logits, masks, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert loss_of(name, torch.as_tensor(logits).bfloat16(), masks).dtype == torch.float32
    alone = torch.cat([loss_of(name, logits[row : row + 1], masks[row : row + 1]) for row in range(5)])
    torch.testing.assert_close(found, alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("name", "num_classes"), CASES)
def test_the_gradient_is_that_of_finite_differences(name, num_classes):
    logits, masks = draw(4, 3, 4, num_classes)
    masks[3, 1:, 2:] = 255
    tensor = torch.from_numpy(logits).requires_grad_()
    loss_of(name, tensor, masks).sum().backward()
    for place in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-5
        sides = [sum(SLOWLY[name](*pair) for pair in zip(logits + sign * step, masks, strict=True)) for sign in (1, -1)]
        expected = (sides[0] - sides[1]) / 2e-5
        assert tensor.grad[place].item() == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert not tensor.grad[torch.from_numpy(masks == 255)[:, None].expand(tensor.shape)].any()


@pytest.mark.parametrize(("name", "num_classes"), CASES)
@pytest.mark.parametrize("value", [-1e4, 1e4])
@pytest.mark.parametrize("full", [0, 1, 255])
def test_certain_logits_and_empty_or_full_masks_are_finite(name, num_classes, value, full):
    values = [value] if num_classes == 2 else [-value, value, -1e4]
    logits = torch.tensor(values).view(1, -1, 1, 1).repeat(1, 1, 8, 8)
    logits.requires_grad_()
    masks = torch.full((1, 8, 8), full, dtype=torch.uint8)
    found = loss_of(name, logits, masks)
    found.sum().backward()
    assert found.isfinite().all()
    assert logits.grad.isfinite().all()
    if full == 255:
        assert not logits.grad.any()
    elif (value > 0) == bool(full):
        assert found.item() < 1e-6


def test_a_function_in_c_is_asked_for_one_number_an_image_as_any_other():
    with pytest.raises(InputError, match=r"torch:dist.*: gave \(\) for 2 images; return one number an image"):
        segmentation_loss("torch:dist", torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8))


def test_sums_have_weights():
    logits, masks = draw()
    found = loss_of("dice+0.25*bce+3*focal", logits, masks)
    expected = (
        loss_of("dice", logits, masks) + 0.25 * loss_of("bce", logits, masks) + 3 * loss_of("focal", logits, masks)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert terms_of("dice+0.5*bce") == ((1, "dice"), (0.5, "bce"))


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "x", "", "2*3", "1e7"])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(InputError) as error:
        terms_of(f"{weight}*dice")
    assert f"cannot use the weight {weight!r}; give a number above 0 and at most 1,000,000" in str(error.value)


@pytest.mark.parametrize("text", ["", " ", "+", "dice+", "+bce", "dice++bce", "dice+ +bce", "2*", "dice+0.5*"])
def test_a_missing_name_is_refused_with_the_value_and_the_choices(text):
    with pytest.raises(InputError) as error:
        check_names(text, has_classes=False)
    assert f"--loss {text!r}: a name is missing" in str(error.value)
    assert all(name in str(error.value) for name in losses.names())


@pytest.mark.parametrize(
    ("text", "has_classes", "said"),
    [
        ("bce", True, "--loss bce: is not for masks of several classes (--model.classes); give ce"),
        ("dice+ce", False, "--loss ce: is not for masks of one class (no --model.classes); give bce"),
        ("boundary-bce", True, "give boundary-ce"),
        ("dice+2*dice", False, "name each loss once"),
        ("dise", False, "--loss dise: unknown; did you mean dice?"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused(text, has_classes, said):
    with pytest.raises(InputError) as error:
        check_names(text, has_classes)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("target", ["boundary", "distance"])
@pytest.mark.parametrize("num_classes", [2, NUM_CLASSES])
def test_a_second_target_adds_its_own_loss(target, num_classes):
    logits, masks = draw(num_classes=num_classes)
    generator = np.random.default_rng(1)
    second = generator.normal(0, 2, logits[:, :1].shape)
    values = generator.integers(0, 2 if target == "boundary" else 255, masks.shape).astype(np.uint8)
    values[masks == 255] = 255
    found = segmentation_loss(
        "dice",
        torch.from_numpy(np.concatenate([logits, second], axis=1)),
        torch.from_numpy(np.stack([masks, values], axis=1)),
        outputs=outputs_of(num_classes, target),
        target_weight=0.5,
    )
    p = 1 / (1 + np.exp(-second[:, 0]))
    errors = np.abs(p - values / 254) if target == "distance" else -np.log(np.where(values == 1, p, 1 - p))
    means = [each[known].mean() for each, known in zip(errors, values != 255, strict=True)]
    np.testing.assert_allclose(found, loss_of("dice", logits, masks).numpy() + 0.5 * np.array(means), rtol=1e-9)


def test_boundaries_weigh_as_far_as_they_reach():
    """Against scipy's distances, on an image that is larger than the reach."""
    mask = np.zeros((1, 90, 70), np.uint8)
    mask[0, 20:31, 25:37] = 1
    inside = ndimage.binary_dilation(mask[0] == 0) & (mask[0] == 1)
    outside = ndimage.binary_dilation(mask[0] == 1) & (mask[0] == 0)
    distances = ndimage.distance_transform_edt(~(inside | outside))
    found = boundary_weights(torch.from_numpy(mask), torch.float64)[0].numpy()
    assert np.abs(found - (1 + 10 * np.exp(-(distances**2) / 50))).max() < 10 * np.exp(-8)
    assert found.max() == 11
    assert found[-1, -1] == 1
    assert boundary(np.zeros((1, 5, 5)), np.zeros((5, 5), np.uint8)) == pytest.approx(np.log(2))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_gradients_of_lovasz_have_the_digits_of_fp32_in_large_images(share):
    generator = torch.Generator().manual_seed(0)
    errors = 2 * torch.rand(1, 512, 512, dtype=torch.float64, generator=generator)
    reference = torch.rand(1, 512, 512, generator=generator) < share
    gradients = []
    for dtype in (torch.float64, torch.float32):
        given = errors.to(dtype).clone().requires_grad_()
        jaccard_extension(given, reference).sum().backward()
        gradients.append(given.grad.double())
    assert (gradients[1] - gradients[0]).norm() < 1e-5 * gradients[0].norm()
    assert gradients[0].sum().item() == pytest.approx(1, rel=1e-12), "all pixels wrong: the Jaccard loss is 1"


def test_those_that_segmentation_models_pytorch_has_are_equal_to_its_own():
    theirs = pytest.importorskip("segmentation_models_pytorch.losses")
    logits, masks = draw(num_classes=NUM_CLASSES)
    cases = [
        ("dice", theirs.DiceLoss("multiclass", classes=[1, 2], smooth=0.5)),  # it counts twice there
        ("tversky", theirs.TverskyLoss("multiclass", classes=[1, 2], smooth=1, alpha=0.3, beta=0.7)),
        ("lovasz", theirs.LovaszLoss("multiclass")),
    ]
    for name, loss in cases:
        pair = torch.from_numpy(logits[:1]).float(), torch.from_numpy(masks[:1])
        assert loss_of(name, *pair).item() == pytest.approx(loss(pair[0], pair[1].long()).item(), rel=1e-5), name
    logits, masks = draw()
    cases = [
        ("dice", theirs.DiceLoss("binary", smooth=0.5)),
        ("tversky", theirs.TverskyLoss("binary", smooth=1, alpha=0.3, beta=0.7)),
        ("lovasz", theirs.LovaszLoss("binary")),
        ("focal", theirs.FocalLoss("binary", alpha=0.25, gamma=2)),
        ("bce", theirs.SoftBCEWithLogitsLoss()),
    ]
    for name, loss in cases:
        pair = torch.from_numpy(logits[:1]).float(), torch.from_numpy(masks[:1])
        assert loss_of(name, *pair).item() == pytest.approx(loss(pair[0], pair[1][:, None].float()).item(), rel=1e-5)


def test_an_image_without_cells_still_has_a_gradient():
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    segmentation_loss("dice", logits, torch.zeros(1, 8, 8, dtype=torch.uint8)).sum().backward()
    assert (logits.grad > 0).all()


def test_bf16_logits_are_summed_in_fp32():
    """In bf16 a sum of 10,000 halves would stop at 256."""
    found = segmentation_loss("dice", torch.zeros(1, 1, 100, 100, dtype=torch.bfloat16), torch.ones(1, 100, 100))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(1 - 10001 / 15001, rel=1e-6)


def test_an_own_loss_without_valid_is_no_number_for_unlabelled_pixels():
    logits, masks = draw()
    found = loss_of("loss_helpers_own:squares", logits, masks)
    assert found.isnan().tolist() == [False, False, False, True, True]


def test_a_function_of_a_config_file_is_imported_only_if_the_command_line_repeats_it(tmp_path):
    """The module writes a file when it is imported."""
    (tmp_path / "hostile.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w').close()\nloss = print\n")
    config = TrainConfig(DataConfig(train=("a",), val=None), ModelConfig(), loss="hostile:loss")
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
from pathlib import Path
from glioma_dist.cli.arguments import parse
from glioma_dist.config import TrainConfig
from glioma_dist.config.file import from_dict, to_dict
from glioma_dist.errors import InputError
from glioma_dist.files import write_json_atomically
file = Path({str(tmp_path / "config.json")!r})
values = to_dict(TrainConfig()) | {{"loss": "hostile:loss"}}
values["data"]["train"] = ["a"]
write_json_atomically(file, values)
from_dict(TrainConfig, values).validate()
try:
    parse(TrainConfig, ["--config", str(file)])
except InputError as error:
    print(error)
print(parse(TrainConfig, ["--config", str(file), "--loss", "hostile:loss"]).loss)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told, *_, loss = ended.stdout.splitlines()
    assert told.endswith("a function that would be run; if you trust it, repeat it: --loss hostile:loss")
    assert loss == config.loss
    assert not (tmp_path / "was_run").exists()
