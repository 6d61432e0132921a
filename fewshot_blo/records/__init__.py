"""Records of long runs: files, logs, progress, tables, figures and provenance."""
