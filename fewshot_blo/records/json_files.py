"""JSON files that carry a digest of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fewshot_blo.errors import CheckpointError
from fewshot_blo.records.files import atomic_write

_DIGEST = "sha256"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes plain data atomically, with a digest of it as the last entry.

    Raises:
        OSError: if the file cannot be written.
    """
    signed = {**content, _DIGEST: digest_of(content)}
    with atomic_write(path) as file:
        file.write((json.dumps(signed, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """What ``write_json`` wrote; files of earlier versions have no digest and are not checked.

    Raises:
        CheckpointError: if the file is damaged.
        OSError: if it cannot be read.
    """
    content: Any = None
    with suppress(ValueError, RecursionError):
        content = json.loads(path.read_bytes())
    if not isinstance(content, dict) or content.pop(_DIGEST, None) not in (
        None,
        digest_of(content),
    ):
        raise CheckpointError(
            f"{path} is damaged: it is not what was written; use another copy, or remove it to "
            "compute it again"
        )
    found: dict[str, Any] = content
    return found


def digest_of(content: Mapping[str, Any]) -> str:
    """The SHA-256 of content as JSON with sorted names, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
