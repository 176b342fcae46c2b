"""How a run goes: the training step, the run, its checkpoints and callbacks, and how it is resumed."""
