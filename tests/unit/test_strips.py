"""Every function of PyTorch that modules on strips may call, against whole maps: outputs, gradients and buffers."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strip_helpers import Exchange, ThreadGroup, on_threads, split_equals_whole
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from glioma_dist.config import ModelConfig
from glioma_dist.errors import InputError
from glioma_dist.model.unet import build_model
from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.scale.spatial_layers import split_spatially
from glioma_dist.scale.strips import functions
from glioma_dist.scale.strips.names import ALONG, COPIES, GATHERED, MOVED, POINTWISE
from glioma_dist.scale.strips.parallel import spatial_parallel
from glioma_dist.scale.strips.rows import Rows, mark, rows_of

HEIGHTS = [3, 6, 4]
"""Uneven, and no multiples of anything."""
WIDTH = 10


class Function(nn.Module):
    """A function of a map (B, C, H, W), after a convolution that makes it differ from row to row."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.weights = nn.Parameter(torch.randn(4, 4))
        self.function = function

    def forward(self, images: Tensor) -> object:
        return self.function(self.first(images), self.weights)


def heads(x: Tensor) -> Tensor:
    """(B, heads, tokens, C): a map as attention takes it."""
    return x.flatten(2).transpose(1, 2).unflatten(2, (2, 2)).transpose(1, 2)


def attend(x: Tensor) -> Tensor:
    q = heads(x)
    scores = q @ (2 * q).transpose(-2, -1)
    return scores.softmax(-1) @ q


