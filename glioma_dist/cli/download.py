"""`glioma-dist download`: get published data sets, to be converted to shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glioma_dist.cli.command import Command


@dataclass(frozen=True)
class DownloadConfig:
    """Download a published data set, verify it and unpack it."""

    out: Path
    """Folder to download to. Run the same command again to continue a download that was stopped or killed."""
    url: str | None = None
    """http(s) URL of a mirror: a folder with the files as published, and for a record of Zenodo its JSON, record.json.
    By default: the publisher's server. Proxies are taken from the environment (https_proxy)."""
    keep_archives: bool = False
    """Keep the archives after they are unpacked, for a mirror for example."""


def make_command(name: str) -> Command:
    """The command that downloads the data set `name` of `data.download.published.PUBLISHED`."""
    folder = f"data/{name.replace('-', '_')}"

    def run(config: DownloadConfig) -> None:
        from glioma_dist.data.download.downloading import download
        from glioma_dist.data.download.published import PUBLISHED

        download(PUBLISHED[name], config.out, config.url, config.keep_archives)

    def check(config: DownloadConfig) -> None:
        from glioma_dist.data.download.addresses import check_http_url
        from glioma_dist.files import check_new_folder

        check_new_folder("--out", config.out)
        if config.url is not None:
            check_http_url(config.url)

    examples = (
        f"glioma-dist download {name} --out {folder}",
        f"glioma-dist download {name} --out {folder} --url https://mirror.example.org/{name}",
    )
    return Command(DownloadConfig, run, examples, check)


LIVECELL = make_command("livecell")
GLIOMA_C6 = make_command("glioma-c6")
