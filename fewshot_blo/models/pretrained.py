"""``PretrainedModel``: a trained model with its settings and card, which labels images."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.evaluation.evaluate import adapted, evaluate
from fewshot_blo.evaluation.result import Evaluation
from fewshot_blo.experiments.data import build_device, build_dtype
from fewshot_blo.experiments.saved import saved_settings
from fewshot_blo.experiments.settings import Config
from fewshot_blo.models.card import plain_card, read_metadata
from fewshot_blo.models.files import Stored, read_model, write_model
from fewshot_blo.models.hub import check_name, download, is_repository, upload
from fewshot_blo.models.inputs import Images, as_images, as_labels
from fewshot_blo.models.restoring import example_shape, for_sharing, restored
from fewshot_blo.problems import FewShotProblem, NormMode
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting
from fewshot_blo.records.shipped import checkpoint_file
from fewshot_blo.tasks import TaskBatch, TaskSource
from fewshot_blo.training import checkpoint as checkpoints

# Backends of the kernel that every machine has; others are chosen anew.
_EVERYWHERE = ("loop", "batched")


@dataclass(frozen=True, eq=False)
class PretrainedModel:
    """A trained model: its problem with weights, its settings and its card.

    Attributes:
        name: name of the model.
        problem: the few-shot problem with its weights, for ``evaluate`` and ``train``.
        config: settings of its run, without folders.
        shape: shape of one image, ``[C, H, W]``.
        outputs: number of outputs of a task in training, which an ``Initialization`` with a learned
            head needs.
        card: text of its card, in Markdown with metadata.
    """

    name: str
    problem: FewShotProblem = field(repr=False)
    config: Config = field(repr=False)
    shape: tuple[int, ...]
    outputs: int
    card: str = field(repr=False)

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of the card: licence, tags, data set, accuracies; empty without."""
        return read_metadata(self.card)

    @classmethod
    def from_checkpoint(
        cls, path: Path | str, *, network: str = "", device: str = "auto"
    ) -> PretrainedModel:
        """The model of a checkpoint that ``train`` wrote.

        Args:
            path: path of the file, or name of a released model. ``card.md`` beside it is its card.
            network: "module:function" of a network of your own, which is then called.
            device: cpu, cuda or cuda:1; auto uses a GPU if there is one.

        Raises:
            CheckpointError: if the file is missing or damaged, or has no settings.
            ConfigurationError: if the data are not images, or the network is not allowed.
        """
        file = checkpoint_file(Path(path))
        saved = checkpoints.load(file)
        trained = saved_settings(saved.config, str(path), [network])
        config = for_sharing(trained)
        shape = example_shape(config, str(path))
        outputs = config.episodes.drawn(training=True).most_way
        here = replace(config, device=device)
        problem = restored(here, shape, outputs, saved.outer, saved.buffers, str(path))
        if saved.settled["backend"] in _EVERYWHERE:
            problem.backend = saved.settled["backend"]
        beside = file.with_name("card.md")
        name = file.parent.name
        card = beside.read_text(encoding="utf-8") if beside.is_file() else plain_card(name, config)
        return cls(name, problem, here, shape, outputs, card)

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str,
        *,
        network: str = "",
        device: str = "auto",
        revision: str | None = None,
        token: str | None = None,
        endpoint: str | None = None,
    ) -> PretrainedModel:
        """The model in a folder that ``save_pretrained`` wrote, or on Hugging Face's hub.

        The files run no code: settings are plain data, names and shapes of the tensors are compared
        with the network of the settings, and sizes are limited.

        Args:
            source: folder, or ``owner/name`` on the hub where there is no such folder.
            network: "module:function" of a network of your own that the settings name. It is called
                only if it is given here.
            device: cpu, cuda or cuda:1; auto uses a GPU if there is one.
            revision: branch, tag or commit on the hub; None for the main branch.
            token: access token of the hub; None for the stored one.
            endpoint: address of the hub; None for the usual one, or ``HF_ENDPOINT``.

        Raises:
            CheckpointError: if a file is missing, damaged, too large or of another model.
            ConfigurationError: if a network of your own is not allowed, or a library is missing.
        """
        folder = Path(source).expanduser()
        if not folder.is_dir():
            if not is_repository(str(source)):
                raise CheckpointError(
                    f"there is no folder {source}, and it is no model of the hub (owner/name): "
                    "check the path, or use load_pretrained for released models"
                )
            folder = download(str(source), revision=revision, token=token, endpoint=endpoint)
        stored = read_model(folder)
        config = saved_settings(stored.settings, str(source), [network])
        config = replace(for_sharing(config), device=device)
        problem = restored(
            config, stored.shape, stored.outputs, stored.outer, stored.buffers, str(source)
        )
        return cls(stored.name, problem, config, stored.shape, stored.outputs, stored.card)

    def save_pretrained(self, folder: Path | str) -> Path:
        """Writes ``model.safetensors``, ``config.json`` and the card ``README.md``.

        Returns:
            The folder.

        Raises:
            CheckpointError: if the folder cannot be written to.
            ConfigurationError: if safetensors is not installed.
        """
        path = Path(folder).expanduser()
        settings = for_sharing(self.config).plain()
        outer, buffers = self.problem.outer, dict(self.problem.network.named_buffers())
        card = self.card or plain_card(self.name, self.config)
        stored = Stored(self.name, settings, self.shape, self.outputs, outer, buffers, card)
        write_model(stored, path)
        return path

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = False,
        token: str | None = None,
        endpoint: str | None = None,
    ) -> str:
        """Uploads the model to Hugging Face's hub, in one commit.

        Args:
            repository: ``owner/name``; it is created if need be.
            private: whether a new repository is private.
            token: access token; None for the stored one.
            endpoint: address of the hub; None for the usual one, or ``HF_ENDPOINT``.

        Returns:
            Address of the commit.

        Raises:
            CheckpointError: if the hub refuses, or is out of reach.
            ConfigurationError: if the name is not ``owner/name``, or a library is not installed.
        """
        check_name(repository)
        with tempfile.TemporaryDirectory() as place:
            folder = self.save_pretrained(place)
            return upload(folder, repository, private=private, token=token, endpoint=endpoint)

    def predict(
        self,
        support: Images,
        labels: Tensor | Sequence[int],
        queries: Images,
        *,
        norm: NormMode = "support",
    ) -> Tensor:
        """Probabilities of the classes of a support set, for other images.

        Args:
            support: B labelled images: ``[B, C, H, W]`` of the model's ``shape``, uint8 or
                floating-point in [0, 1]; or paths, Pillow images or arrays, which are cropped to a
                square, resized, and converted to grey or RGB. Omniglot's models know white ink on
                black.
            labels: their labels ``[B]``, each of 0 to N-1 at least once.
            queries: M images to label, as ``support``.
            norm: source of the batch norm statistics of the queries. With "transductive" they are
                those of all queries, on which each prediction then depends.

        Returns:
            Probabilities ``[M, N]``, on the CPU.

        Raises:
            ConfigurationError: if shapes, labels or values do not fit, or N is not the number of
                outputs that the model was trained with and its head is learned.
            DataError: if an image cannot be read.
        """
        device, dtype = build_device(self.config), build_dtype(self.config)
        x, q = as_images(support, self.shape, "support"), as_images(queries, self.shape, "queries")
        known = as_labels(labels, len(x))
        way = int(known.max()) + 1
        if self._is_fixed and way != self.outputs:
            raise ConfigurationError(
                f"labels have {way} classes, and {self.name} has a learned head of {self.outputs}: "
                "give so many, or use a model with a shared encoder"
            )
        unknown = torch.zeros(1, len(q), dtype=torch.int64)  # Not used without a loss of queries.
        batch = TaskBatch(x[None], known[None], q[None], unknown, torch.arange(way)[None])
        batch = batch.to(device, dtype)
        self.problem.network.eval()
        with torch.no_grad():
            self.problem.prepare(batch, derivatives="first")
            outputs = adapted(self.problem, batch, norm, self.config.adaptation)()[0]
        return outputs.softmax(-1).cpu()

    @checked
    def evaluate(
        self, source: TaskSource, *, tasks: Counting = 600, norm: NormMode = "support"
    ) -> Evaluation:
        """Accuracy on tasks, adapted to as in the model's validation; see ``evaluate``.

        Args:
            source: source of the tasks, as ``ClassSampler``.
            tasks: number of tasks.
            norm: source of the batch norm statistics on the query set.

        Raises:
            ConfigurationError, DivergenceError: as ``evaluate``.
        """
        adaptation = self.config.adaptation
        return evaluate(self.problem, source, tasks=tasks, norm=norm, adaptation=adaptation)

    @property
    def _is_fixed(self) -> bool:
        """Whether the number of classes is that of a learned head."""
        weight = self.problem.outer.get("head.weight")
        return weight is not None and weight.shape[0] == self.outputs
