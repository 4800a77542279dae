"""Compares `glioma_dist.estimate_step_memory` with the memory that a training step of other libraries' networks takes.

python benchmarks/module_memory.py                                # 20 networks on this CPU, each in its own process
python benchmarks/module_memory.py --device cuda --contributor me # prints rows for docs/benchmarks/memory_ledger.md
"""

import ctypes
import multiprocessing
import shlex
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Literal

import segmentation_models_pytorch as smp
import timm
import torch
import transformers
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves
from torchvision.models import get_model

from glioma_dist import estimate_step_memory
from glioma_dist.benchmark.environment import describe_device
from glioma_dist.benchmark.memory_ledger import LedgerRow
from glioma_dist.benchmark.peak_memory import GIB, PeakMemory, peak_of_profile
from glioma_dist.cli.arguments import parse
from glioma_dist.distributed.environment import find_own_commit, find_version
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError
from glioma_dist.files import check_new_folder, make_folder, write_atomically, write_json_atomically

MIB = 2**20
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "segmentation-models-pytorch")
MMAP_THRESHOLD, RETURNED_BYTES = -3, 2**16
"""Option of the C library, and from which size on freed memory goes back at once, so that no gaps are measured."""


@dataclass(frozen=True)
class ModuleMemoryConfig:
    """Compare the memory estimator with measured steps of other libraries' networks."""

    network: tuple[str, ...] = ()
    """Names of networks to measure; by default all."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where they are measured."""
    contributor: str = "unnamed"
    """Who measures, for the ledger of GPU figures."""
    out: Path = Path("docs/benchmarks/module_memory_2_cores")
    """Folder of the table and its figures, on a CPU."""

    def validate(self) -> None:
        unknown = set(self.network) - set(NETWORKS)
        if unknown:
            raise InputError(f"--network {sorted(unknown)[0]}: give some of {', '.join(NETWORKS)}")


@dataclass(frozen=True)
class Network:
    """A network of another library with random weights, and inputs for a training step."""

    library: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]


def image(num_images: int = 2, side: int = 256) -> Tensor:
    return torch.zeros(num_images, 3, side, side)


def words() -> dict[str, Tensor]:
    """Two texts of 128 words, which words count, and what is to be said of each."""
    text = torch.arange(256).reshape(2, 128)
    return {"input_ids": text, "attention_mask": torch.ones_like(text), "labels": text}


def of_smp(kind: str, encoder: str) -> Network:
    return Network("segmentation_models.pytorch", lambda: getattr(smp, kind)(encoder, encoder_weights=None), image)


def of_torchvision(name: str, num_images: int = 2, **settings: Any) -> Network:
    return Network("torchvision", partial(get_model, name, weights=None, **settings), partial(image, num_images))


def of_timm(name: str, **settings: Any) -> Network:
    return Network("timm", partial(timm.create_model, name, pretrained=False, **settings), image)


def of_transformers(model: str, config: str, inputs: Callable[[], Any], **settings: Any) -> Network:
    build = getattr(transformers, model)
    return Network("transformers", lambda: build(getattr(transformers, config)(**settings)), inputs)


SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
LARGER = {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048}
NETWORKS = {
    "U-Net resnet18": of_smp("Unet", "resnet18"),
    "U-Net++ mobilenet_v2": of_smp("UnetPlusPlus", "mobilenet_v2"),
    "MAnet mit_b0": of_smp("MAnet", "mit_b0"),
    "DeepLabV3+ resnet18": of_smp("DeepLabV3Plus", "resnet18"),
    "FPN efficientnet-b0": of_smp("FPN", "efficientnet-b0"),
    "PSPNet resnet18": of_smp("PSPNet", "resnet18"),
    "resnet50": of_torchvision("resnet50"),
    "googlenet with auxiliary outputs": of_torchvision("googlenet", aux_logits=True, init_weights=False),
    "densenet121": of_torchvision("densenet121"),
    "swin_t": of_torchvision("swin_t"),
    "DeepLabV3 mobilenet_v3": of_torchvision("deeplabv3_mobilenet_v3_large", 4, weights_backbone=None),
    "LR-ASPP mobilenet_v3": of_torchvision("lraspp_mobilenet_v3_large", weights_backbone=None),
    "convnext_atto": of_timm("convnext_atto"),
    "vit_tiny": of_timm("vit_tiny_patch16_224", img_size=256),
    "efficientnet_lite0": of_timm("efficientnet_lite0"),
    "maxvit_pico": of_timm("maxvit_pico_rw_256"),
    "SegFormer b0": of_transformers("SegformerForSemanticSegmentation", "SegformerConfig", image),
    "BERT": of_transformers("BertForMaskedLM", "BertConfig", words, vocab_size=1000, **SMALL),
    "GPT-2": of_transformers("GPT2LMHeadModel", "GPT2Config", words, vocab_size=1000, n_embd=256, n_layer=4, n_head=4),
    "wav2vec 2.0": of_transformers(
        "Wav2Vec2Model", "Wav2Vec2Config", lambda: torch.zeros(2, 16000), layerdrop=0.0, **LARGER
    ),
}
"""Name -> what is compared: 20 networks, of their authors' code."""


@dataclass(frozen=True)
class Comparison:
    """Bytes of a training step of a network."""

    network: str
    library: str
    inputs: str
    counted: int
    """By the estimator."""
    allocated: int
    """At most, by PyTorch's allocator."""
    reserved: int | None
    """What PyTorch took from a GPU."""
    grown: int | None
    """By how much the process grew on a CPU, from before the network was built."""
    phase: str
    """Where the estimator finds the peak."""

    @property
    def difference(self) -> float:
        return self.counted / self.allocated - 1


def compare(name: str, device: torch.device) -> Comparison:
    """Count a training step of a network with random weights, and measure it."""
    network = NETWORKS[name]
    warm_up(device)
    memory = PeakMemory(device)
    module, inputs = network.build().train(), network.inputs()
    shapes = ", ".join("x".join(map(str, each.shape)) for each in tensors_of(inputs))
    allocated, reserved, grown = measure(module, inputs, device, memory)
    counted = estimate_step_memory(module, inputs)
    return Comparison(name, network.library, shapes, counted.peak, allocated, reserved, grown, counted.moment.phase)


def warm_up(device: torch.device) -> None:
    """Take a step of a tiny network, so that libraries have taken what they take once."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    Training(layers.to(device), image(2, 8).to(device)).take_step()


class Training:
    """Steps with Adam on the same inputs."""

    def __init__(self, module: nn.Module, inputs: Any) -> None:
        self.module, self.inputs = module, inputs
        self.optimizer = torch.optim.Adam(module.parameters())

    def take_step(self) -> None:
        outputs = self.module(**self.inputs) if isinstance(self.inputs, dict) else self.module(self.inputs)
        trained = outputs["loss"] if isinstance(outputs, dict) and "loss" in outputs else mean_of(outputs)
        trained.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def held(self) -> int:
        """Bytes of the tensors that exist between two steps."""
        states = list(self.optimizer.state.values())
        tensors = tensors_of([*self.module.parameters()], [*self.module.buffers()], states, self.inputs)
        return sum(each.nbytes for each in tensors)


def mean_of(outputs: Any) -> Tensor:
    """The sum of the means of all outputs, which stands for any loss."""
    return torch.stack([each.mean() for each in tensors_of(outputs) if each.requires_grad]).sum()


def tensors_of(*trees: Any) -> list[Tensor]:
    """Each tensor once."""
    return list({id(each): each for each in tree_leaves(trees) if isinstance(each, Tensor)}.values())


def measure(
    module: nn.Module, inputs: Any, device: torch.device, memory: PeakMemory
) -> tuple[int, int | None, int | None]:
    """Bytes that a step allocates at most; those that it reserves on a GPU; those by which the process grew."""
    inputs = {name: each.to(device) for name, each in inputs.items()} if isinstance(inputs, dict) else inputs.to(device)
    training = Training(module.to(device), inputs)
    training.take_step()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        memory = PeakMemory(device)
        training.take_step()
        torch.cuda.synchronize()
        return int(memory.allocated() * GIB), int(memory.reserved() * GIB), None
    training.take_step()
    grown = memory.allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        training.take_step()
    allocated = peak_of_profile(profiler, training.held())
    return int(allocated * GIB), None, None if grown is None else int(grown * GIB)


def compare_in_process(name: str, device: str) -> Comparison:
    """`compare` in a process of its own, whose memory is its own. It is a fork, which has the libraries already."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork"), return_freed_memory) as pool:
        return pool.submit(compare, name, torch.device(device)).result()


