"""Few-shot accuracy under a stated protocol."""
