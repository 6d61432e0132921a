"""Tasks from tables: a DataFrame, columns by name, a structured array or a csv file."""

from __future__ import annotations

from fewshot_blo.tasks.tabular.read import class_table, group_table

__all__ = ["class_table", "group_table"]
