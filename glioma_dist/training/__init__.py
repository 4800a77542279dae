"""The training loop, its losses, its state and what it tells."""
