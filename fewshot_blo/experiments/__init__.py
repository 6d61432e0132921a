"""Experiments: settings of runs, recipes, training from settings, evaluation and tables."""
