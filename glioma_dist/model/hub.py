"""Networks on the Hugging Face hub: a checkpoint folder with a model card that says what it was made from."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import nn

from glioma_dist.config import TrainConfig
from glioma_dist.config.networks import hub_name, network_names
from glioma_dist.config.paths import without_folders
from glioma_dist.errors import InputError, one_line
from glioma_dist.files import (
    cannot_write,
    make_folder,
    remove_tree,
    rename_in_order,
    write_atomically,
    write_json_atomically,
)
from glioma_dist.model.checkpoint import find_checkpoint
from glioma_dist.model.checkpoint_writer import write_checkpoint
from glioma_dist.model.licences import non_commercial_licences, warning_of_use
from glioma_dist.model.manifest import MANIFEST, MODEL, STATE, Manifest
from glioma_dist.model.pretrained.download import cause_in_words
from glioma_dist.model.tensor_files import not_finite
from glioma_dist.model.unet import UNet, load_model
from glioma_dist.wording import counted

CONFIG, CARD = "config.json", "README.md"
PARTIAL = ".new-"
"""Begins the name of a folder in which a network is written before its files get their places."""
OWN_CARD = "library_name: glioma-dist"
COMMIT = re.compile(r"[0-9a-f]{40}")
"""The name of a folder of the hub's cache."""


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

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the network with its card, as `ModelHubMixin.push_to_hub` does. Warns where a licence of its weights
        or data forbids commercial use. Raises InputError where the hub does not take it."""
        if warning := warning_of_use(self.metadata.get("lineage", [])):
            warnings.warn(warning, UserWarning, stacklevel=2)
        try:
            return super().push_to_hub(repo_id, **options)
        except (OSError, ValueError) as error:
            raise InputError(f"{one_line(repo_id, 200)}: the hub does not take it ({cause_in_words(error)})") from error

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the network and its card to a folder, as `ModelHubMixin.save_pretrained` does. Several processes may
        write the same network to it. Raises InputError where it cannot be written, or could not be read again."""
        folder = Path(save_directory)
        if broken := not_finite(self.model.state_dict()):
            raise InputError(
                f"{folder}: not written, because the network has numbers that are not finite "
                f"({counted(len(broken), 'tensor')}, the first is {one_line(broken[0], 100)})"
            )
        make_folder(folder)
        options["config"] = self._config()  # the base class would write all settings where another process removes it
        try:
            return super().save_pretrained(folder, **options)
        except OSError as error:
            raise cannot_write(error.filename or folder, error) from error

    def _save_pretrained(self, save_directory: Path) -> None:
        made = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=save_directory))
        try:
            write_checkpoint(made / "it", without_folders(self.settings), self.metadata, self.model.state_dict())
            rename_in_order(*((made / "it" / name, save_directory / name) for name in (MODEL, STATE, MANIFEST)))
        except OSError as error:
            raise cannot_write(save_directory, error) from error
        finally:
            remove_tree(made)
        write_json_atomically(save_directory / CONFIG, self._config(), indent=None, by_several=True)
        card = save_directory / CARD
        if not card.is_file() or OWN_CARD in card.read_text("utf-8", "replace"):  # else somebody has written it
            write_atomically(card, model_card(self.settings, self.metadata), by_several=True)

    def _config(self) -> dict[str, Any]:
        return {"encoder": self.settings.model.encoder}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **unknown: Any,
    ) -> PretrainedUNet:
        """Load a network from a checkpoint folder, from the hub, or by the name of one that comes with the package.

        The options are those of `ModelHubMixin.from_pretrained`, for the hub alone. Raises InputError for what is none
        of these, for a network that is damaged or incomplete, and where the hub does not give it.
        """
        if unknown:  # the base class would ignore them
            raise TypeError(f"from_pretrained() got an unexpected keyword argument {next(iter(unknown))!r}")
        given = str(pretrained_model_name_or_path)
        folder = find_checkpoint(Path(given)) if given else None
        if folder is None:
            name = hub_name(given)
            if name is None:
                what = "no checkpoint there (no manifest.json)" if os.path.isdir(given) else "no such folder"
                raise InputError(
                    f"{given}: {what}; give a checkpoint's folder, a repository of the hub as ORG/NAME, or one of "
                    f"{', '.join(network_names())}"
                )
            with _from_the_hub(name):
                folder = _fetch(
                    name,
                    revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
        model, checkpoint = load_model(folder)
        return cls(model, checkpoint.config, checkpoint.metadata).eval()


def _fetch(name: str, revision: str | None, **options: Any) -> Path:
    """The folder of the hub's cache with all files of a network, of one commit."""
    folder = Path(hf_hub_download(name, MANIFEST, revision=revision, **options)).parent
    if COMMIT.fullmatch(folder.name):  # or the files of a commit that comes meanwhile would be in another folder
        revision = folder.name
    for file in (STATE, *Manifest.read(folder).files_of_weights()):
        hf_hub_download(name, file, revision=revision, **options)
    return folder


@contextmanager
def _from_the_hub(name: str) -> Generator[None]:
    """Context manager: what the hub's client raises is raised as InputError, in one line."""
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{name}: is no folder here, is not in the hub's cache, and the hub does not give it "
            f"({cause_in_words(error)})"
        ) from error
    except EntryNotFoundError as error:
        raise InputError(
            f"{name}: this repository of the hub holds no whole network of glioma-dist ({cause_in_words(error)})"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: the hub does not give it ({cause_in_words(error)})") from error


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
