"""Fine-tuning of many tasks in stacks, beside the same done task by task in plain PyTorch.

5-way tasks of random images, 50 steps. The plain loop is what people write: the backbone without
gradients for a head, the whole network in every step where parts of it adapt. Ours includes
embedding every image of the split once. The two are compared on the first tasks: logits first.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.backbones import Backbone, choose_parameters, load_backbone
from fewshot_blo.evaluation.evaluate import adapted, embed, evaluate
from fewshot_blo.finetune.candidates import Candidate
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.machine.allocator import keep_freed_memory
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.provenance import provenance
from fewshot_blo.tasks import ClassDataset, EpisodicSampler, TaskBatch

ROWS = {
    "head": Candidate("head", inner=InnerSteps(50, SGD(1.0))),
    "low rank, last 2 blocks": Candidate(
        "low rank", adapts="low_rank", blocks=2, inner=InnerSteps(50, SGD(0.1))
    ),
    "last block": Candidate("last block", adapts="last_blocks", inner=InnerSteps(50, SGD(0.1))),
}


def main() -> None:
    """Measures, prints a line for each row and writes JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", default="torchvision:mobilenet_v3_small")
    parser.add_argument("--weights", help="file of weights; without, they are random")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--shot", type=int, default=5)
    parser.add_argument("--query", type=int, default=15)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--images", type=int, default=100, help="of each class")
    parser.add_argument("--tasks", type=int, default=600)
    parser.add_argument("--plain_tasks", type=int, default=4)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()

    keep_freed_memory()
    torch.manual_seed(0)
    backbone = load_backbone(
        arguments.backbone,
        weights=arguments.weights,
        pretrained=arguments.weights is not None,
        size=arguments.size,
    )
    count = arguments.classes * arguments.images
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    names = {str(number): arguments.images for number in range(arguments.classes)}
    dataset = ClassDataset.from_counts(images, names)
    shape = {"way": 5, "shot": arguments.shot, "query": arguments.query}
    sampler = EpisodicSampler(dataset, **shape, tasks=arguments.plain_tasks)
    rows = []
    for name in arguments.rows:
        candidate = ROWS[name]
        problem = candidate.problem(backbone, images.shape[1:])
        batch = sampler.batch(0)
        with torch.no_grad():
            ours = adapted(problem, batch, "support", candidate.inner)()
        start = time.perf_counter()
        plain = torch.stack([by_hand(candidate, backbone, task) for task in batch.chunks(1)])
        plain_seconds = (time.perf_counter() - start) / batch.tasks
        difference = float((ours - plain).abs().max() / plain.abs().max())
        start = time.perf_counter()
        features = embed(problem.network, images)
        embedding = time.perf_counter() - start
        evaluate(
            problem,
            sampler,
            tasks=arguments.tasks,
            norm="support",
            adaptation=candidate.inner,
            embeddings=features,
        )
        seconds = (time.perf_counter() - start) / arguments.tasks
        rows.append(
            {
                "adapts": name,
                "difference": difference,
                "plain_seconds_per_task": plain_seconds,
                "seconds_per_task": seconds,
                "embedding_seconds": embedding,
                "ratio": plain_seconds / seconds,
            }
        )
        print(
            f"{name:24} plain {plain_seconds:.3f} s a task, ours {seconds:.4f} s (embedding "
            f"{embedding:.1f} s of {arguments.tasks} tasks), {plain_seconds / seconds:.1f} times, "
            f"logits differ by {difference:.0e}",
            flush=True,
        )
    if arguments.output:
        content = {
            "settings": {key: str(value) for key, value in vars(arguments).items()},
            "threads": torch.get_num_threads(),
            "provenance": provenance(torch.device("cpu")),
            "rows": rows,
        }
        with atomic_write(arguments.output) as file:
            file.write(json.dumps(content, indent=1).encode())


def by_hand(candidate: Candidate, backbone: Backbone, task: TaskBatch) -> Tensor:
    """Query logits of one task after its steps, ``[N*Q, N]``."""
    network, names = choose_parameters(
        backbone, candidate.adapts, blocks=candidate.blocks, rank=candidate.rank
    )
    network = copy.deepcopy(network).requires_grad_(False)
    own = [p.requires_grad_() for n, p in network.named_parameters() if n in names]
    support, labels, query = task.support_x[0], task.support_y[0], task.query_x[0]
    with torch.no_grad():
        features = F.normalize(network(support))
        means = torch.stack([features[labels == n].mean(0) for n in range(task.way)])
    head = nn.Linear(means.shape[1], task.way)
    head.weight.data, head.bias.data = 2 * means, -means.square().sum(1)
    rule: Any = candidate.inner.rule
    optimizer = torch.optim.SGD([*own, *head.parameters()], lr=rule.step_size)
    for _ in range(candidate.inner.most):
        x = F.normalize(network(support)) if own else features
        loss = F.cross_entropy(head(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits: Tensor = head(F.normalize(network(query)))
    return logits


if __name__ == "__main__":
    main()
