"""What each strategy family promises. Members live one per file in the folder that the family names.

Axes: P prompts, E actions, L leaves, R rewards, B rows of a batch; ``...`` latent axes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path as Folder
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from flowrl.credit import Mixing, Peers, Rewards, Scope, Streams, relative_advantage
from flowrl.errors import listing
from flowrl.gaussian import Gaussian
from flowrl.plan import Plan
from flowrl.sigmas import Grid
from flowrl.types import Answer, Arm, Cond, Images, Path, Prompt, Question, Scores
from flowrl.variant import Variant

if TYPE_CHECKING:
    import torch

    from flowrl.surrogate import Actions, LossTerms


Approximated = Literal["fp8", "cache"]


class Schedule(Variant, package="flowrl.schedules"):
    """Which grid steps are stochastic in an iteration. Pure: equal on every rank, resumable, nothing to update."""

    @abstractmethod
    def arms(self, *, num_steps: int, group: int, iteration: int, iterations: int, seed: int) -> tuple[Arm, ...]:
        """The arms of this iteration. Raises ValueError where the schedule does not fit the grid."""


class Cache(BaseModel):
    """Of every ``every`` steps of a continuation one runs in full; the others run the blocks outside ``blocks`` alone
    and add the residual (output minus input) that those inside had there. See docs/continuations.md."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    every: int = Field(default=2, ge=2)
    blocks: tuple[float, float] = (0.25, 0.75)
    """First and last of the blocks that are reused, as fractions of the model's depth."""

    @model_validator(mode="after")
    def _falls_inside(self) -> Self:
        first, last = self.blocks
        if not 0 <= first < last <= 1:
            raise ValueError(f"blocks must be two rising fractions of the depth between 0 and 1, got [{first}, {last}]")
        return self

    order: Literal[0, 1] = 1
    """Of the extrapolation in the noise level: the last full step's residual as it was, or the line through the last
    two, where there are two."""

    @property
    def share(self) -> float:
        """The share of a forward that a step which reuses does without; all blocks of a transformer cost the same."""
        return self.blocks[1] - self.blocks[0]

    def span(self, depth: int) -> tuple[int, int]:
        """The blocks that are reused, of ``depth`` in all: the first, and one past the last.

        Raises ValueError where the fractions round to no block.

        >>> Cache(blocks=(0.25, 1.0)).span(57)
        (14, 57)
        """
        first, last = (round(fraction * depth) for fraction in self.blocks)
        if first == last:
            raise ValueError(f"cache.blocks {list(self.blocks)} names no block of a model with {depth} blocks")
        return first, last


class Continuation(Variant, package="flowrl.continuations"):
    """How a noisy state is denoised to the end: one path per stream (granularity).

    No velocity of a continuation enters a log-prob, so it may be approximated; the fields that say how are the base's.
    """

    precision: Literal["exact", "fp8"] = "exact"
    """Of the matrix products in the transformer's blocks; exact: as in training."""
    cache: Cache | None = None
    """Reuse of blocks between neighbouring steps; null: every block of every step runs."""

    @property
    def wanted(self) -> frozenset[Approximated]:
        """What of it is approximated; empty where every forward is the policy's own."""
        cached: frozenset[Approximated] = frozenset() if self.cache is None else frozenset({"cache"})
        return cached | {"fp8"} if self.precision == "fp8" else cached

    @abstractmethod
    def paths(self, grid: Grid, start: int) -> tuple[Path, ...]:
        """One path per stream from ``grid.sigma[start]`` to 0; the streams of all starts are the same in number."""


class Kernel(Variant, package="flowrl.kernels"):
    """The stochastic transition p(x' | x, v). Returns a distribution, never a sample."""

    keeps_marginals: ClassVar[bool]
    """The claim that a rollout's marginals converge to the ODE's as the number of steps grows (tested)."""

    @abstractmethod
    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        """``x``, ``v`` [B, ...]; ``sigma`` > ``sigma_next`` >= 0, each [B]."""


class Advantage(Variant, package="flowrl.advantages"):
    """Rewards of a whole iteration -> one number per action. The fields are those of the one formula
    (:func:`flowrl.credit.relative_advantage`); a member sets its paper's values, and may replace ``per_action``."""

    peers: Peers
    streams: Streams = "sum"
    mixing: Mixing = "sum_of_advantages"
    scope: Scope = "group"
    ddof: int = Field(default=1, ge=0, le=1)
    eps: float = Field(default=1e-8, ge=0)
    clip: float | None = Field(default=5.0, gt=0)

    def per_action(self, rewards: Rewards, plan: Plan) -> Tensor:
        """[P, E] float64. Raises ValueError where a peer group has one member."""
        fields = ("peers", "streams", "mixing", "scope", "ddof", "eps", "clip")
        return relative_advantage(rewards, plan, **{name: getattr(self, name) for name in fields})


class Loss(Variant, package="flowrl.losses"):
    """The surrogate that is minimised over actions."""

    @property
    def needs_reference(self) -> bool:
        """Whether ``terms`` wants the reference policy's transition."""
        return False

    @abstractmethod
    def terms(self, new: Gaussian, actions: Actions, ref: Gaussian | None) -> LossTerms:
        """Per-action losses, [A]; the learner weighs and sums them."""


