"""Count what each encoder costs, for `glioma-dist encoders`: `python benchmarks/count_encoders.py`."""

import json

from glioma_dist.benchmark.encoder_costs import count_encoder
from glioma_dist.benchmark.encoder_table import FILE, encoder_table
from glioma_dist.distributed.run_command import run_command
from glioma_dist.files import write_atomically
from glioma_dist.registry import encoders


def main() -> None:
    """Count all encoders again, minutes of one core, and write the table that comes with the package."""
    rows = []
    for name in encoders.names():
        rows.append(count_encoder(name))
        print(json.dumps(rows[-1]), flush=True)
    write_atomically(FILE, "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n]\n")
    print(encoder_table())


if __name__ == "__main__":
    run_command(main)
