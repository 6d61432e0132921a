"""``load_pretrained``: the released models of the package by name."""

from __future__ import annotations

from fewshot_blo.models.pretrained import PretrainedModel
from fewshot_blo.records.checked import checked
from fewshot_blo.records.shipped import released_folder


@checked
def load_pretrained(name: str, *, device: str = "auto") -> PretrainedModel:
    """A released model of the package by name, as ``omniglot-5w1s-unroll``.

    ``fewshot-blo models`` lists them; ``PretrainedModel.from_pretrained`` loads those of folders
    and of Hugging Face's hub.

    Args:
        name: name of the model.
        device: cpu, cuda or cuda:1; auto uses a GPU if there is one.

    Raises:
        CheckpointError: if there is no model of this name; the message has the nearest names.
    """
    released_folder(name)
    return PretrainedModel.from_checkpoint(name, device=device)