def windows(x: Tensor, rows: int) -> Tensor:
    """Windows of `rows` rows, as a Swin transformer has them, and back."""
    b, c, h, w = x.shape
    x = functional.pad(x, (0, 0, 0, -h % rows))
    parts = x.view(b, c, -1, rows, w).permute(0, 2, 3, 4, 1)
    parts = parts - parts.mean((2, 3), keepdim=True)
    return parts.permute(0, 4, 1, 2, 3).reshape(b, c, -1, w)[:, :, :h]


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "conv2d strided": lambda x, w: functional.conv2d(x, w.view(4, 4, 1, 1).expand(4, 4, 3, 3), stride=2, padding=1),
    "conv2d same": lambda x, w: functional.conv2d(x, w[:, :, None, None].expand(4, 4, 2, 3), padding="same"),
    "conv2d far": lambda x, w: functional.conv2d(x, w[:, :, None, None].expand(4, 4, 3, 3), padding=5, dilation=5),
    "conv2d valid": lambda x, w: functional.conv2d(x, w[:, :, None, None].expand(4, 4, 3, 1), w[0]),
    "conv2d wide": lambda x, w: functional.conv2d(x, w[:, :, None, None].expand(4, 4, 2, 2), padding=1),
    "conv_transpose2d": lambda x, w: functional.conv_transpose2d(x, w[:, :, None, None].expand(4, 4, 2, 2), w[0], 2),
    "conv_transpose2d far": lambda x, w: functional.conv_transpose2d(
        x, w[:, :, None, None].expand(4, 4, 3, 3), w[0], stride=3, padding=1, output_padding=2, dilation=2
    ),
    "max_pool2d": lambda x, w: functional.max_pool2d(x, 3, 2, 1),
    "max_pool2d ceil": lambda x, w: functional.max_pool2d(x, 2, 2, ceil_mode=True),
    "max_pool2d indices": lambda x, w: functional.max_pool2d(x, 2, return_indices=True)[0],
    "avg_pool2d": lambda x, w: functional.avg_pool2d(x, 3, 1, 1),
    "avg_pool2d counted": lambda x, w: functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "avg_pool2d ceil": lambda x, w: functional.avg_pool2d(x, 2, 2, ceil_mode=True),
    "adaptive_avg_pool2d": lambda x, w: [functional.adaptive_avg_pool2d(x, each) for each in (1, 3, (None, 2))],
    "adaptive_max_pool2d": lambda x, w: functional.adaptive_max_pool2d(x, 1),
    "pad": lambda x, w: functional.pad(x, (1, 0, 2, 3), value=0.5),
    "pad modes": lambda x, w: [functional.pad(x, (1, 1, 2, 2), mode) for mode in ("reflect", "replicate", "circular")],
    "pad less": lambda x, w: functional.pad(x, (0, 0, -1, -1)),
    "interpolate": lambda x, w: [
        functional.interpolate(x, scale_factor=2, mode=mode) for mode in ("nearest", "bilinear", "bicubic")
    ],
    "interpolate corners": lambda x, w: functional.interpolate(x, (29, 17), mode="bilinear", align_corners=True),
    "interpolate other": lambda x, w: functional.interpolate(x, (20, 7), mode="bilinear"),
    "interpolate less": lambda x, w: functional.interpolate(x, scale_factor=0.7, mode="bilinear"),
    "interpolate tokens": lambda x, w: functional.interpolate(x.flatten(2), 20),
    "interpolate area": lambda x, w: functional.interpolate(x, (5, 5), mode="area"),
    "upsample": lambda x, w: nn.Upsample(scale_factor=2)(x),
    "pixel_shuffle": lambda x, w: functional.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x, w: functional.pixel_unshuffle(functional.pad(x, (0, 0, 0, 1)), 2),
    "instance_norm": lambda x, w: functional.instance_norm(x, weight=w[0], bias=w[1]),
    "group_norm": lambda x, w: functional.group_norm(x, 2, w[0], w[1]),
    "layer_norm": lambda x, w: functional.layer_norm(x.permute(0, 2, 3, 1), (4,), w[0]).permute(0, 3, 1, 2),
    "layer_norm rows": lambda x, w: functional.layer_norm(x, x.shape[1:]),
    "sum": lambda x, w: [x.sum(1), x.sum((2, 3)), x.sum(), x.sum(2, keepdim=True)],
    "mean": lambda x, w: [x.mean(1, keepdim=True), x.mean((2, 3), keepdim=True), x.mean()],
    "var": lambda x, w: [x.var(1), x.std((2, 3)), *torch.var_mean(x, (1, 2, 3), correction=0)],
    "norm": lambda x, w: [x.norm(dim=(2, 3)), x.norm(p=1, dim=2), torch.linalg.vector_norm(x, dim=1)],
    "norm of torch": lambda x, w: [torch.norm(x, dim=1), torch.norm(x, None, (2, 3)), torch.norm(x, "nuc", (2, 3))],
    "linalg_norm": lambda x, w: torch.linalg.norm(x.permute(0, 2, 3, 1), dim=-1),
    "linalg_norm matrix": lambda x, w: [
        torch.linalg.norm(x, each, dim=(2, 3)) for each in (2, 1, -2, "nuc", "fro", None, math.inf)
    ],
    "linalg_norm order": lambda x, w: [torch.linalg.norm(x, ord=1, dim=2), torch.linalg.vector_norm(x, ord=1, dim=1)],
    "names of numpy": lambda x, w: [
        *(x.mean(axis=1, keepdims=True), x.sum(axis=(2, 3)), x.var(axis=2), x.softmax(axis=1), x.amax(axis=1)),
        *(torch.cat([x, x], axis=1), x.unsqueeze(1).squeeze(axis=1)),
    ],
    "matmul": lambda x, w: attend(x),
    "__matmul__ channels": lambda x, w: x.flatten(2) @ x.flatten(2).transpose(1, 2),
    "matmul batch": lambda x, w: torch.matmul(x.transpose(1, 2), x.transpose(1, 2).transpose(2, 3)),
    "bmm": lambda x, w: torch.bmm(x.flatten(2).transpose(1, 2), w.expand(len(x), 4, 4)),
    "linear": lambda x, w: functional.linear(x.permute(0, 2, 3, 1), w, w[0]),
    "linear rows": lambda x, w: functional.linear(x.transpose(2, 3), torch.eye(13, dtype=x.dtype)),
    "einsum": lambda x, w: [torch.einsum("bchw,cd->bdhw", x, w), torch.einsum("bchw,bdhw->bcd", x, x)],
    "attention": lambda x, w: functional.scaled_dot_product_attention(heads(x), heads(x), heads(x)),
    "attention masked": lambda x, w: functional.scaled_dot_product_attention(
        heads(x), heads(x), heads(x), attn_mask=x.flatten(2).mean(1)[:, None, None]
    ),
    "reshape": lambda x, w: x.reshape(len(x), 2, 2, -1, WIDTH).flatten(1, 2),
    "reshape batch": lambda x, w: x.permute(0, 2, 3, 1).reshape(-1, 4).view(len(x), -1, WIDTH, 4),
    "view": lambda x, w: [windows(x, 2), windows(x, 7)],
    "view_as": lambda x, w: [x.view_as(x), x.view_as(x.flatten(2)).view_as(x)],
    "expand": lambda x, w: (
        x.mean(1, keepdim=True).expand(-1, 4, -1, -1) + x.unsqueeze(1).expand(2, 3, 4, 13, WIDTH)[:, 1]
    ),
    "repeat": lambda x, w: [x.repeat(1, 2, 1, 1), x.repeat(1, 1, 2, 1)],
    "cat": lambda x, w: [torch.cat([x, -x], 1), torch.concat([x, x], 2)],
    "__getitem__": lambda x, w: [x[:, 1:3], x[..., ::2, 1:], x[:, :, 2:-1], x[0], x[:, :, 5], x[:, None], x[:, [0, 2]]],
    "__iter__": lambda x, w: sum(each for each in x),
    "prelu": lambda x, w: functional.prelu(x, w[0]),
    "shape": lambda x, w: x * (x.shape[2] + x.size(2) + x.size()[3] + len(x) + x.numel() + x.nelement()),
    "permute": lambda x, w: x.permute(0, 2, 3, 1).transpose(1, 2).swapaxes(1, 2).swapdims(1, 2).movedim(3, 1),
    "moveaxis": lambda x, w: x.moveaxis(1, 0).unsqueeze(0).squeeze(0).mT.adjoint(),
    "chunk": lambda x, w: [*x.chunk(2, 1), *x.split(3, 1), *x.unbind(1), *x.tensor_split(2, 1), x.chunk(2, 2)[1]],
    "select": lambda x, w: [x.select(1, 0), x.narrow(1, 1, 2), x.select(2, 4), x.narrow(2, 1, 3)],
    "stack": lambda x, w: torch.stack([x, 2 * x], 1),
    "t": lambda x, w: [x[0, 0].t(), x[0, 0].T],
    "channel_shuffle": lambda x, w: functional.channel_shuffle(x, 2),
    "softmax": lambda x, w: [x.softmax(1), x.log_softmax(2), functional.softmin(x, 3)],
    "cumsum": lambda x, w: [x.cumsum(1), x.cumprod(2)],
    "argmax": lambda x, w: x * (x.argmax(1, keepdim=True) + x.argmin(2, keepdim=True)),
    "max": lambda x, w: [x.amax((2, 3)), x.amin(1), x.max(1)[0], x.min(2)[0], x.max(), torch.max(x, -x)],
    "any": lambda x, w: x * ((x > 0).any(1, keepdim=True).int() + (x > 9).all(2, keepdim=True).int()),
    "sort": lambda x, w: [x.sort(1)[0], x.topk(2, 1)[0], x.median(1)[0], x.prod(1), x.logsumexp(1), x * x.argsort(1)],
    "normalize": lambda x, w: [functional.normalize(x), functional.normalize(x, dim=2), functional.glu(x, 1)],
    "rms_norm": lambda x, w: functional.rms_norm(x.permute(0, 2, 3, 1), (4,), w[0]),
    "whole": lambda x, w: [x.roll((1, 2), (2, 3)), x.flip(2), x.rot90(1, (2, 3)), x.repeat_interleave(2, 2), x.tril()],
    "indices": lambda x, w: [x.index_select(1, torch.tensor([0, 2])), x.gather(2, x.argsort(2)), x.triu()],
    "take": lambda x, w: [torch.take_along_dim(x, x.argsort(1), 1), torch.cdist(x.flatten(2), x.flatten(2))],
    "grid_sample": lambda x, w: functional.grid_sample(x, x.new_zeros(2, 3, 3, 2).fill_(0.3), align_corners=False),
    "unfold": lambda x, w: functional.fold(functional.unfold(x, 3, padding=1), (13, WIDTH), 3, padding=1),
    "conv1d": lambda x, w: functional.conv1d(x.flatten(2), w[:, :, None]),
    "conv3d": lambda x, w: functional.conv3d(x[:, None], w[None, None, None, :2]),
    "addmm": lambda x, w: [
        torch.baddbmm(x[:, 0], x[:, 1], x.new_ones(2, WIDTH, WIDTH)),
        x[0, 0].T.addmm(w.new_zeros(WIDTH, 4), w.new_zeros(4, 13)),
    ],
    "trapezoid": lambda x, w: torch.cumulative_trapezoid(x, dim=2),
    "dropout": lambda x, w: functional.dropout(x, 0.0) + functional.dropout2d(x, 0.5, training=False),
    "positions": lambda x, w: x + functional.interpolate(w[None, None], x.shape[2:], mode="bilinear"),
    "few rows": lambda x, w: functional.interpolate(functional.max_pool2d(x, 6), x.shape[2:]) + x,
    "in place": lambda x, w: x.mul(2).add_(x).relu_() + (x * 2).clamp_(min=w[0, 0]),
}

