"""What the licences of a network's weights and data say about its use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

NON_COMMERCIAL = re.compile(r"non-?commercial|\bNC\b", re.IGNORECASE)
"""In the words of a licence."""


def non_commercial_licences(lineage: Sequence[Mapping[str, str]]) -> list[str]:
    """The licences of a checkpoint's lineage that forbid commercial use, each once.

    lineage: {"weights" or "data": name, "licence": text} of each source.
    """
    licences = (entry.get("licence", "") for entry in lineage)
    return list(dict.fromkeys(licence for licence in licences if NON_COMMERCIAL.search(licence)))


def warning_of_use(lineage: Sequence[Mapping[str, str]]) -> str | None:
    """One line for whoever passes a network on; None where no licence is known to forbid commercial use."""
    bound = non_commercial_licences(lineage)
    if not bound:
        return None
    sources = [entry for entry in lineage if entry.get("licence") in bound]
    named = dict.fromkeys(f"{each.get('weights') or each.get('data')}: {each['licence']}" for each in sources)
    return f"not for commercial use, because of what the network was trained from ({'; '.join(named)})"
