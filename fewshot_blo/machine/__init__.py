"""What the computer gives: memory, chunks of tasks that fit into it, and time."""
