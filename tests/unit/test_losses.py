"""Losses against numpy in fp64, image by image."""

import numpy as np
import pytest
import torch

from glioma_dist.losses import segmentation_loss


def draw(num_images: int = 5, height: int = 13, width: int = 17) -> tuple[np.ndarray, np.ndarray]:
    """Logits and masks; among the masks an empty and a full one."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, (num_images, height, width))
    masks = (generator.random((num_images, height, width)) < 0.3).astype(np.uint8)
    masks[1], masks[2] = 0, 1
    return logits, masks


def dice_slowly(logits: np.ndarray, mask: np.ndarray) -> float:
    share = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return 1 - (2 * (share * mask).sum() + 1) / (share.sum() + mask.sum() + 1)


def bce_slowly(logits: np.ndarray, mask: np.ndarray) -> float:
    share = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return -(mask * np.log(share) + (1 - mask) * np.log1p(-share)).mean()


SLOWLY = {"dice": dice_slowly, "bce": bce_slowly, "dice+bce": lambda *pair: dice_slowly(*pair) + bce_slowly(*pair)}


@pytest.mark.parametrize("kind", SLOWLY)
def test_each_image_has_its_own_loss(kind):
    logits, masks = draw()
    losses = segmentation_loss(kind, torch.from_numpy(logits)[:, None], torch.from_numpy(masks))
    assert (losses.dtype, losses.shape) == (torch.float64, (5,))
    half = segmentation_loss(kind, torch.from_numpy(logits)[:, None].bfloat16(), torch.from_numpy(masks))
    assert half.dtype == torch.float32
    np.testing.assert_allclose(losses, [SLOWLY[kind](*pair) for pair in zip(logits, masks, strict=True)], rtol=2e-6)


@pytest.mark.parametrize("kind", SLOWLY)
def test_a_batchs_losses_are_those_of_its_images_alone(kind):
    logits, masks = (torch.from_numpy(part) for part in draw())
    together = segmentation_loss(kind, logits[:, None], masks)
    alone = [segmentation_loss(kind, logits[row : row + 1, None], masks[row : row + 1]) for row in range(5)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=0)


def test_bce_is_torchs():
    logits, masks = (torch.from_numpy(part).float() for part in draw())
    expected = torch.nn.functional.binary_cross_entropy(logits.sigmoid(), masks, reduction="none").mean((1, 2))
    torch.testing.assert_close(segmentation_loss("bce", logits[:, None], masks), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", SLOWLY)
@pytest.mark.parametrize("value", [-1e4, 1e4])
@pytest.mark.parametrize("full", [0, 1])
def test_certain_logits_and_empty_or_full_masks_are_finite(kind, value, full):
    logits = torch.full((1, 1, 8, 8), value, requires_grad=True)
    masks = torch.full((1, 8, 8), full, dtype=torch.uint8)
    loss = segmentation_loss(kind, logits, masks)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()
    right = (value > 0) == bool(full)
    assert (loss.item() < 1e-6) == right


def test_an_image_without_cells_still_has_a_gradient():
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    segmentation_loss("dice", logits, torch.zeros(1, 8, 8, dtype=torch.uint8)).sum().backward()
    assert (logits.grad > 0).all()


@pytest.mark.parametrize("kind", SLOWLY)
def test_the_gradient_is_that_of_finite_differences(kind):
    logits, masks = draw(3, 3, 4)
    tensor = torch.from_numpy(logits)[:, None].requires_grad_()
    segmentation_loss(kind, tensor, torch.from_numpy(masks)).sum().backward()
    for place in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-4
        sides = [sum(SLOWLY[kind](*pair) for pair in zip(logits + sign * step, masks, strict=True)) for sign in (1, -1)]
        assert tensor.grad[:, 0][place].item() == pytest.approx((sides[0] - sides[1]) / 2e-4, rel=1e-3, abs=1e-6)


def test_bf16_logits_are_summed_in_fp32():
    """In bf16 a sum of 10,000 halves would stop at 256."""
    losses = segmentation_loss("dice", torch.zeros(1, 1, 100, 100, dtype=torch.bfloat16), torch.ones(1, 100, 100))
    assert losses.dtype == torch.float32
    assert losses.item() == pytest.approx(1 - 10001 / 15001, rel=1e-6)