ELSEWHERE = frozenset(
    (
        *("sum", "var", "norm", "linalg_norm", "matmul batch", "bmm", "linear", "__getitem__", "__iter__", "permute"),
        *("norm of torch", "linalg_norm matrix", "linalg_norm order", "names of numpy"),
        *("chunk", "select", "stack", "t", "view_as", "max", "sort", "rms_norm", "moveaxis", "mean"),
    )
)
"""Functions after which rows are in another dimension than that of images. Their results are made whole in the end."""


def made_whole(found: object) -> object:
    """`roll` by nothing, which gathers the rows."""
    if isinstance(found, list):
        return [made_whole(each) for each in found]
    return found.roll(0, 0) if found.ndim else found


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_strips_gives_what_it_gives_of_whole_maps(name):
    torch.manual_seed(0)
    images = torch.randn(2, 3, sum(HEIGHTS), WIDTH, dtype=torch.float64)
    function = FUNCTIONS[name]
    if name in ELSEWHERE:
        function = lambda x, w: made_whole(FUNCTIONS[name](x, w))  # noqa: E731
    split_equals_whole(Function(function).double(), images, HEIGHTS)


def alone(size: int = 13) -> Rows:
    """Rows 3 to 9 of `size`: of a process that needs no other."""
    return Rows(ThreadGroup(1, Exchange(3)), 2, (0, 3, 9, size))


