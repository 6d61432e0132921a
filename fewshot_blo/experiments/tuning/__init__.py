"""Searches settings of a recipe by their validation accuracy, on Optuna."""
