"""Serves a classifier to people, as a page, and to programs, as a JSON endpoint."""