def function_of(name: str) -> Callable[..., object] | None:
    return getattr(Tensor, name, None) or getattr(torch, name, None) or getattr(functional, name, None)


@pytest.mark.filterwarnings("ignore:This overload")
@pytest.mark.parametrize("name", sorted(each for each in POINTWISE | COPIES if function_of(each) and each != "cuda"))
def test_a_function_of_each_element_gives_the_rows_of_the_whole(name):
    """With whatever of a strip, a whole map, a row of numbers and a number it takes."""
    rows = alone()
    function = function_of(name)
    whole = torch.linspace(0.1, 0.9, 2 * 4 * 13 * 3, dtype=torch.float64).view(2, 4, 13, 3)
    other, column = whole.flip(0), torch.linspace(0.2, 0.8, 13, dtype=torch.float64).view(13, 1)
    tried = 0
    for kind in (torch.float64, torch.int64, torch.bool):
        maps = [(10 * each).to(kind) if kind != torch.float64 else each for each in (whole, other, column)]
        for rest in ((), (1,), (maps[1],), (maps[2],), (0.1, 0.5), (maps[1], maps[2]), (whole > 0.5, 0.5), (kind,)):
            arguments = [each.clone() if isinstance(each, Tensor) else each for each in (maps[0], *rest)]
            if name.startswith("where"):
                arguments = [whole > 0.5, maps[0], maps[1].clone()]
            try:
                expected = function(*arguments)
            except (RuntimeError, TypeError, NotImplementedError, ValueError, IndexError):
                continue
            if not isinstance(expected, Tensor):
                continue
            first = arguments[0] if name.startswith("where") else maps[0]
            strip = mark(first[:, :, 3:9].clone(), rows)
            given = (maps[0], *rest) if not name.startswith("where") else (None, maps[0], maps[1])
            with functions.StripFunctions():
                found = function(strip, *(each.clone() if isinstance(each, Tensor) else each for each in given[1:]))
            assert rows_of(found) == rows
            if not name.startswith("empty"):
                torch.testing.assert_close(found, expected[:, :, 3:9], rtol=0, atol=0, equal_nan=True)
            tried += 1
    assert tried, name


