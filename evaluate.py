"""Dice of a checkpoint on shards: `accelerate launch evaluate.py --help`. The same as `glioma-dist evaluate`."""

from glioma_dist.cli.program import run_script

if __name__ == "__main__":
    run_script("evaluate")
