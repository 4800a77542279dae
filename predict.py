"""predict: see `python predict.py --help`; start it with `accelerate launch predict.py`."""
