"""Studies on small vectors, whose solutions are known."""
