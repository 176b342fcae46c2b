"""Training: the step, the run, its checkpoints and callbacks, and resuming."""
