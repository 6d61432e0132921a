"""Studies on images of handwritten digits."""
