"""The report on a fine-tuned classifier, one HTML file that needs nothing else."""

from __future__ import annotations

from fewshot_blo.finetune.report.page import Origin, write_report

__all__ = ["Origin", "write_report"]
