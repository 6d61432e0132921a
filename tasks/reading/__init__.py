"""Reading files: images, archives, caches, and the classes that published splits name."""
