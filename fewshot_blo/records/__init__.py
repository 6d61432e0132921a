"""What any long run leaves behind: files, logs, figures, and where they came from."""
