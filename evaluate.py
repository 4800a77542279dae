"""evaluate: see `python evaluate.py --help`; start it with `accelerate launch evaluate.py`."""
