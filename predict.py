"""Masks for images: `python predict.py --help`. The same as `glioma-dist predict`."""

from glioma_dist.cli.program import run_script

if __name__ == "__main__":
    run_script("predict")