class Policy(Protocol):
    """The flow model that is trained: the only thing that knows its pipeline."""

    module: nn.Module
    """What is trained. The trainer wraps or shards it (:mod:`flowrl.parallel`); always call through it."""
    latent_shape: tuple[int, ...]
    evals_per_velocity: int
    """Transformer evaluations per velocity: 2 under classifier-free guidance, else 1."""

    def encode(self, prompts: Sequence[Prompt]) -> Cond:
        """Conditions of the prompts, [P] rows."""

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """v [B, ...] of x [B, ...] at sigma [B] (rows may differ), cond [B]; same dtype as x."""

    def decode(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1, float32. On a GPU other threads may call it while ``velocity`` runs."""

    def reference(self) -> AbstractContextManager[None]:
        """Inside, ``velocity`` is the untrained policy's: adapter off (LoRA) or a frozen copy (full)."""

    def save_pretrained(self, folder: Folder) -> None:
        """Write the trained weights in the form that the policy's own library loads."""


class Approximation(Protocol):
    """A policy's velocity at a lower cost, for continuation nodes alone. No gradients."""

    def refresh(self) -> None:
        """Follow the policy's present weights. The engine calls it once at the start of a rollout."""

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond, *, keep: bool) -> tuple[Tensor, Tensor | None]:
        """v [B, ...] with all blocks and, where ``keep``, the residual [B, ...] of the blocks that may be reused."""

    def velocity_by(self, x: Tensor, sigma: Tensor, cond: Cond, residual: Tensor) -> Tensor:
        """v [B, ...] with the residual of an earlier step in place of those blocks."""


@runtime_checkable
class Approximating(Protocol):
    """What a policy may offer beside :class:`Policy`; its config says so in ``approximations``."""

    def approximation(self, continuation: Continuation, precision: Literal["fp32", "bf16"]) -> Approximation:
        """``precision``: the run's, of all that is not quantised."""


class ModelShape(Protocol):
    """What a model costs, known from its configs alone."""

    @property
    def num_parameters(self) -> int:
        """Of the transformer."""

    @property
    def flops_per_forward(self) -> int:
        """FLOPs of one evaluation of the transformer for one sample."""

    @property
    def latent_shape(self) -> tuple[int, ...]: ...

    def embedding_bytes(self, bytes_per_number: int) -> int:
        """What one prompt's embedding takes."""


class PolicyConfig(Variant, package="flowrl.policies"):
    """Where a policy comes from and how it is trained. ``load`` imports the heavy libraries."""

    approximations: ClassVar[frozenset[Approximated]] = frozenset()
    """What of a continuation its policy can approximate (:class:`Approximating`)."""

    def check_continuation(self, continuation: Continuation) -> None:
        """Raise ValueError where its policy cannot approximate a continuation as that wants."""
        impossible = sorted(continuation.wanted - self.approximations)
        if impossible:
            can = f"by {listing(sorted(self.approximations))} alone" if self.approximations else "by nothing"
            remedy = " and ".join({"fp8": "precision: exact", "cache": "cache: null"}[name] for name in impossible)
            raise ValueError(
                f"model kind {self.kind} cannot approximate by {listing(impossible)}, but {can}; set {remedy}"
            )

    @property
    def evals_per_velocity(self) -> int:
        """Of the policy that it loads."""
        return 1

    @property
    def training_passes(self) -> float:
        """What a differentiated forward costs, in forwards: itself, the gradients of the activations, and those of the
        weights."""
        return 3

    def shape(self) -> ModelShape | None:
        """None where it is not known. Raises UserError where the model's configs are not here."""
        return None

    def num_trained(self) -> int:
        """Parameters that are trained, where that is the whole model; 0 where it is a small part, or not known."""
        return 0

    def check(self) -> None:
        """Raise UserError where ``load`` would for want of files, before anything else is fetched or loaded."""

    @abstractmethod
    def load(self, device: torch.device) -> Policy: ...


class Scorer(Protocol):
    """(image, prompt) -> number. The same object serves as training reward and as metric."""

    scope: Literal["image", "group"]
    """``image``: each image alone; ``group``: the images of one prompt whose actions are peers, together."""

    def score(self, images: Images, prompts: Sequence[Prompt]) -> Scores:
        """One prompt per image. An image that cannot be judged is not valid; the others' scores are as without it."""


class ScorerConfig(Variant, package="flowrl.rewards"):
    """Where a scorer comes from. ``load`` imports the heavy libraries."""

    def check(self) -> None:
        """Raise UserError where ``load`` would for want of files or an address, before anything heavy is loaded."""

    def identity(self) -> dict[str, Any]:
        """JSON values that say exactly what this is: its fields, and the sha256 of the weights that it loads."""
        values: dict[str, Any] = self.model_dump(mode="json")
        return values

    def keeping_answers(self, path: Folder) -> Self:
        """The same scorer, which keeps what its judge says in ``path`` unless its own ``log`` names another file.

        One that asks nobody, and so has no ``log``, stays as it is.
        """
        if "log" in type(self).model_fields and getattr(self, "log", None) is None:
            return self.model_copy(update={"log": path})
        return self

    @abstractmethod
    def load(self, device: torch.device) -> Scorer: ...


class Judge(Protocol):
    """A vision-language model that answers questions about pictures."""

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question, in order; what failed is an answer without a text, never an exception."""


class JudgeConfig(Variant, package="flowrl.judges"):
    """Where a judge is reached. ``load`` imports the heavy libraries."""

    def check(self) -> None:
        """Raise UserError where ``load`` would for want of files or an address, before anything heavy is loaded."""

    def identity(self) -> dict[str, Any]:
        """JSON values that say exactly what this is; never a key or a password."""
        values: dict[str, Any] = self.model_dump(mode="json")
        return values

    @abstractmethod
    def load(self, device: torch.device) -> Judge: ...