def return_freed_memory() -> None:
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, RETURNED_BYTES)


def page(content: dict) -> str:
    """The figures in MiB, as a page in Markdown. content: as in module_memory.json."""
    metadata, rows = content["metadata"], [Comparison(**row) for row in content["rows"]]
    versions = ", ".join(f"{name} {version}" for name, version in metadata["versions"].items())
    lines = [
        "# Memory of a training step of other libraries' networks\n",
        f"{metadata['device']}; {versions}; commit {metadata['commit']}; fp32, Adam, random weights.\n",
        f"```\n{metadata['command']}\n```\n",
        "MiB. Estimated: by `glioma_dist.estimate_step_memory`. Allocated: at most, in the profile of a step "
        "(torch.profiler). Process grew by: its resident memory, at most, from before the network was built; freed "
        "memory goes back to the system at once.\n",
        "| Network | Library | Inputs | Estimated | Allocated | Difference | Process grew by | Peak in |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        grown = "" if row.grown is None else f"{row.grown / MIB:.1f}"
        lines.append(
            f"| {row.network} | {row.library} | {row.inputs} | {row.counted / MIB:.1f} | {row.allocated / MIB:.1f} "
            f"| {row.difference:+.1%} | {grown} | {row.phase} |"
        )
    return "\n".join(lines) + "\n"


def ledger_row(row: Comparison, gpu: str, contributor: str) -> LedgerRow:
    """The figures of a GPU as a row of the ledger."""
    return LedgerRow(
        gpu=gpu,
        torch=torch.__version__.partition("+")[0],
        network=f"{row.network} ({row.library})",
        inputs=row.inputs,
        precision="fp32",
        checkpointing="none",
        counted_gib=row.counted / GIB,
        allocated_gib=row.allocated / GIB,
        reserved_gib=None if row.reserved is None else row.reserved / GIB,
        commit=find_own_commit() or "unknown",
        date=date.today().isoformat(),
        source=contributor,
    )


def main(config: ModuleMemoryConfig) -> None:
    """Compare the networks and write the page, or print rows for the ledger."""
    if config.device != "cuda":
        check_new_folder("--out", config.out)
        make_folder(config.out)
    device, rows = describe_device(config.device), []
    for name in config.network or NETWORKS:
        rows.append(compare_in_process(name, config.device))
        is_gpu = config.device == "cuda"
        print(ledger_row(rows[-1], device, config.contributor).line() if is_gpu else rows[-1], flush=True)
    if config.device == "cuda":
        return
    metadata = {
        "device": device,
        "versions": {name: find_version(name) for name in LIBRARIES},
        "commit": find_own_commit(),
        "command": shlex.join(["python", "benchmarks/module_memory.py", *sys.argv[1:]]),
    }
    content = {"metadata": metadata, "rows": [asdict(row) for row in rows]}
    write_json_atomically(config.out / "module_memory.json", content)
    write_atomically(config.out / "module_memory.md", page(content))


if __name__ == "__main__":
    run_command(lambda: main(parse(ModuleMemoryConfig)))