class Noting(TorchFunctionMode):
    """Notes which functions are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.add(functions.name_of(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_every_name_of_the_tables_is_tried():
    """That the tests above call each: what is in a table and never called is not proved."""
    with Noting() as noting:
        for each in FUNCTIONS.values():
            Function(each).double()(random_images())
    # The drawn networks have the first; others have other names in other versions of PyTorch.
    tried = noting.names | {"batch_norm", "__matmul__", "__iter__", "nelement"}
    assert {*functions.RULES, *MOVED, *ALONG, *GATHERED} - tried == set()


def random_images(height: int = sum(HEIGHTS), width: int = WIDTH) -> Tensor:
    return torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


@torch.library.custom_op("glioma_dist_tests::twice", mutates_args=())
def twice(values: Tensor) -> Tensor:
    return values * 2


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], object], str]] = {
    "a function of no table": (lambda x, w: torch.fft.fft2(x), "fft_fft2"),
    "dropout": (lambda x, w: functional.dropout(x, 0.5), "dropout"),
    "random numbers": (lambda x, w: x * torch.rand(2, 1, 1, 1), "rand"),
    "stochastic depth": (lambda x, w: x * x.new_empty(2, 1, 1, 1).bernoulli_(0.5), "bernoulli_"),
    "an autograd function": (lambda x, w: Double.apply(x), "Double"),
    "an operator of a library": (lambda x, w: x + torch.ops.glioma_dist_tests.twice(x.detach()), "twice"),
    "numbers for Python": (lambda x, w: x * x.sum(1).tolist()[0][0][0], "tolist"),
    "checkpointing": (lambda x, w: checkpoint(lambda y: y * 2, x, use_reentrant=False), "torch.utils.checkpoint"),
    "reentrant checkpointing": (lambda x, w: checkpoint(lambda y: y * 2, x, use_reentrant=True), "CheckpointFunction"),
    "out": (lambda x, w: torch.add(x.detach(), 1, out=torch.empty(2, 4, 13, 10, dtype=x.dtype)), "`out`"),
    "an argument that no rule has": (
        lambda x, w: torch.group_norm(x, 2, w[0], w[1], 1e-5, False),
        "group_norm, called by",
    ),
    "in place of a whole map": (lambda x, w: x.new_zeros(2, 4, 13, WIDTH).add_(x), "add_"),
    "writing into a map": (lambda x, w: x.clone().__setitem__(0, 1), "__setitem__"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused_by_name(name):
    function, named = REFUSED[name]
    with pytest.raises(InputError) as caught:
        split_equals_whole(Function(function).double(), random_images(), HEIGHTS)
    text = str(caught.value)
    assert named in text, text
    assert len(text) <= 500
    assert "\n" not in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_code_is_refused():
    scripted = torch.jit.script(lambda_of_script)
    with pytest.raises(InputError, match="aten"):
        split_equals_whole(Function(lambda x, w: scripted(x)).double(), random_images(), HEIGHTS)


def lambda_of_script(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def test_an_output_that_hides_tensors_is_refused():
    hiding = Function(lambda x, w: x)
    with pytest.raises(InputError, match="returns a Function"):
        split_equals_whole(Function(lambda x, w: hiding).double(), random_images(), HEIGHTS)


def test_strips_of_another_height_are_refused():
    def compute(group):
        split = spatial_parallel(Function(lambda x, w: x).double(), group)
        group.cut_at(HEIGHTS)
        split(random_images())

    with pytest.raises(InputError, match="call group"):
        on_threads(3, compute)


@pytest.mark.parametrize("heights", [[1, 2], [3, 10, 0], [13]])
def test_a_cut_that_leaves_a_process_without_rows_is_refused(heights):
    with pytest.raises(InputError, match="give 1 or more"):
        alone().group.cut_at(heights)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 32, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 32, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(8, 32, 3, padding="same"),
        nn.MaxPool2d(3, 1, 1, return_indices=True),
        nn.MaxPool2d(2, 2, ceil_mode=True),
    ],
    ids=str,
)
def test_an_encoders_own_layers_for_strips_are_refused_where_they_compute_something_else(layer):
    model = build_model(ModelConfig(encoder="mit_tiny"), 0)[0]
    model.encoder.segformer["stages"][0].blocks[0].mlp.dwconv["dwconv"] = layer
    with pytest.raises(InputError, match=r"dwconv.*, which is not known to be exact in strips"):
        split_spatially(model, SpatialGroup(2))


def test_without_halos_the_checker_fails(monkeypatch):
    """The counter-check."""
    monkeypatch.setitem(functions.RULES, "conv2d", lambda x, *given: mark(torch.conv2d(x, *given), rows_of(x)))
    with pytest.raises(AssertionError, match="output 0 differs"):
        split_equals_whole(Function(lambda x, w: x).double(), random_images(), HEIGHTS)


OF_ONE_ROW: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squeeze": lambda x, w: x[:1].squeeze().unsqueeze(0) * w[0, 0],
    "columns as rows": lambda x, w: x * x[:, :, :, :1].transpose(2, 3),
    "columns of tokens": lambda x, w: x * x[0, 0, :, 0],
    "pool": lambda x, w: functional.max_pool2d(x, 1, 2),
}
"""Functions of square maps."""


@pytest.mark.parametrize("name", OF_ONE_ROW)
def test_strips_of_one_row_give_the_rows_that_the_group_says(name):
    images = random_images(13, 13)
    split_equals_whole(Function(OF_ONE_ROW[name]).double(), images, [1, 2, 10])


@st.composite
def networks(draw) -> nn.Module:
    """Two to five layers, each of any setting that its kind has, as far as a map of 24 rows or more allows."""
    layers: list[nn.Module] = []
    channels, rows = 3, 24
    for _ in range(draw(st.integers(2, 5))):
        kind = draw(st.sampled_from(["conv", "transposed", "max", "avg", "norm", "up", "squeeze", "adaptive"]))
        kernel, stride, dilation = (draw(st.integers(1, most)) for most in (5, 3, 3))
        reach = (kernel - 1) * dilation + 1
        padding = draw(st.integers(0, kernel // 2))
        if kind in ("conv", "max", "avg") and rows + 2 * padding <= 2 * max(reach, stride):
            continue
        if kind == "conv":
            layers.append(nn.Conv2d(channels, channels := 4, kernel, stride, padding, dilation))
            rows = (rows + 2 * padding - reach) // stride + 1
        elif kind == "transposed":
            layers.append(nn.ConvTranspose2d(channels, channels := 4, kernel, stride, min(padding, 1), 0))
        elif kind == "max":
            layers.append(nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=draw(st.booleans())))
            rows = (rows + 2 * padding - reach) // stride + 1
        elif kind == "avg":
            layers.append(nn.AvgPool2d(kernel, stride, padding, draw(st.booleans()), draw(st.booleans())))
            rows = (rows + 2 * padding - kernel) // stride + 1
        elif kind == "norm":
            norm = draw(st.sampled_from([nn.BatchNorm2d, nn.InstanceNorm2d, lambda n: nn.GroupNorm(1, n)]))
            layers += [norm(channels), nn.GELU()]
        elif kind == "up":
            mode = draw(st.sampled_from(["nearest", "bilinear"]))
            layers.append(nn.Upsample(scale_factor=draw(st.integers(1, 3)), mode=mode))
        elif kind == "squeeze":
            layers.append(Squeeze(channels))
        else:
            layers += [nn.AdaptiveAvgPool2d(draw(st.integers(1, 6))), nn.Upsample(size=(24, 24), mode="bilinear")]
            rows = 24
    return nn.Sequential(nn.Conv2d(3, 3, 1), *layers)


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.layer(x.mean((2, 3), keepdim=True)).sigmoid()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_drawn_networks_and_cuts(data):
    torch.manual_seed(0)
    network = data.draw(networks()).double()
    heights = data.draw(st.lists(st.integers(1, 24), min_size=2, max_size=4).filter(lambda each: sum(each) >= 24))
    split_equals_whole(network, random_images(sum(heights), 24), heights)
