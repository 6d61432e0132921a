"""Several processes against one, in float64; ``python -m ranks`` compares every case."""
