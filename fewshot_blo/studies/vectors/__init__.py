"""Studies on small vectors with known solutions."""
