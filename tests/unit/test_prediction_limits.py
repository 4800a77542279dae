"""Evaluation, prediction and validation give no kernel of a GPU a tensor that it cannot take: tiles, or one line."""

import re
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from helpers import TINY_CHANNELS, run, tiny_config
from test_kernel_limits import QUICK, SIZES, TooLarge
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from glioma_dist.benchmark import cell
from glioma_dist.config import DataConfig, ModelConfig, PredictConfig, ScaleConfig
from glioma_dist.data.batch import Batch
from glioma_dist.data.images.choice import Choice
from glioma_dist.errors import InputError
from glioma_dist.evaluation.network import Network, cell_probability
from glioma_dist.inference.pictures import find_pictures
from glioma_dist.inference.predict import _Job
from glioma_dist.inference.record import Place, Record, RecordWriter
from glioma_dist.inference.result_folder import open_results
from glioma_dist.model.unet import UNet, build_model, normalise
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.kernel_limits import KernelCalls, check_forward, forward_fits
from glioma_dist.scale.memory_estimator import make_fake
from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.scale.tile_size import CPU_TILE, TileSize
from glioma_dist.size import Size
from glioma_dist.training import validation

CPU = torch.device("cpu")
SMALL = TileSize(2**14, 2**18)
"""As if a kernel could take 2^18 numbers only: mit_b0's maps of 32,768 pixels, and in tiles those of 87,381."""


def network(encoder: str = "mit_b0", tiles: TileSize = SMALL) -> Network:
    """As `load_network` makes it for a device of such tiles."""
    model, _ = build_model(ModelConfig(encoder=encoder, decoder_channels=TINY_CHANNELS), 0)
    checkpoint_activations(model.eval(), "none", tiles)
    return Network(model, CPU, SpatialGroup(), encoder, model.encoder.tileable_layers(), tiles)


def noise(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)


def probability(network: Network, side: int) -> tuple[Tensor, int]:
    """Of an image of noise, and the elements of the largest tensor, weights aside, that a kernel was given."""
    network.fit(Size(side, side))  # which counts on fake tensors, once
    weights, seen = {each.data_ptr() for each in network.model.parameters()}, [0]
    with KernelCalls(lambda _, tensors: seen.extend(x.numel() for x in tensors if x.data_ptr() not in weights)):
        found = cell_probability(network, noise(side), None, Size(side, side))
    return found, max(seen)


def test_an_image_goes_in_tiles_only_where_it_has_to():
    in_tiles, plain = network(), network(tiles=CPU_TILE)
    for side, expected in ((160, False), (256, True), (160, False)):
        found, largest = probability(in_tiles, side)
        assert largest <= SMALL.max_elements
        assert [layer.run_tiles is not None for layer in in_tiles.tileable_layers] == [expected] * len(
            in_tiles.tileable_layers
        )
        without, largest = probability(plain, side)
        assert (largest > SMALL.max_elements) == expected
        assert torch.allclose(found, without, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("encoder", "side"), [("mit_b0", 320), ("mobilenet_v2", 320)])
def test_what_no_kernel_takes_is_refused_before_it_is_computed(encoder, side):
    refusing = network(encoder)
    with pytest.raises(InputError):
        refusing.fit(Size(side, side))  # which counts on fake tensors, once
    with KernelCalls(lambda *_: pytest.fail("a kernel was started")), pytest.raises(InputError) as refused:
        cell_probability(refusing, noise(side), None, Size(side, side))
    told = re.fullmatch(
        rf"an image of {side}x{side}: with {encoder} .*: give --input-size (\S+) at most", str(refused.value)
    )
    fitting = Size.parse(told[1])
    assert 64 <= fitting.width < side
    _, largest = probability(refusing, fitting.width)
    assert largest <= SMALL.max_elements


@pytest.mark.parametrize("encoder", ["mit_tiny", "vgg19", "timm/convnext_atto"])
@pytest.mark.parametrize("strips", [1, 3])
@pytest.mark.parametrize("size", [Size(2**28, 1), Size(1, 2**28), Size(16448, 16448), Size(270_000, 1000)], ids=str)
def test_the_size_that_a_refusal_names_fits(encoder, size, strips):
    size = Size(size.width, max(size.height, 32 * strips))
    tiles = TileSize(2**24, 2**27)
    assert not forward_fits(encoder, size, strips, tiles, in_tiles=False)
    with pytest.raises(InputError) as refused:
        check_forward(encoder, size, strips, tiles, in_tiles=False)
    fitting = Size.parse(str(refused.value).split()[-3])
    assert forward_fits(encoder, fitting, strips, tiles, in_tiles=False)
    assert fitting.width <= size.width + 31
    assert fitting.height <= size.height + 31
    assert len(str(refused.value)) <= 500


