"""PyTorch's autograd functions with types.

PyTorch declares ``backward`` and ``vmap`` for any number of arguments and leaves ``apply`` untyped.
A function has its own, by position.
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
