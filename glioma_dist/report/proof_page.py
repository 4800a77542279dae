"""The page of a proof run, made from proof.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

STATUSES = ("PASS", "FAIL", "SKIPPED")


def summary(lines: Sequence[Mapping[str, Any]]) -> str:
    """ "61 PASS, 0 FAIL, 12 SKIPPED"."""
    numbers = Counter(line["status"] for line in lines)
    return ", ".join(f"{numbers[status]} {status}" for status in STATUSES)


def proof_page(content: Mapping[str, Any]) -> str:
    """Markdown: what the machine was, how the run ended, and a table of the lines of each check.

    content: as in proof.json: `metadata`, `checks` (name, seconds, bound in seconds) and `lines`.
    """
    metadata, lines = content["metadata"], content["lines"]
    versions = ", ".join(f"{name} {version}" for name, version in metadata["versions"].items() if version)
    title = "GPU checks" if metadata["kind"] == "cuda" else "Rehearsal of the GPU checks on a CPU"
    parts = [f"# {title}: {metadata['device']}\n"]
    if metadata["kind"] != "cuda":
        parts.append("This page shows that the checks run at tiny sizes. It says nothing about a GPU.\n")
    devices = f"{metadata['num_devices']} {'GPUs' if metadata['kind'] == 'cuda' else 'processes'}"
    parts += [
        f"**{summary(lines)}**; {devices if metadata['num_devices'] > 1 else '1 GPU'}, {versions}; "
        f"commit {metadata['commit']}; {metadata['started']}, {content['seconds']:.0f} s.\n",
        f"```\n{metadata['command']}\n```\n",
    ]
    if not content["finished"]:
        parts.append("The run did not finish. Only the checks below are complete.\n")
    failed = [line for line in lines if line["status"] == "FAIL"]
    if failed:
        parts.append("## Failed\n\n" + _table(failed))
    for check in content["checks"]:
        own = [line for line in lines if line["check"] == check["name"]]
        parts.append(f"## {check['name']} ({check['seconds']:.0f} of {check['bound']:g} s)\n\n{_table(own)}")
    return "\n".join(parts)


def _table(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = ["| | Line | Value | Limit | Note |", "|---|---|---:|---:|---|"]
    for line in lines:
        limit = "" if line["relation"] is None else f"{line['relation']} {_short(line['limit'])} {line['unit']}".strip()
        note = line["note"].replace("|", "\\|")
        rows.append(f"| {line['status']} | {line['name']} | {_short(line['value'])} | {limit} | {note} |")
    return "\n".join(rows) + "\n"


def _short(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
