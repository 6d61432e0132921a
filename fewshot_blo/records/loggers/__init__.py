"""Loggers: one file each; they receive the records of a run beside its own log."""

from fewshot_blo.records.loggers.csv_file import CSV
from fewshot_blo.records.loggers.logger import LoggedRun, Logger
from fewshot_blo.records.loggers.mlflow_run import MLflow
from fewshot_blo.records.loggers.weights_and_biases import WeightsAndBiases

__all__ = ["CSV", "LoggedRun", "Logger", "MLflow", "WeightsAndBiases"]
