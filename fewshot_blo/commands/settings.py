"""Options that several commands have."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.settings import Config
from fewshot_blo.finetune import Classifier, load_classifier


def config_parser(description: str) -> ArgumentParser:
    """A parser whose options are the settings of a run."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--config", action="config", help="YAML file of settings")
    parser.add_class_arguments(Config)
    return parser


def parsed_config(parser: ArgumentParser, parsed: Namespace) -> Config:
    """The settings that were given.

    Raises:
        ConfigurationError: if a section is no mapping.
    """
    for field in fields(Config):
        if is_dataclass(field.default) and not isinstance(parsed[field.name], Namespace):
            raise ConfigurationError(
                f"{field.name} is {parsed[field.name]}: it must be a mapping of settings"
            )
    built = parser.instantiate(parsed)
    return Config(**{field.name: built[field.name] for field in fields(Config)})


def add_classifier(parser: ArgumentParser) -> None:
    """Options that name a classifier."""
    parser.add_argument("classifier", type=Path, help="file written by finetune")
    parser.add_argument(
        "--own", default="", help="module:function of the backbone, where it is your own"
    )


def read_classifier(parsed: Namespace) -> Classifier:
    """The classifier that was named."""
    return load_classifier(parsed.classifier, own=parsed.own)
