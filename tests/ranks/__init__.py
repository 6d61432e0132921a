"""Several processes against one: every strategy, problem and norm mode, in float64.

``PYTHONPATH=tests python -m ranks [--ranks N ...] [--sample] [--output FILE]``
"""
