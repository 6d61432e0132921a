"""CUDA graphs of outer steps: kernels are recorded once and replayed without Python's overhead.

The recorded function must launch the same kernels for inputs of the same shapes, without a host
sync. Its first call with new shapes runs eagerly. The second call records it on copies of the
inputs; later calls copy their inputs there and replay the recording.

On a CUDA device a recording is a CUDA graph; the bookkeeping is tested with a recorder that calls
the function again.
"""

from __future__ import annotations

import logging
import math
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fewshot_blo.machine.memory import is_out_of_memory
from fewshot_blo.machine.timing import best_seconds

GraphMode = Literal["auto", "on", "off"]
"""Whether an outer step on a CUDA device is replayed from a CUDA graph: "auto" times once for each
shape of inputs whether a replay is faster."""

logger = logging.getLogger(__name__)

Tensors = Mapping[str, Tensor]
Tree = TypeVar("Tree")

_PAYS_OFF = 16
"""A recording costs about as much as this many runs, and pays off if it is replayed as often."""


class Recorder(Protocol):
    """Records the kernels that a function launches.

    Attributes:
        device: device of the recorded kernels.
    """

    device: torch.device

    def warm_up(self, function: Callable[[], object]) -> None:
        """Runs a function before it is recorded, so that libraries initialize themselves."""
        ...

    def record(self, function: Callable[[], Tree]) -> tuple[Tree, Callable[[], None]]:
        """Records a function.

        Returns:
            Its results, and a function that recomputes them in the same memory from the inputs'
            current values. Until it is called the results are undefined.

        Raises:
            RuntimeError: if it cannot be recorded.
        """
        ...


