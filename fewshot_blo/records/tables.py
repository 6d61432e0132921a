"""Tables that a person reads and a program reads."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any


def deviation(values: Sequence[float]) -> float:
    """Standard deviation; NaN of one value."""
    return stdev(values) if len(values) > 1 else math.nan


def comma_separated(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as CSV; a column for every name that one has."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for r in records for name in r)))
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
