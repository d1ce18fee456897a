"""The records that cross module borders. Axes: P prompts, L leaves, R rewards, B rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, Union

from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

Solver = Literal["euler", "dpmpp_2m"]

Images: TypeAlias = Union[Tensor, Sequence["Image"]]  # noqa: UP007 - Image is known to type checkers alone
"""A batch [B, 3, H, W] in 0..1 as a policy decodes it, or pictures as they lie in files: any mode, any size."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, its position in its source (which seeds its images), and what its source says about it.

    >>> Prompt("a red circle", index=3).text
    'a red circle'
    """

    text: str
    index: int
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Scores(NamedTuple):
    """What a scorer says of B images: ``values`` [B] float, ``valid`` [B] bool (False: no answer, never a silent 0),
    ``parts`` name -> [B] for what the value is made of."""

    values: Tensor
    valid: Tensor
    parts: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Question:
    """A picture and what a judge is asked about it: one user message, the picture before the text unless told."""

    image: Image
    text: str
    text_first: bool = False


@dataclass(frozen=True)
class Answer:
    """What a judge said, verbatim, or None with the ``error`` that kept it from answering."""

    text: str | None
    error: str | None = None
    body: str | None = field(default=None, compare=False)
    """What came instead of an answer, whole: ``error`` quotes its beginning. For logs."""


class Arm(NamedTuple):
    """One way to inject noise along a denoising path.

    ``fanout[k] = b`` makes grid step k stochastic, with b children for every node that reaches it; every other step
    is deterministic. ``roots`` is the number of independent initial noises. An empty fanout is legal (a pure ODE).

    >>> Arm({0: 12})            # G2RPO: twelve siblings after step 0
    Arm(fanout={0: 12}, roots=1)
    """

    fanout: Mapping[int, int]
    roots: int = 1


class Path(NamedTuple):
    """How a continuation denoises a state: the noise levels it visits, its own level first and 0 last.

    ``history`` (dpmpp_2m only): ``"decision"`` gives the first step the x0 prediction of the last decision above the
    state as its second-order history; ``"none"`` makes that step first order.
    """

    sigmas: tuple[float, ...]
    solver: Solver = "euler"
    history: Literal["decision", "none"] = "none"


@dataclass(frozen=True)
class Cond:
    """What a policy is conditioned on: tensors by name, each with the prompt axis first.

    >>> import torch
    >>> Cond({"text": torch.zeros(4, 8)})[torch.tensor([0, 0, 3])].tensors["text"].shape
    torch.Size([3, 8])
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, rows: Tensor) -> Cond:
        return Cond({name: tensor[rows.to(tensor.device)] for name, tensor in self.tensors.items()})
