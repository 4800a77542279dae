"""Adds the steps that `glioma-dist bench gpu` measured to the ledger: `python benchmarks/memory_ledger.py`."""

from pathlib import Path

from glioma_dist.benchmark.memory_ledger import read_ledger, rows_of_proof
from glioma_dist.distributed.run_command import run_command
from glioma_dist.files import write_atomically

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
LEDGER = FOLDER / "memory_ledger.md"


def main() -> None:
    """Add the rows of each docs/benchmarks/*/proof.json that the ledger does not have."""
    text = LEDGER.read_text().rstrip("\n")
    known = read_ledger(text)
    for file in sorted(FOLDER.glob("*/proof.json")):
        for row in rows_of_proof(file):
            if row not in known:
                text += "\n" + row.line()
                print(row.line())
    write_atomically(LEDGER, text + "\n")


if __name__ == "__main__":
    run_command(main)
