"""Reading files: images, pickles, caches and published class lists."""
