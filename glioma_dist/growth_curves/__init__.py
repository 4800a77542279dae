"""How cultures grow: confluence over time, and doubling times."""
