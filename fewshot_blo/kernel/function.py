"""PyTorch's autograd functions with types.

PyTorch declares ``backward`` and ``vmap`` for any number of positional arguments, and to a type
checker a method with arguments of its own is no such method. ``apply`` has types from PyTorch 2.14
on alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:

    class Function(torch.autograd.Function):
        """``torch.autograd.Function``, whose methods may take any arguments."""

        @classmethod
        def apply(cls, *args: Any, **kwargs: Any) -> Any: ...
        @staticmethod
        def backward(*args: Any, **kwargs: Any) -> Any: ...
        @staticmethod
        def vmap(*args: Any, **kwargs: Any) -> Any: ...

else:
    Function = torch.autograd.Function
