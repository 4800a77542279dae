"""Who this process is among those of a launch, how it was started, and how it ends."""
