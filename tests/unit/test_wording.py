"""Numbers as people write them, in the lines of the commands."""

import math

import numpy as np
import pytest

from glioma_dist.inference import progress
from glioma_dist.wording import counted, short


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0, 3, "0"),
        (0.123456, 3, "0.123"),
        (99.96, 3, "100"),
        (99.96, 2, "100"),
        (1234.5, 3, "1230"),
        (8765, 2, "8800"),
        (-0.05, 3, "-0.05"),
        (4e-06, 2, "0.000004"),  # percent: one pixel of a native image
        (-1.5e-05, 3, "-0.000015"),
        (1_234_567, 3, "1230000"),
        (1e300, 3, "1e+300"),
        (math.inf, 3, "inf"),
        (math.nan, 3, "nan"),
        (np.float64(8765), 4, "8765"),
    ],
)
def test_a_number_has_significant_digits_and_no_power_of_ten(value, digits, text):
    assert short(value, digits) == text


def test_one_thing_is_not_several():
    assert [counted(number, "shard") for number in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]
    assert counted(2, "copy", "copies") == "2 copies"


def test_an_image_that_takes_minutes(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.PredictionProgress(30) as told:
        now[0] += 124
        told.finished("a: confluence 1 %")
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 30 images, 120 s an image, about 0:59:56 left"
