"""`python -m glioma_dist`, also by `accelerate launch -m glioma_dist`: the program `glioma-dist`."""

from glioma_dist.cli.program import main

if __name__ == "__main__":
    main()
