from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from fewshot_blo.kernel.recompute import segments


@given(steps=st.integers(0, 300), states=st.integers(0, 300))
def test_segments_cover_the_steps_and_keep_few_states(steps: int, states: int) -> None:
    lengths = segments(steps, states)
    assert sum(lengths) == steps
    limit = max(states, math.isqrt(2 * steps) + 1)
    assert len(lengths) <= limit
    for before, length in enumerate(lengths):
        assert length >= 1
        assert length == 1 or before + length <= limit


@given(steps=st.integers(0, 300))
def test_no_step_is_taken_thrice_where_all_states_fit(steps: int) -> None:
    assert segments(steps, steps) == [1] * steps


def test_some_segments() -> None:
    assert segments(49, 30) == [20] + [1] * 29
    assert segments(49, 0) == [10, 9, 8, 7, 6, 5, 1, 1, 1, 1]
