"""Evaluation: few-shot accuracy with confidence intervals, under a stated protocol."""
