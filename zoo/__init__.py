"""The zoo: compares the kernel with unconverted modules, on networks of several libraries."""
