"""Memory of the machine, chunks of tasks that fit into it, and timing."""
