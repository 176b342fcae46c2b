"""What the figures are: what pictures are seen by, what is computed of that, and how it is told."""
