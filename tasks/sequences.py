"""``padded``: sequences of unequal length as inputs of examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Natural
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.inputs import Inputs


@checked
def padded(sequences: Sequence[object], *, padding: Natural = 0) -> Inputs:
    """Token ids or time series, padded at the end to the longest one.

    Args:
        sequences: M sequences, each a tensor, array or list: token ids ``[L_i]``, integers; or the
            values of a time series, ``[L_i, C]`` or, of one channel, ``[L_i]``, floating-point.
        padding: token id of padding, which no sequence has.

    Returns:
        Token ids ``[M, L]``, int64; or the series as "x" ``[M, L, C]`` and a "mask" ``[M, L]``,
        True for real entries, as ``TransformerEncoder`` and ``GRU`` take them.

    Raises:
        DataError: if a sequence is empty, or they differ in kind or number of channels.
    """
    tensors = [torch.as_tensor(sequence) for sequence in sequences]
    if not tensors:
        raise DataError("there are no sequences: give at least one")
    for number, x in enumerate(tensors):
        if x.ndim not in (1, 2) or not x.numel():
            raise DataError(
                f"sequence {number} has shape {list(x.shape)}: it must be [length] or [length, "
                "channels], and not be empty"
            )
    floating = [x.is_floating_point() for x in tensors]
    if any(floating) != all(floating):
        number = floating.index(not floating[0])
        raise DataError(
            f"sequence 0 is {tensors[0].dtype} and sequence {number} {tensors[number].dtype}: all "
            "must be token ids or all floating-point"
        )
    return _series(tensors) if floating[0] else _ids(tensors, padding)


def _ids(tensors: Sequence[Tensor], padding: int) -> Tensor:
    for number, x in enumerate(tensors):
        if x.ndim != 1 or (x == padding).any() or (x < 0).any():
            raise DataError(
                f"sequence {number} is {x.tolist()!s:.60}: token ids must be [length], at least 0 "
                f"and other than {padding}, the id of padding; number the tokens from "
                f"{padding + 1} on, or set another padding"
            )
    return torch.nn.utils.rnn.pad_sequence(
        [x.long() for x in tensors], batch_first=True, padding_value=padding
    )


def _series(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    series = [x[:, None] if x.ndim == 1 else x for x in tensors]
    channels = [x.shape[1] for x in series]
    if len(set(channels)) > 1:
        number = next(n for n, count in enumerate(channels) if count != channels[0])
        raise DataError(
            f"series 0 has {channels[0]} channels and series {number} {channels[number]}: all must "
            "have the same number"
        )
    lengths = torch.tensor([len(x) for x in series])
    x = torch.nn.utils.rnn.pad_sequence(series, batch_first=True)
    return {"x": x, "mask": torch.arange(x.shape[1]) < lengths[:, None]}
