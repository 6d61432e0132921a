"""The commands of the command line, a module each with its options and what it does."""
