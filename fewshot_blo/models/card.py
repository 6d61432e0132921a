"""The card of a model: metadata in YAML, and a table of what it was trained on and for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.settings import Config

_NOT_OF_DATA = {"name", "root", "download", "refresh", "csv", "repository", "size"}
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def metadata(name: str, config: Config, figures: Sequence[Mapping[str, Any]] = ()) -> str:
    """The metadata of a card, between lines of dashes, as Hugging Face's hub reads them.

    Args:
        name: name of the model.
        config: settings of its run.
        figures: accuracies on test classes: ``norm``, ``mean`` and ``interval_95`` (of 1), and
            ``tasks``.
    """
    task = config.episodes.drawn(training=False).describe()
    data = _slug(config.data.title)
    found: dict[str, Any] = {
        "license": "mit",
        "library_name": "fewshot_blo",
        "tags": ["few-shot-learning", "meta-learning", "bilevel-optimization", _method(config)],
    }
    if config.data.channels:
        found |= {"pipeline_tag": "image-classification", "datasets": [data]}
    if figures:
        measured = [
            {
                "type": "accuracy",
                "name": f"accuracy on test classes, {f['norm']} statistics, {f['tasks']} tasks",
                "value": round(100 * f["mean"], 2),
                "interval_95": round(100 * f["interval_95"], 2),
            }
            for f in figures
        ]
        kind = {"type": "image-classification", "name": task}
        dataset = {"name": config.data.title, "type": data, "split": "test"}
        result = {"task": kind, "dataset": dataset, "metrics": measured}
        found["metrics"] = ["accuracy"]
        found["model-index"] = [{"name": name, "results": [result]}]
    return f"---\n{yaml.safe_dump(found, sort_keys=False, allow_unicode=True)}---\n"


def facts(config: Config) -> str:
    """A table of data set, split, backbone, method, protocol, limits and licence."""
    tree = config.plain()
    rows = {
        "data set": config.data.title,
        "split": _split(config, tree["data"]),
        "images": _images(config),
        "backbone": _settings(tree["encoder"]),
        "method": _settings({"name": _method(config), **_plain_only(tree["problem"])}),
        "training tasks": config.episodes.drawn(training=True).describe()
        if config.train.steps
        else "none: the model was not trained on tasks",
        "test tasks": _test_tasks(config),
        "limits": "measured on the test classes of this data set alone, with the tasks above and "
        "one training seed; other data, ways and shots are not measured here; every image is "
        "taken to be of one of the classes of its support set",
        "licence": "MIT for weights and settings; for the images see the data set's terms",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value]
    return "\n".join(["| what | of this model |", "|---|---|", *lines])


def plain_card(name: str, config: Config) -> str:
    """The card of a model that has none yet: metadata and facts, without figures."""
    return f"{metadata(name, config)}\n# {name}\n\n{facts(config)}\n\n{use(name)}"


def use(name: str) -> str:
    """How a model of this name is used, as Markdown."""
    return f"""To use it:

    from fewshot_blo import PretrainedModel

    model = PretrainedModel.from_pretrained("FOLDER-OR-OWNER/{name}")
    probabilities = model.predict(support, labels, queries)
"""


def read_metadata(card: str) -> dict[str, Any]:
    """The metadata of a card; empty where it has none, or none that can be read."""
    found = _FRONT.match(card)
    if found is None:
        return {}
    try:
        content = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def without_metadata(card: str) -> str:
    """The text of a card below its metadata."""
    return _FRONT.sub("", card).lstrip("\n")


def _method(config: Config) -> str:
    problem, strategy = config.problem.kind.__name__, type(config.strategy).__name__
    return f"{problem}-{strategy}"


def _split(config: Config, data: Mapping[str, Any]) -> str:
    chosen = _settings({k: v for k, v in data.items() if k not in _NOT_OF_DATA})
    which = chosen or (f"class lists {config.data.division}" if config.data.division else "")
    return f"{which}{'; ' if which else ''}training classes, best on validation, figures on test"


def _images(config: Config) -> str:
    if not config.data.channels:
        return ""
    size = vars(config.data)["size"]
    return f"{'grey' if config.data.channels == 1 else 'RGB'}, {size}x{size} pixels"


def _test_tasks(config: Config) -> str:
    try:
        task = config.episodes.drawn(training=False).describe()
    except ConfigurationError:
        return ""
    rule = type(config.adaptation.rule).__name__
    return f"{task}; {config.adaptation.steps} inner steps of {rule}"


def _plain_only(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The name of the head, where a problem has one."""
    head = settings.get("head")
    return {"head": head["name"]} if isinstance(head, Mapping) else {}


def _settings(settings: Mapping[str, Any]) -> str:
    """A component in one line: its name and its settings, as ``Conv4: hidden 64, pools 4``."""
    name = settings.get("name", "")
    others = ", ".join(
        f"{key.replace('_', ' ')} {str(value).lower() if isinstance(value, bool) else value}"
        for key, value in settings.items()
        if key != "name" and not isinstance(value, Mapping) and value is not None
    )
    return f"{name}: {others}" if name and others else name or others


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
