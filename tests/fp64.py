"""Trainings in fp64."""

import pytest

from glioma_dist.training import preparation


def train_in_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have trainings of this process compute in fp64, as long as `monkeypatch` lasts."""
    build_model = preparation.build_model
    monkeypatch.setattr(preparation, "build_model", lambda *given: (build_model(*given)[0].double(), []))