class CudaRecorder:
    """Records CUDA graphs.

    All graphs share one memory pool: they run one at a time, their inputs lie outside the pool, and
    results are copied out before the next graph runs, so their memory may overlap.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._alive: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def warm_up(self, function: Callable[[], object]) -> None:
        """Runs a function twice on the stream on which it will be recorded."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(2):
                function()
        current.wait_stream(self._stream)

    def record(self, function: Callable[[], Tree]) -> tuple[Tree, Callable[[], None]]:
        """Captures a function as a CUDA graph."""
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self.device)
        # A pool lives as long as a graph that uses it.
        pool = next((g.pool() for g in self._alive), None) or torch.cuda.graph_pool_handle()
        try:
            # Captures this thread only: others may be preparing the next batch.
            with torch.cuda.graph(
                graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                results = function()
        except RuntimeError:
            # Before PyTorch 2.13 the capture stream stays the current one and the allocator stays
            # in capture mode (pytorch#180395).
            torch.cuda.set_stream(current)
            with suppress(RuntimeError, AttributeError):
                torch._C._cuda_endAllocateToPool(current.device_index, pool)
            raise
        self._alive.add(graph)
        return results, graph.replay


@dataclass
class _Recording:
    """A recorded function, or one that runs eagerly because a replay is slower.

    Attributes:
        function: kept alive for the tensors that its kernels read by address.
        inputs: static buffers from which the kernels read the inputs.
        results: static buffers to which they write the results.
        replay: runs the kernels; None if the function runs eagerly.
        replays: number of replays so far.
    """

    function: Callable[[Tensors], Any]
    inputs: Tensors
    results: Any
    replay: Callable[[], None] | None
    replays: int = 0

    def run(self, inputs: Tensors) -> Any:
        if self.replay is None:
            return self.function(inputs)
        _copy(self.inputs, inputs)
        self.replay()
        self.replays += 1
        return tree_map(torch.clone, self.results)


class Graphs:
    """Recordings of functions of tensors, one for each combination of settings and input shapes.

    If recording fails, a warning says why, and functions run eagerly from then on.

    Args:
        recorder: the device's recorder.
        mode: "on" replays every recording; "auto" those that are faster than an eager run.
        limit: maximum number of recordings; the least recently used one is evicted.
    """

    def __init__(
        self, recorder: Recorder, mode: Literal["auto", "on"] = "auto", *, limit: int = 8
    ) -> None:
        self._recorder, self._mode, self._limit = recorder, mode, limit
        self._seen: set[Hashable] = set()
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._given_up = False
        self.choice = "not recorded yet"

    def run(self, function: Callable[[Tensors], Tree], inputs: Tensors, settings: Hashable) -> Tree:
        """``function(inputs)``, replayed if it has been recorded.

        The result belongs to the caller: later calls do not overwrite it.

        Args:
            function: launches kernels that depend on ``settings`` and the inputs' shapes alone.
                Other tensors that it reads must keep their addresses while the settings are the
                same; their values may change.
            inputs: tensors by name, on any device.
            settings: hashable key of the function and of all else that changes its kernels.
        """
        if self._given_up:
            return function(inputs)
        shapes = tuple((name, x.shape, x.dtype) for name, x in inputs.items())
        key = settings, shapes
        try:
            if key not in self._recordings:
                if key not in self._seen:
                    self._seen.add(key)
                    return function(inputs)
                recording = self._record(function, inputs)
                if recording is None:
                    return function(inputs)
                self._recordings[key] = recording
            self._recordings.move_to_end(key)
            result: Tree = self._recordings[key].run(inputs)
            return result
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                self._recordings.clear()
            raise

    def _record(self, function: Callable[[Tensors], Tree], inputs: Tensors) -> _Recording | None:
        if not self._make_room():
            return None
        device = self._recorder.device
        static = {n: torch.empty(x.shape, dtype=x.dtype, device=device) for n, x in inputs.items()}
        _copy(static, inputs)
        before = _random_states(device)
        self._recorder.warm_up(lambda: function(static))
        if not all(map(torch.equal, before, _random_states(device))):
            self._give_up(
                "the network draws random numbers from PyTorch's global generator, and recomputed "
                "steps could not draw the same ones again"
            )
            return None
        # Timed before recording, which frees the memory that this run leaves cached.
        eager = best_seconds(lambda: function(inputs), device) if self._mode == "auto" else math.inf
        try:
            results, replay = self._recorder.record(lambda: function(static))
        except RuntimeError as error:
            # Ending a failed capture raises an error of its own.
            self._give_up(str(error.__context__ or error).strip().splitlines()[0])
            return None
        recording = _Recording(function, static, results, replay)
        self.choice = "replayed"
        if self._mode == "auto":
            replayed = best_seconds(lambda: recording.run(inputs), device)
            times = f"{1000 * replayed:.2f} ms replayed, {1000 * eager:.2f} ms eager"
            self.choice = f"{'replayed' if replayed < eager else 'eager'} ({times})"
            recording.replays = 0
            if eager <= replayed:
                recording = _Recording(function, {}, None, None)
        logger.info("kernels of one step on %s: %s", device, self.choice)
        return recording

    def _make_room(self) -> bool:
        """Whether another recording fits, and shapes repeat often enough to be worth one."""
        if len(self._recordings) < self._limit:
            return True
        _, oldest = self._recordings.popitem(last=False)
        if oldest.replay is None or oldest.replays >= _PAYS_OFF:
            return True
        self._give_up(
            f"inputs have more than {self._limit} shapes, and a recording was replayed only "
            f"{oldest.replays} times"
        )
        return False

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        self._recordings.clear()
        self.choice = f"eager ({reason})"
        warnings.warn(
            f"kernels are no longer recorded and replayed on {self._recorder.device}, steps run "
            f"eagerly: {reason}",
            stacklevel=2,
        )


def make_graphs(mode: GraphMode, device: torch.device) -> Graphs | None:
    """Recordings for a CUDA device; None for other devices and for mode "off"."""
    if mode == "off" or device.type != "cuda":
        return None
    return Graphs(CudaRecorder(device), mode)


def is_recording() -> bool:
    """Whether the current CUDA stream is being captured, which runs no kernels."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _copy(targets: Tensors, sources: Tensors) -> None:
    for name, target in targets.items():
        target.copy_(sources[name], non_blocking=True)


def _random_states(device: torch.device) -> list[Tensor]:
    """States of the generators that layers may draw from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states
