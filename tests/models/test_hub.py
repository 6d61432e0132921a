"""Models on the hub, which a server on loopback plays: upload, download, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
pytest.importorskip("safetensors", reason="needs safetensors")

from models.small_hub import COMMIT, Hub, small_hub

from fewshot_blo import CheckpointError, ConfigurationError, PretrainedModel, load_pretrained
from fewshot_blo.models.files import CARD, CONFIG, MOST_BYTES, WEIGHTS

NAME = "owner/protonet"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with small_hub() as server:
        yield server


@pytest.fixture(scope="module")
def model() -> PretrainedModel:
    return load_pretrained("omniglot-5w1s-protonet", device="cpu")


def loaded(hub: Hub, name: str = NAME, **options: str) -> PretrainedModel:
    return PretrainedModel.from_pretrained(name, endpoint=hub.address, device="cpu", **options)


def test_a_model_goes_to_the_hub_and_comes_back(hub: Hub, model: PretrainedModel) -> None:
    url = model.push_to_hub(NAME, token="hf_none", endpoint=hub.address)
    assert url.endswith(f"{NAME}/commit/{COMMIT}")
    assert {*hub.files} == {f"{NAME}/{file}" for file in (CARD, CONFIG, WEIGHTS)}
    found = loaded(hub)
    assert found.card == model.card
    for name, tensor in model.problem.outer.items():
        assert torch.equal(found.problem.outer[name], tensor)


def test_the_card_is_one_that_the_hub_reads(model: PretrainedModel) -> None:
    from huggingface_hub import ModelCard

    data: Any = ModelCard(model.card).data
    assert (data.license, data.library_name) == ("mit", "fewshot_blo")
    assert data.datasets == ["omniglot"]
    assert [result.metric_value for result in data.eval_results] == [98.96, 98.65, 98.73]


def test_what_the_hub_lacks_is_named(hub: Hub, model: PretrainedModel) -> None:
    with pytest.raises(CheckpointError, match="the model owner/protonet of the hub cannot be read"):
        loaded(hub)
    model.push_to_hub(NAME, token="hf_none", endpoint=hub.address)
    del hub.files[f"{NAME}/{WEIGHTS}"]
    with pytest.raises(CheckpointError, match=f"holds no {WEIGHTS}"):
        loaded(hub)


def test_files_that_are_too_large_are_not_downloaded(hub: Hub, model: PretrainedModel) -> None:
    model.push_to_hub(NAME, token="hf_none", endpoint=hub.address)
    hub.stated_sizes[f"{NAME}/{WEIGHTS}"] = MOST_BYTES[WEIGHTS] + 1
    with pytest.raises(CheckpointError, match=r"4,294,967,297 bytes: a model's model\.safetensors"):
        loaded(hub)


def test_a_model_of_the_hub_calls_no_code_unasked(hub: Hub, model: PretrainedModel) -> None:
    model.push_to_hub(NAME, token="hf_none", endpoint=hub.address)
    config = json.loads(hub.files[f"{NAME}/{CONFIG}"])
    config["settings"]["encoder"] = {"name": "own", "function": "antigravity:make"}
    hub.files[f"{NAME}/{CONFIG}"] = json.dumps(config).encode()
    with pytest.raises(ConfigurationError, match="would call 'antigravity:make': if you trust"):
        loaded(hub)


@pytest.mark.parametrize("name", ["one", "a/b/c", "../secret", "a/..", "a/b?x", "", "a/b\n"])
def test_names_of_another_form_are_refused(name: str, model: PretrainedModel) -> None:
    with pytest.raises(ConfigurationError, match="name it owner/name"):
        model.push_to_hub(name)
    if name not in ("", "a/.."):  # Folders.
        with pytest.raises(CheckpointError, match="there is no folder"):
            PretrainedModel.from_pretrained(name)
