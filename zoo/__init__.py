"""The kernel against the user's own module, for every family of networks."""
