"""The outer loop: its settings, its steps, and what it saves."""
