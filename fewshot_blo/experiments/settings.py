"""The settings of a run: one frozen tree that is the source of defaults, help and validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewshot_blo.heads.head import Start
from fewshot_blo.kernel import BackendChoice
from fewshot_blo.kernel.precision import Precision
from fewshot_blo.networks import Norm
from fewshot_blo.tasks import Augmentation
from fewshot_blo.training.settings import TrainSettings

DataName = Literal[
    "glyphs", "omniglot", "miniimagenet", "tieredimagenet", "cifarfs", "fc100", "folder"
]
HeadName = Literal[
    "linear",
    "cosine",
    "ridge",
    "max_margin",
    "matching",
    "full_context",
    "relation",
    "propagation",
]


@dataclass(frozen=True)
class DataSettings:
    """Which images.

    Attributes:
        name: data set; glyphs needs no files.
        root: folder of the data set's files.
        split: how Omniglot's characters are divided: vinyals (1028/172/423) or background.
        rotations: turn Omniglot's characters by 90, 180 and 270 degrees into further classes.
        mirrors: mirror Omniglot's training characters into further classes; validation and test
            have none of them.
        size: height and width of the images; 0 for the data set's usual size.
        csv: file with the columns class and split that divides a folder's classes.
        seed: of the division of a folder's classes where there is no csv.
        color: read a folder's images in colour, else in grey.
        download: fetch Omniglot or CIFAR-100 where their files are missing.
    """

    name: DataName = "glyphs"
    root: str = ""
    split: Literal["vinyals", "background"] = "vinyals"
    rotations: bool = True
    mirrors: bool = False
    size: int = 0
    csv: str = ""
    seed: int = 0
    color: bool = True
    download: bool = False


@dataclass(frozen=True)
class EpisodeSettings:
    """Which tasks.

    Attributes:
        way: N, classes a task; or an inclusive range [low, high].
        shot: K, support images a class; or a range.
        query: Q, query images a class in training; or a range.
        validation_way: N in validation and evaluation; 0 for that of training.
        validation_shot: K there; 0 for that of training.
        validation_query: Q there.
        tasks: T, tasks a batch.
        seed: of the training tasks; validation tasks take the next seed.
    """

    way: int | tuple[int, int] = 5
    shot: int | tuple[int, int] = 1
    query: int | tuple[int, int] = 5
    validation_way: int = 0
    validation_shot: int = 0
    validation_query: int = 15
    tasks: int = 16
    seed: int = 0


@dataclass(frozen=True)
class ProblemSettings:
    """What is learned.

    Attributes:
        name: shared_encoder learns features for a head; initialization learns where the network
            starts to adapt; pretraining learns features by telling all training classes apart.
        network: conv4; resnet12, whose blocks have 64, 160, 320 and 640 filters, or
            resnet12_narrow with 64, 128, 256 and 512; wrn_28_10; a pretrained torchvision:NAME,
            timm:NAME or hf:NAME; or "module:function" for a function without arguments that
            returns a module from images to features.
        weights: file of a pretrained network's weights instead of its library's own.
        input_size: pixels that a pretrained network, or a backbone that module:function returns,
            resizes images to; 0 for its own.
        sharpen: how much such a network sharpens images before that; 0.25 to 1 may help it with
            small ones.
        hidden: filters of each block of conv4.
        pools: blocks of conv4 that end in pooling; 2 leave the maps that relation networks compare.
        norm: normalisation layers of these networks; stepwise is batch with parameters of its own
            for each inner step.
        drop_block: side of the squares that DropBlock drops in resnet12; 0 to drop nothing.
        drop_rate: share of a block's output that is dropped with them; in wrn_28_10 of dropout.
        prox: weight of the proximal term of the inner problem; by default 0.5 for a linear or
            cosine head, and 0 for the others and for an initialization.
        classes: of pretraining; 0 counts those of the training split.
        start_from: checkpoint whose encoder training starts from, or for `compare` the name of a
            recipe in the same folder; empty for random weights.
        learn_prox: learn that weight (shared_encoder).
        head: of a shared encoder: linear or cosine, which adapt in inner steps; ridge (R2D2) or
            max_margin (MetaOptNet), solved in closed form or as a quadratic program; matching,
            which attends to the support set, and full_context, whose embeddings read it too;
            relation, which learns to compare; propagation, which
            spreads labels over all queries. Without inner steps a linear head is a ProtoNet.
        start: where a shared encoder's heads start: at zeros, prototypes, the solution in closed
            form, or learned; by default prototypes for linear and cosine, else closed_form. That of
            an initialization: learned by default, or prototypes (Proto-MAML).
        unit: divide features by their length.
        centre: subtract the mean feature of the training images, outside of training.
        scale: of a head's logits, where it has one: 10 by default.
        lam: initial regularisation of the ridge head.
        margin_weight: weight of the losses of the max_margin head.
        adapt: which parameters of an initialization adapt: all, the head (ANIL), the body (BOIL),
            or all but those of the norms (MAML++).
        step_sizes: learned ones of an initialization: one for each tensor, each entry (Meta-SGD),
            or each tensor and inner step (MAML++).
        backend: of the kernel; auto measures which is faster. reference runs the network itself
            task by task, which the others must agree with.
        prove: compare the kernel with the network itself at the first batch, which takes less than
            a second for conv4.
        slices: of a shared encoder that treats every image by itself: images encoded at a time,
            whose activations are made again in the backward pass; 0 keeps all.
        precision: of the network's products: float32, or faster and less exact tf32 (GPU) and
            bfloat16; parameters and losses stay in dtype. `check` prints errors and times.
    """

    name: Literal["shared_encoder", "initialization", "pretraining"] = "shared_encoder"
    network: str = "conv4"
    weights: str = ""
    input_size: int = 0
    sharpen: float = 0.0
    hidden: int = 64
    pools: int = 4
    norm: Norm = "batch"
    drop_block: int = 0
    drop_rate: float = 0.1
    prox: float | None = None
    classes: int = 0
    start_from: str = ""
    learn_prox: bool = False
    head: HeadName = "linear"
    start: Start | None = None
    unit: bool = False
    centre: bool = False
    scale: float = 10.0
    lam: float = 1.0
    margin_weight: float = 1.0
    adapt: Literal["all", "head", "body", "no_norms"] = "all"
    step_sizes: Literal["tensor", "entry", "step"] = "tensor"
    backend: BackendChoice = "auto"
    prove: bool = True
    slices: int = 0
    precision: Precision = "float32"


@dataclass(frozen=True)
class RuleSettings:
    """Inner steps.

    Attributes:
        steps: number of inner steps.
        rule: update rule; learned is sgd with learned step sizes (problem.step_sizes).
        step_size: of the rule; for learned ones where they start.
    """

    steps: int = 5
    rule: Literal["sgd", "momentum", "adam", "learned"] = "sgd"
    step_size: float = 0.5


@dataclass(frozen=True)
class StrategySettings:
    """How the hypergradient is computed.

    Attributes:
        name: unroll differentiates through the inner steps, implicit at their end; penalty
            replaces the inner problem by a penalty on its gradient, value_function and bome by one
            on its value; reptile moves an initialization to where the inner steps end.
        first_order: unroll: take inner gradients for constants.
        first_order_steps: unroll: do so in the first so many outer steps.
        multi_step: unroll: outer steps in which the loss after each inner step counts.
        truncate: unroll: exact derivatives of the last so many steps; -1 for all.
        recompute: unroll: make the graphs of steps again instead of storing them; null measures
            which is faster in the memory that is free.
        solver: implicit: conjugate gradients, Neumann series, or one step.
        solver_steps: implicit: steps of the linear solver.
        solver_step_size: implicit by neumann and one_step; 0 for that of the inner steps.
        damping: implicit: added to the Hessian.
        rho: penalty: weight of the squared inner gradient at the start.
        lam: penalty: weight of the inner loss in the inner objective at the start, by default 0.01;
            value_function: weight of the value's penalty at the start, by default 100.
        epsilon: penalty: tolerance at which the schedules advance, at the start.
        multiplier: penalty: initial Lagrange multipliers.
        rho_growth: penalty: factor of rho where a step is stationary to within epsilon.
        lam_decay: penalty: factor of lam there.
        epsilon_decay: penalty: factor of epsilon there.
        value_steps: value_function, bome: inner steps to the value of the inner problem.
        lam_growth: value_function: added to lam after each outer step.
        lam_max: value_function: lam grows no further.
        continued: value_function: these steps start where the others ended.
        eta: bome: how fast the penalty must fall.
        query_weight: reptile: weight of the query set in the inner steps.
    """

    name: Literal["unroll", "implicit", "penalty", "value_function", "bome", "reptile"] = "unroll"
    first_order: bool = False
    first_order_steps: int = 0
    multi_step: int = 0
    truncate: int = -1
    recompute: bool | None = None
    solver: Literal["cg", "neumann", "one_step"] = "cg"
    solver_steps: int = 5
    solver_step_size: float = 0.0
    damping: float = 0.0
    rho: float = 1e-2
    lam: float | None = None
    epsilon: float = 1e-2
    multiplier: float = 1e-4
    rho_growth: float = 1.1
    lam_decay: float = 0.9
    epsilon_decay: float = 0.9
    value_steps: int = 20
    lam_growth: float = 0.0
    lam_max: float = float("inf")
    continued: bool = False
    eta: float = 0.5
    query_weight: float = 0.5


@dataclass(frozen=True)
class Config:
    """Settings of a run.

    Attributes:
        data: which images.
        episodes: which tasks.
        augment: random changes of the training images.
        problem: what is learned.
        strategy: how the hypergradient is computed.
        inner: inner steps in training.
        adaptation: inner steps in validation and evaluation.
        train: the outer loop.
        device: cpu, cuda or cuda:1; auto takes a GPU where there is one.
        dtype: of images and parameters.
        seed: of the network's initial weights.
    """

    data: DataSettings = DataSettings()
    episodes: EpisodeSettings = EpisodeSettings()
    augment: Augmentation = Augmentation()
    problem: ProblemSettings = ProblemSettings()
    strategy: StrategySettings = StrategySettings()
    inner: RuleSettings = RuleSettings()
    adaptation: RuleSettings = RuleSettings(steps=10)
    train: TrainSettings = TrainSettings()
    device: str = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    seed: int = 0
