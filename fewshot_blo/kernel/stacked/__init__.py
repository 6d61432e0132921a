"""Layers with a task axis: convolutions, norms and pooling of T tasks at once."""
