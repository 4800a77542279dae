"""Networks on the Hugging Face hub: a checkpoint folder with a model card that says what it was made from."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
from torch import nn

from glioma_dist.config import TrainConfig
from glioma_dist.config.networks import hub_name, network_folder, network_names
from glioma_dist.config.paths import without_folders
from glioma_dist.errors import InputError
from glioma_dist.files import cannot_write, rename_in_order, write_json_atomically
from glioma_dist.model.checkpoint_writer import write_checkpoint
from glioma_dist.model.licences import non_commercial_licences, warning_of_use
from glioma_dist.model.manifest import MANIFEST, MODEL, STATE, Manifest
from glioma_dist.model.unet import UNet, load_model

CONFIG = "config.json"
PARTIAL = ".partial"
"""Folder in which a network is written before its files get their places."""
OWN_CARD = "library_name: glioma-dist"


class PretrainedUNet(nn.Module, ModelHubMixin):
    """A trained U-Net that can be saved for the hub, pushed to it, and had back from it.

    What is saved is a checkpoint folder: `--checkpoint` and `--model.init` take it. It is safetensors and JSON; nothing
    in it is run. Paths of the machine that it was trained on are left out.
    """

    def __init__(self, model: UNet, config: TrainConfig, metadata: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.settings, self.metadata = model, config, metadata

    def forward(self, images, seeds=None):
        """As `UNet.forward`: images (B, 3, H, W) as `normalise` makes them; returns logits (B, num_outputs, H, W)."""
        return self.model(images, seeds)

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """The card: what the network is, what weights and data it comes from, and under which licences."""
        return ModelCard(model_card(self.settings, self.metadata))

    def push_to_hub(self, *arguments: Any, **options: Any) -> str:
        """Upload the network with its card, as `ModelHubMixin.push_to_hub` does. Warns where a licence of its weights
        or data forbids commercial use."""
        if warning := warning_of_use(self.metadata.get("lineage", [])):
            warnings.warn(warning, UserWarning, stacklevel=2)
        return super().push_to_hub(*arguments, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        card = save_directory / "README.md"
        if card.is_file() and OWN_CARD in card.read_text(errors="replace"):
            card.unlink()  # of another network; the mixin writes a card only where there is none
        made = save_directory / PARTIAL
        write_checkpoint(made, without_folders(self.settings), self.metadata, self.model.state_dict())
        try:
            rename_in_order(*((made / name, save_directory / name) for name in (MODEL, STATE, MANIFEST)))
            made.rmdir()
        except OSError as error:
            raise cannot_write(save_directory, error) from error
        write_json_atomically(save_directory / CONFIG, {"encoder": self.settings.model.encoder}, indent=None)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> PretrainedUNet:
        """Load a network from a checkpoint folder, from the hub, or by the name of one that comes with the package, as
        `ModelHubMixin.from_pretrained` does. Raises InputError for what is none of these."""
        given = str(pretrained_model_name_or_path)
        if not Path(given).is_dir():
            found = network_folder(given) or hub_name(given)
            if found is None:
                raise InputError(
                    f"{given}: no such folder; give a checkpoint's folder, a repository of the hub as ORG/NAME, or one "
                    f"of {', '.join(network_names())}"
                )
            given = str(found)
        return super().from_pretrained(given, **options)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **_: Any,
    ) -> PretrainedUNet:
        folder = Path(model_id)
        if not folder.is_dir():
            fetch = partial(
                hf_hub_download,
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
            folder = Path(fetch(MANIFEST)).parent
            for name in (STATE, *Manifest.read(folder).files_of_weights()):
                fetch(name)
        model, checkpoint = load_model(folder)
        return cls(model, checkpoint.config, checkpoint.metadata).eval()


def model_card(config: TrainConfig, metadata: dict[str, Any]) -> str:
    """Markdown with the hub's metadata before it."""
    lineage = metadata.get("lineage", [])
    bound = non_commercial_licences(lineage)
    data = ModelCardData(
        license="other",
        license_name="licences-of-its-lineage",
        library_name="glioma-dist",
        pipeline_tag="image-segmentation",
        tags=["u-net", "phase-contrast", "cell-segmentation", config.model.encoder],
    )
    rows = [
        f"| {next((kind for kind in ('weights', 'data') if kind in entry), '?')} | "
        f"{_in_table(entry.get('weights') or entry.get('data'))} | {_in_table(entry.get('licence', 'not stated'))} |"
        for entry in lineage
    ]
    brought = {
        "resize": "scaled to",
        "random-crop": "cropped at their own scale to",
        "random-resized-crop": "cropped and scaled to",
    }
    lines = [
        f"---\n{data}\n---",
        f"# U-Net {config.model.encoder}, masks of cells in phase contrast",
        f"Trained by glioma-dist on images {brought[config.data.transform]} {config.data.size}, contrast "
        f"{config.data.intensity_normalization}, loss {config.loss}, "
        f"{metadata.get('position', {}).get('step', '?')} steps of "
        f"{config.batch_size} images.{_outputs(config)}",
        "## What it was made from",
        "\n".join(["| | from | licence |", "|---|---|---|", *rows]) if rows else "Not recorded.",
        f"**Not for commercial use**: {'; '.join(bound)}."
        if bound
        else "None of the licences above is known to be non-commercial; read them before use.",
        "## Use",
        "```python\nfrom glioma_dist.model.hub import PretrainedUNet\n\n"
        'PretrainedUNet.from_pretrained("USER/NAME").save_pretrained("network")\n```',
        "```bash\nglioma-dist predict --checkpoint network --images plate --out masks\n```",
    ]
    return "\n\n".join(lines) + "\n"


def _outputs(config: TrainConfig) -> str:
    """What the network tells besides cell or not; empty where that is all."""
    told = [f" Its classes are {', '.join(config.model.classes)}."] if config.model.classes else []
    told += [f" Its second output is {each}, which separates cells that touch." for each in config.model.targets[1:]]
    return "".join(told)


def _in_table(text: str | None) -> str:
    return str(text).replace("|", r"\|")
