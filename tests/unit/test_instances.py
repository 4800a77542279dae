"""Scores of found cells: equal to pycocotools' COCOeval, and to a comparison of each pair of masks."""

import contextlib
import io

import numpy as np
import pytest

from glioma_dist.evaluation.instances import (
    IOU_THRESHOLDS,
    average_precision,
    match_cells,
    mean_by_cell,
    score_instances,
)


def draw_cells(generator: np.random.Generator, num: int, shape=(120, 140), radius: float = 9.0) -> np.ndarray:
    """A label image of discs; later ones cover earlier ones, of which some may be hidden."""
    labels = np.zeros(shape, np.int32)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for number in range(1, num + 1):
        centre = generator.uniform((0, 0), shape)
        labels[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < generator.uniform(0.5, 1) * radius**2] = number
    return labels


def changed(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The same cells, each moved by some pixels, some left out, some joined with the next."""
    found = np.zeros_like(labels)
    for number in np.unique(labels[labels > 0]):
        if generator.random() < 0.8:
            shift = generator.integers(-2, 3, 2)
            target = number + 1 if generator.random() < 0.1 else number
            found[np.roll(labels == number, shift, (0, 1))] = target
    return found


def by_coco(images: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """COCOeval's precision, (T, R), of images of (found, scores, reference)."""
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, results = {"info": {}, "images": [], "annotations": [], "categories": [{"id": 1, "name": "cell"}]}, []
    for image_id, (found, scores, reference) in enumerate(images, 1):
        truth["images"].append({"id": image_id, "height": found.shape[0], "width": found.shape[1]})
        for number in np.unique(reference[reference > 0]):
            rle = coco_mask.encode(np.asfortranarray(reference == number, np.uint8))
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": image_id, "category_id": 1, "iscrowd": 0}
                | {"segmentation": rle, "area": float(coco_mask.area(rle)), "bbox": coco_mask.toBbox(rle).tolist()}
            )
        for number, score in zip(np.unique(found[found > 0]), scores, strict=True):
            rle = coco_mask.encode(np.asfortranarray(found == number, np.uint8))
            results.append({"image_id": image_id, "category_id": 1, "segmentation": rle, "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.params.maxDets = [1, 10, 100_000]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, 0, -1]


def make_images(seed: int, num_images: int = 4, ties: bool = False, num_cells: int = 25) -> list:
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(num_images):
        reference = draw_cells(generator, num_cells)
        found = changed(reference, generator)
        num = len(np.unique(found[found > 0]))
        scores = generator.integers(1, 4, num) / 4 if ties else generator.random(num)
        images.append((found, scores, reference))
    return images


def empty_cases() -> dict[str, list]:
    generator = np.random.default_rng(5)
    reference = draw_cells(generator, 12)
    found = changed(reference, generator)
    num = len(np.unique(found[found > 0]))
    nothing, scores = np.zeros_like(reference), np.linspace(0.3, 0.9, num)
    return {
        "no true cell in one": [(found, scores, reference), (found, scores, nothing)],
        "none found in one": [(nothing, np.zeros(0), reference), (found, scores, reference)],
        "an empty image": [(nothing, np.zeros(0), nothing), (found, scores, reference)],
        "all right": [(reference, np.full(len(np.unique(reference)) - 1, 0.5), reference)],
        "no background": [(found + 1, np.linspace(0, 1, num + 1), reference + 1)],
    }


def halves() -> list:
    """A found cell of two true ones, each with IoU exactly 0.5: which of them is taken is a tie."""
    reference, found = np.zeros((8, 8), np.int32), np.zeros((8, 8), np.int32)
    reference[:4, :4], reference[4:, :4] = 1, 2
    found[:, :4] = 7
    found[:4, 4:], reference[:4, 4:] = 9, 5
    return [(found, np.array([0.5, 0.5]), reference)]


CASES = {
    **{f"drawn {seed}": make_images(seed) for seed in range(3)},
    **{f"ties {seed}": make_images(seed, ties=True) for seed in range(3)},
    **empty_cases(),
    "exactly half": halves(),
}


@pytest.mark.parametrize("images", CASES.values(), ids=CASES.keys())
def test_average_precision_is_that_of_pycocotools(images):
    found = average_precision([match_cells(*image) for image in images])
    np.testing.assert_array_equal(found, by_coco(images))


def test_more_than_a_thousand_cells_in_an_image():
    """COCO's own limit is 100 found cells an image, LIVECell's 2,000; here there is none."""
    generator = np.random.default_rng(0)
    reference = np.zeros((210, 350), np.int32)
    for number, (y, x) in enumerate(np.argwhere(np.ones((26, 43)))):
        height, width = generator.integers(3, 8, 2)
        reference[8 * y : 8 * y + height, 8 * x : 8 * x + width] = number + 1
    found = np.roll(reference, 1, 1)
    scores = generator.random(reference.max())
    matched = match_cells(found, scores, reference)
    assert matched.num_true > 1000
    np.testing.assert_array_equal(average_precision([matched]), by_coco([(found, scores, reference)]))


def test_matches_are_those_of_all_pairs_of_masks():
    for found, scores, reference in make_images(7, 2):
        matched = match_cells(found, scores, reference)
        cells = [found == number for number in np.unique(found[found > 0])]
        true = [reference == number for number in np.unique(reference[reference > 0])]
        iou = np.array([[(a & b).sum() / (a | b).sum() for b in true] for a in cells])
        for threshold, is_match in zip(IOU_THRESHOLDS, matched.is_match, strict=True):
            pairs = iou >= threshold  # above 0.5, a cell has at most one
            assert is_match.sum() == (pairs.any(1)).sum() == (pairs.any(0)).sum()


def test_scores_and_counts():
    images = make_images(3)
    matched = [match_cells(*image) for image in images]
    score = score_instances(matched)
    precision = by_coco(images)
    assert (score.ap, score.ap_50, score.ap_75) == pytest.approx(
        (precision.mean(), precision[0].mean(), precision[5].mean()), abs=1e-15
    )
    counts = [(len(np.unique(found)) - 1, len(np.unique(true)) - 1) for found, _, true in images]
    assert (score.num_found, score.num_true) == tuple(np.sum(counts, axis=0))
    assert score.mean_count_error == pytest.approx(np.mean([abs(a - b) for a, b in counts]))
    true_positives = sum(image.is_match[0].sum() for image in matched)
    wrong = sum(image.num_found - image.is_match[0].sum() for image in matched)
    missed = sum(image.num_true - image.is_match[0].sum() for image in matched)
    assert score.f1_50 == pytest.approx(2 * true_positives / (2 * true_positives + wrong + missed))


def test_images_without_any_cell_have_no_score():
    nothing = np.zeros((5, 6), np.int32)
    score = score_instances([match_cells(nothing, np.zeros(0), nothing)])
    assert (score.ap, score.ap_50, score.ap_75, score.f1_50) == (None,) * 4
    assert (score.num_true, score.num_found, score.mean_count_error) == (0, 0, 0)
    found = nothing + np.eye(5, 6, dtype=np.int32)
    assert score_instances([match_cells(found, np.ones(1), nothing)]).f1_50 == 0


def test_a_cells_score_is_the_mean_over_its_pixels():
    generator = np.random.default_rng(1)
    labels = changed(draw_cells(generator, 20), generator)
    values = generator.random(labels.shape)
    expected = [values[labels == number].mean() for number in np.unique(labels[labels > 0])]
    np.testing.assert_allclose(mean_by_cell(labels, values), expected, rtol=1e-12)
    assert mean_by_cell(np.zeros_like(labels), values).shape == (0,)
