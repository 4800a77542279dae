"""Write the golden values of this machine: `python tests/golden/write.py`, on a quiet machine, in a minute.

When one may: where a number is meant to change (a new default, a corrected formula, another order of weights), or where
constraints.txt takes other versions of the libraries. It is a commit of its own, whose message says which number
changes and why; docs/log.md says it, too. Never to make a renaming or a move pass: those change no number, and
`compare_commits.py` shows it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from adapter import encoder_names
from runs import GOLDEN, fingerprint, measure_initial, measure_runs

TESTS = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
    "HF_HUB_OFFLINE": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
}
"""As the tests have it."""


def main() -> None:
    os.environ.update(ENVIRONMENT)  # read by libraries when they are imported, which is when they are first used
    sys.path[:0] = [str(TESTS.parent), str(TESTS)]
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        runs = measure_runs(Path(folder))
    initial = {name: measure_initial(name) for name in encoder_names()}
    values = {"fingerprint": fingerprint(), "runs": runs, "initial_weights": initial}
    GOLDEN.write_text(json.dumps(values, indent=1) + "\n")
    print(f"{GOLDEN}: {len(runs)} runs, {len(initial)} encoders")


if __name__ == "__main__":
    main()
