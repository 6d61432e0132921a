"""A signal stops a run after its step, also where one loop is inside another."""

from __future__ import annotations

import os
import signal

import pytest

from fewshot_blo.records.interrupts import interrupts


def test_an_inner_loop_stops_with_the_outer_one() -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    with interrupts(said.append, saves=True) as outer:
        os.kill(os.getpid(), signal.SIGTERM)
        with interrupts(said.append, saves=False) as inner:  # As a trial that only begins.
            assert inner.is_set()
        os.kill(os.getpid(), signal.SIGHUP)  # A second one, as terminals send.
        os.kill(os.getpid(), signal.SIGTERM)  # As torchrun passes on what the workers had.
        assert outer.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert said == ["SIGTERM: finishing this step, then saving"]
    assert signal.getsignal(signal.SIGTERM) == before
    with interrupts(said.append, saves=True) as later:
        assert not later.is_set()
