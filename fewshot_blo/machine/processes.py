"""``Processes``: the processes that compute a run together, and what they exchange."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fewshot_blo.errors import ConfigurationError, ProcessError

Result = TypeVar("Result")


def part(number: int, count: int, total: int) -> slice:
    """Part ``number``, from 0, of ``count`` consecutive parts whose sizes differ by at most one."""
    return slice(-(-number * total // count), -(-(number + 1) * total // count))


@dataclass(frozen=True)
class Processes:
    """The processes of a run, each of which computes a part of the tasks.

    All of them take the same steps in the same order, and each method is called by all. One
    process alone exchanges nothing.

    Attributes:
        rank: number of this process, counted from 0.
        count: number of processes.
        device: device of the small tensors that they exchange.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def part(self, total: int) -> slice:
        """This process's part of ``total`` tasks."""
        return part(self.rank, self.count, total)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place; bit for bit the same on each."""
        if self.count > 1:
            with self._contact():
                dist.all_reduce(tensor)
        return tensor

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Which flags are set in any process."""
        if self.count == 1:
            return flags
        with self._contact():
            found = torch.tensor(flags, dtype=torch.int32, device=self.device)
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return tuple(map(bool, found.tolist()))

    def from_first(self, make: Callable[[], Result]) -> Result:
        """What a function returns in the first process, which alone calls it.

        Raises:
            ProcessError: in the other processes, if it raises an error there.
        """
        if self.count == 1:
            return make()
        if not self.is_first:
            made = self._sent(None)
            if isinstance(made, _Failure):
                raise ProcessError(
                    f"process 0 of {self.count} failed: {made.message}", is_told=True
                )
            return made  # type: ignore[no-any-return]
        try:
            result = make()
        except Exception as error:
            self._sent(_Failure(str(error) or type(error).__name__))
            raise
        self._sent(result)
        return result

    def on_first(self, act: Callable[[], object]) -> None:
        """Calls a function in the first process alone; errors as in ``from_first``."""
        self.from_first(lambda: (act(), None)[1])

    def collect(self, value: Result) -> list[Result]:
        """The values of all processes, by rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        with self._contact():
            dist.all_gather_object(found, value)
        return found

    def check_alike(self, values: Mapping[str, object]) -> None:
        """Checks that values, by what a message calls them, are the same in all processes.

        Raises:
            ConfigurationError: in all of them if they are not.
        """
        everywhere = self.collect({name: repr(value) for name, value in values.items()})
        for rank, others in enumerate(everywhere):
            for name, value in others.items():
                first = everywhere[0][name]
                if value != first:
                    raise ConfigurationError(
                        f"processes 0 and {rank} of the run differ in their {name} "
                        f"({first[:200]} and {value[:200]}): start all with the same arguments and "
                        "seeds; each computes its part of every batch by itself"
                    )

    @torch.no_grad()
    def make_same(self, tensors: Iterable[Tensor]) -> None:
        """Copies the first process's values into the tensors of all."""
        if self.count > 1:
            with self._contact():
                for tensor in tensors:
                    dist.broadcast(tensor.data, 0)

    def _sent(self, value: Any) -> Any:
        """A value of the first process, on all."""
        box = [value]
        with self._contact():
            dist.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    @contextmanager
    def _contact(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            # Without the place in gloo's code before it, and its advice behind it.
            reason = re.sub(r"^\[.*?\] |\. .*", "", f"{error}".partition("\n")[0])
            raise ProcessError(
                f"process {self.rank} of {self.count} lost contact with another one, which has "
                f"ended or cannot be reached ({reason})"
            ) from error


@dataclass(frozen=True)
class _Failure:
    """In place of a result that the first process did not get to."""

    message: str


ALONE = Processes()


def joined() -> Processes:
    """The processes of PyTorch's default process group if there is one, else this one alone."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    return Processes(dist.get_rank(), dist.get_world_size(), _exchange_device())


def on_this_host() -> int:
    """Number of processes of the run that share this host's memory, as far as is known."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(text) if text.isdecimal() and int(text) else joined().count


def _exchange_device() -> torch.device:
    """The CPU if the group exchanges tensors of the CPU, else the current GPU."""
    if "cpu:" in dist.get_backend_config():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
