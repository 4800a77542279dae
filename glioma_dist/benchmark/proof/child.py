"""One check of the proof run, in the process that is started for it."""

from __future__ import annotations

import json
import signal
import sys
from importlib import import_module
from pathlib import Path

from glioma_dist.benchmark.proof.lines import Findings, Setting
from glioma_dist.distributed.signals import get_signal_at_parents_death


def main() -> None:
    """Run the function of the first argument (module:name) with the setting of the second, a JSON, and write what it
    finds into the file of the third."""
    get_signal_at_parents_death(signal.SIGKILL)
    module, _, name = sys.argv[1].partition(":")
    getattr(import_module(module), name)(Setting(**json.loads(sys.argv[2])), Findings(Path(sys.argv[3])))


if __name__ == "__main__":
    main()
