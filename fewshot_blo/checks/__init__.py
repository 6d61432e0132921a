"""Checks on a user's own problem: of the kernel, of precisions, of hypergradients."""
