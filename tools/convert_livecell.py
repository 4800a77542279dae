"""The same as `glioma-dist convert livecell`."""

from glioma_dist.cli.program import run_script

if __name__ == "__main__":
    run_script("convert livecell")
