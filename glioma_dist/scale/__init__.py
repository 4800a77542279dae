"""What decides the cost of a run and never its result."""