def test_a_cpu_has_no_bound():
    assert forward_fits("vgg19", Size(2**28, 2**28), 1, CPU_TILE, in_tiles=False)


@pytest.mark.parametrize("size", ["135 Mpx", "270 Mpx"])
def test_no_call_of_a_prediction_is_too_large(size):
    """At a GPU's own bound, on tensors without contents."""
    mode = FakeTensorMode()
    with torch.device("meta"):  # of which nothing is drawn
        model = UNet(ModelConfig(encoder="mit_b3")).eval()
    checkpoint_activations(model, "none", QUICK)
    make_fake(model, mode)
    predicting = Network(model, CPU, SpatialGroup(), "mit_b3", model.encoder.tileable_layers(), QUICK)
    predicting.fit(SIZES[size])
    assert all(layer.run_tiles for layer in predicting.tileable_layers)
    with mode, TooLarge() as seen, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        images = torch.zeros(1, 1, SIZES[size].height, SIZES[size].width, dtype=torch.uint8)
        predicting.model(normalise(images))
    assert not seen.calls


def test_predict_computes_images_that_are_too_large_in_parts_and_refuses_such_an_input_size_at_once(tmp_path):
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    for path, side in ((small, 64), (large, 320)):
        cv2.imwrite(str(path), noise(side))
    config = PredictConfig(tmp_path, str(tmp_path), tmp_path / "out")
    (tmp_path / "out").mkdir()
    pictures, results = find_pictures([small, large], Choice()), open_results(tmp_path / "out", ("mask", "overlay"))

    def job(config: PredictConfig, data: DataConfig) -> _Job:
        record = RecordWriter(Place(tmp_path / "out"), Record(), 0)
        checkpoint = SimpleNamespace(config=SimpleNamespace(data=data, model=ModelConfig()), metadata={})
        return _Job(config, checkpoint, network(), results, record, "", {})

    done, failed = job(config, DataConfig(transform="random-crop")).do(pictures)
    assert not failed
    assert [(each.image.name, each.width, each.way) for each in done.values()] == [
        ("small.png", 64, "whole"),
        ("large.png", 320, "strips"),
    ]
    with pytest.raises(InputError, match="an image of 320x320"):
        job(replace(config, input_size=Size(320, 320)), DataConfig()).do(pictures)


@pytest.mark.parametrize("encoder", ["vgg19", "mobilenet_v2"])
def test_a_benchmark_s_cell_that_training_refuses_is_a_row(encoder):
    """Before the GPU is looked for, which is not here."""
    settings = {"network": "glioma-dist", "level": "none", "layout": "contiguous", "precision": "fp32", "repeats": 1}
    settings |= {"batch_size": 1, "warm_up": 0, "device": "cuda", "data": None, "workers": 0}
    (row,) = run(cell.measure_or_say_why_not, cell.Cell(encoder=encoder, size="9600x9600", **settings))
    assert row["status"] == "refused"
    assert "give at most --data.size " in row["error"]
    assert row["numerics"]["cudnn.allow_tf32"] is False


@pytest.mark.parametrize(
    ("encoder", "level", "expected"),
    [
        ("mit_b3", "none", "give --scale.activation-checkpointing full"),
        ("mit_b3", "selective", "give --scale.activation-checkpointing full"),
        ("mit_b3", "full", None),
        ("vgg19", "full", "cut it into fields of 5792x5792 at most"),
    ],
)
def test_a_validation_image_larger_than_those_of_training_is_refused(tmp_path, encoder, level, expected):
    """What the trainer of a GPU would see: the image has a size and no pixels."""
    config = tiny_config(tmp_path, tmp_path / "run", encoder=encoder, scale=ScaleConfig(tile_elements=2**24))
    meta = torch.device("meta")
    trainer = SimpleNamespace(
        config=config,
        level=level,
        spatial_group=SpatialGroup(),
        context=SimpleNamespace(device=meta, seconds_to_answer=1),
        stop=SimpleNamespace(immediate=lambda: torch.no_grad()),
    )
    images = torch.empty(1, 1, 13000, 13000, dtype=torch.uint8, device=meta)
    batch = Batch(images, images[:, 0], torch.zeros(1, dtype=torch.int64), ("one",), 13000)
    found, problem = validation._next_image(trainer, iter([batch]))
    if expected is None:
        assert (found, problem) == (batch, None)
    else:
        assert found is None
        assert isinstance(problem, InputError)
        assert str(problem).startswith("validation image one")
        assert str(problem).endswith(expected)
