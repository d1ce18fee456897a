"""What each strategy family promises. Members live one per file in the folder that the family names.

Axes: P prompts, E actions, L leaves, R rewards, B rows of a batch; ``...`` latent axes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path as Folder
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import Field
from torch import Tensor, nn

from flowrl.credit import Mixing, Peers, Rewards, Scope, Streams, relative_advantage
from flowrl.gaussian import Gaussian
from flowrl.plan import Plan
from flowrl.sigmas import Grid
from flowrl.types import Answer, Arm, Cond, Images, Path, Prompt, Question, Scores
from flowrl.variant import Variant

if TYPE_CHECKING:
    import torch

    from flowrl.surrogate import Actions, LossTerms


class Schedule(Variant, package="flowrl.schedules"):
    """Which grid steps are stochastic in an iteration. Pure: equal on every rank, resumable, nothing to update."""

    @abstractmethod
    def arms(self, *, num_steps: int, group: int, iteration: int, iterations: int, seed: int) -> tuple[Arm, ...]:
        """The arms of this iteration. Raises ValueError where the schedule does not fit the grid."""


class Continuation(Variant, package="flowrl.continuations"):
    """How a noisy state is denoised to the end: one path per stream (granularity)."""

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
    """What is trained. The trainer replaces it by ``accelerator.prepare(module)``; always call through it."""
    latent_shape: tuple[int, ...]
    evals_per_velocity: int
    """Transformer evaluations per velocity: 2 under classifier-free guidance, else 1."""

    def encode(self, prompts: Sequence[Prompt]) -> Cond:
        """Conditions of the prompts, [P] rows."""

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """v [B, ...] of x [B, ...] at sigma [B] (rows may differ), cond [B]; same dtype as x."""

    def decode(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1, float32."""

    def reference(self) -> AbstractContextManager[None]:
        """Inside, ``velocity`` is the untrained policy's: adapter off (LoRA) or a frozen copy (full)."""

    def save_pretrained(self, folder: Folder) -> None:
        """Write the trained weights in the form that the policy's own library loads."""


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

    @property
    def evals_per_velocity(self) -> int:
        """Of the policy that it loads."""
        return 1

    @property
    def training_passes(self) -> int:
        """What a differentiated forward costs, in forwards: itself, the gradients of the activations, and those of the
        weights."""
        return 3

    def shape(self) -> ModelShape | None:
        """None where it is not known. Raises UserError where the model's configs are not here."""
        return None

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
