"""Pictures of a data report: of pairs that are alike, of the images that most need a look, and of the usual ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.errors import InputError
from glioma_dist.limits import IGNORE
from glioma_dist.report.data_findings import Alike
from glioma_dist.report.data_samples import ReportedSample
from glioma_dist.report.prediction_pictures import Thumbnail, draw_thumbnail

MAX_PAIRS, MAX_FLAGGED, NUM_EXTREMES, NUM_USUAL = 24, 36, 6, 12
"""Pairs with pictures; images with a flag; the least and the most covered, each; and images evenly spread."""
MAX_BYTES = 60_000
WIDTH_PX = 360
MOST_COVERED, LEAST_COVERED = "most-covered", "least-covered"
TAGS = {
    MOST_COVERED: f"the {NUM_EXTREMES} images with the highest confluence",
    LEAST_COVERED: f"the {NUM_EXTREMES} images with the lowest confluence above 0",
}


@dataclass
class Pictures:
    """Small pictures by the places of their samples. cards: the places that have a card, in the order of the samples;
    tags: more words to find them by."""

    of: dict[int, Thumbnail | None] = field(default_factory=dict)
    cards: list[int] = field(default_factory=list)
    tags: dict[int, tuple[str, ...]] = field(default_factory=dict)


def draw_pictures(readers: Sequence[ShardReader], samples: Sequence[ReportedSample], alike: Alike) -> Pictures:
    """Read again the images that the page shows, and draw them with their outlines."""
    covered = sorted(range(len(samples)), key=lambda place: samples[place].confluence)
    some = [place for place in covered if samples[place].confluence > 0]
    tags: dict[int, tuple[str, ...]] = {}
    for name, places in ((LEAST_COVERED, some[:NUM_EXTREMES]), (MOST_COVERED, some[-NUM_EXTREMES:])):
        for place in places:
            tags[place] = (*tags.get(place, ()), name)
    usual = np.linspace(0, len(samples) - 1, min(NUM_USUAL, len(samples))).round().astype(int).tolist()
    cards = sorted({*_flagged(samples), *tags, *usual})
    pictures = Pictures(cards=cards, tags=tags)
    paired = [place for pair in alike.pairs[:MAX_PAIRS] for place in (pair.first, pair.second)]
    for place in dict.fromkeys([*cards, *paired]):
        pictures.of[place] = _draw(readers, samples[place])
    return pictures


def _flagged(samples: Sequence[ReportedSample]) -> Iterable[int]:
    """Some images of each flag, as many of one as of another."""
    by_flag: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        for flag in sample.flags:
            by_flag.setdefault(flag, []).append(place)
    each = MAX_FLAGGED // max(1, len(by_flag))
    return [place for places in by_flag.values() for place in places[:each]]


def _draw(readers: Sequence[ShardReader], described: ReportedSample) -> Thumbnail | None:
    at = described.at
    try:
        sample = readers[at.split].read(at.shard, at.place)
    except InputError:
        return None
    cells = ((sample.mask > 0) & (sample.mask != IGNORE)).astype(np.uint8)
    return draw_thumbnail(normalize_intensity(sample.image, "percentile"), cells, WIDTH_PX, MAX_BYTES)
