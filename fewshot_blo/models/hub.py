"""Models on Hugging Face's hub: downloading and uploading the three files of a model."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from fewshot_blo.errors import CheckpointError, ConfigurationError, installed_by
from fewshot_blo.models.files import CARD, CONFIG, MOST_BYTES, WEIGHTS, check_bytes

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_repository(name: str) -> bool:
    """Whether a text has the form of a model's name on the hub, ``owner/name``."""
    return _REPOSITORY.fullmatch(name) is not None and ".." not in name


def download(
    repository: str, *, revision: str | None, token: str | None, endpoint: str | None
) -> Path:
    """Downloads the files of a model into the hub's cache; returns their folder.

    All files are of one commit. Their sizes are asked for first.

    Args:
        repository: ``owner/name``.
        revision: branch, tag or commit; None for the main branch.
        token: access token; None for the stored one, if there is one.
        endpoint: address of the hub; None for the usual one, or ``HF_ENDPOINT``.

    Raises:
        CheckpointError: if the model or a file is missing or too large, or the hub is out of reach.
        ConfigurationError: if huggingface_hub is not installed.
    """
    library = _library()
    folder, commit = None, revision
    for name in (CONFIG, WEIGHTS, CARD):
        try:
            url = library.hf_hub_url(repository, name, revision=commit, endpoint=endpoint)
            found = library.get_hf_file_metadata(url, token=token, endpoint=endpoint)
        except library.errors.EntryNotFoundError as error:
            if name == CARD:
                continue
            raise CheckpointError(
                f"{repository} holds no {name}: it is not a model that save_pretrained wrote"
            ) from error
        except Exception as error:  # Of the library, of its HTTP client or of the network.
            raise _failed("read", repository, error) from error
        check_bytes(MOST_BYTES[name] + 1 if found.size is None else found.size, repository, name)
        commit = found.commit_hash or commit
        try:
            path = library.hf_hub_download(
                repository, name, revision=commit, token=token, endpoint=endpoint
            )
        except Exception as error:
            raise _failed("downloaded", repository, error) from error
        folder = Path(path).parent
    assert folder is not None
    return folder


def upload(
    folder: Path, repository: str, *, private: bool, token: str | None, endpoint: str | None
) -> str:
    """Uploads the files of a model in one commit; returns the commit's address.

    Raises:
        CheckpointError: if the hub refuses, or is out of reach.
        ConfigurationError: if the name is not ``owner/name``, or huggingface_hub is not installed.
    """
    check_name(repository)
    library = _library()
    try:
        api = library.HfApi(endpoint=endpoint, token=token)
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(MOST_BYTES),
            commit_message="Upload of a model of fewshot_blo",
        )
    except Exception as error:  # As above.
        raise _failed("written", repository, error) from error
    return str(done.commit_url)


def check_name(repository: str) -> None:
    """Raises ``ConfigurationError`` unless a name is ``owner/name``."""
    if not is_repository(repository):
        raise ConfigurationError(
            f"the model on the hub is '{repository}': name it owner/name, in letters, digits, '-', "
            "'_' and '.'"
        )


def _failed(what: str, repository: str, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return CheckpointError(
        f"the model {repository} of the hub cannot be {what} ({reason}): check the name, the "
        "network, and for private models the token"
    )


def _library() -> Any:
    with installed_by(".[hf]"):
        importlib.import_module("huggingface_hub.errors")
        return importlib.import_module("huggingface_hub")
