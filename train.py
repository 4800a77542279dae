"""Train a U-Net on shards: `accelerate launch train.py --help`. The command `glioma-dist train` is the same."""

from glioma_dist.cli.program import run_script

if __name__ == "__main__":
    run_script("train")
