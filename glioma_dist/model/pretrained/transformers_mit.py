"""MiT weights as transformers writes them, read by transformers itself: it knows the names of its older releases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import SegformerConfig, SegformerModel
from transformers.utils import logging

from glioma_dist.model.encoders.mit_names import MIT_SHAPES


def segformer_config(encoder: str) -> SegformerConfig:
    """transformers' configuration of an encoder of `MIT_SHAPES`, with fused attention."""
    config = SegformerConfig(**MIT_SHAPES[encoder])
    config._attn_implementation = "sdpa"
    return config


def read_segformer(encoder: str, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of any of transformers' SegFormer models by the names of `MitEncoder.segformer`.

    Returns them, and transformers' report: missing_keys, unexpected_keys, mismatched_keys.
    """
    with _quiet():
        model, report = SegformerModel.from_pretrained(
            None,
            config=segformer_config(encoder),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            state_dict=tensors,
        )
    return model.state_dict(), report


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and warnings: what does not fit is told in one line of ours."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
