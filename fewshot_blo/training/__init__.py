"""Training: the outer loop, its settings, steps, chunks of tasks and checkpoints."""
