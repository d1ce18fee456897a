"""How the repeated blocks of a diffusers transformer are called: compiled, checkpointed, with a chosen attention.

Everything stands in place of a block's ``forward``, so what wraps modules (hooks of FSDP2, DDP, accelerate's autocast)
stays outside of it, and a block that is recomputed in the backward pass runs as it did in the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Compile = Literal["auto", "none", "blocks"]
"""auto: blocks on a GPU, none elsewhere."""
BACKEND = "inductor"
"""Of torch.compile."""
MAX_GRAPHS = 64
"""Of one kind of block. Needed are, for each batch size, one without gradients, one with the adapter off and one with
gradients, each up to twice: the first block of a kind is given tensors of another layout than those that follow it."""


def is_compiled(setting: Compile, device: torch.device) -> bool:
    """Whether blocks are compiled on this device."""
    return setting == "blocks" or (setting == "auto" and device.type == "cuda")


class Blocks:
    """The repeated blocks of a transformer, by diffusers' own lists of their classes, in the order in which they run.

    ``attention`` gives the context that a block's forward runs in, asked at each call. Made once for a transformer,
    after adapters were added and before anything wraps it. PyTorch traces a block anew for each batch size, with and
    without gradients, and with the adapter off; blocks of one kind share what was compiled.
    """

    def __init__(
        self,
        transformer: nn.Module,
        *,
        compiled: bool,
        attention: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        kinds: Sequence[str] = transformer._repeated_blocks or transformer._no_split_modules  # type: ignore[assignment]
        found = [module for module in transformer.modules() if type(module).__name__ in kinds]
        self.compiled = compiled
        self.calls = [BlockCall(block, attention, compiled) for block in found]

    def checkpoint(self, count: int) -> None:
        """Recompute the first ``count`` blocks in the backward pass instead of keeping what they save for it."""
        for i, call in enumerate(self.calls):
            call.checkpointed = i < count

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Inside, blocks run as diffusers wrote them: not compiled, not checkpointed, PyTorch's choice of attention."""
        for call in self.calls:
            call.is_plain = True
        try:
            yield
        finally:
            for call in self.calls:
                call.is_plain = False

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Inside, blocks run as they would, but none is compiled."""
        compiled = [call.compiled for call in self.calls]
        for call in self.calls:
            call.compiled = None
        try:
            yield
        finally:
            for call, was in zip(self.calls, compiled, strict=True):
                call.compiled = was


class BlockCall:
    """In place of one block's ``forward``."""

    def __init__(self, block: nn.Module, attention: Callable[[], AbstractContextManager[None]], compiled: bool) -> None:
        self.kind = type(block).__name__
        self.block = block
        self.forward = block.forward
        self.compiled: Callable[..., Any] | None = None
        if compiled:
            self.compiled = compiled_for_each_shape(block.forward)
        self.attention = attention
        self.checkpointed = False
        self.is_plain = False
        self.spy: Callable[..., None] | None = None
        """Is shown the arguments of each call."""
        block.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.spy is not None:
            self.spy(*args, **kwargs)
        if self.is_plain:
            return self.forward(*args, **kwargs)
        if self.checkpointed and torch.is_grad_enabled():  # there is no dropout, so no random state to keep
            return checkpoint(self.run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
        return self.run(*args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The call itself, never checkpointed."""
        with self.attention():
            return (self.forward if self.compiled is None else self.compiled)(*args, **kwargs)


def compiled_for_each_shape(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled as a whole, anew for each shape that it is called with."""
    compiled = torch.compile(function, backend=BACKEND, fullgraph=True, dynamic=False)

    def call(*args: Any, **kwargs: Any) -> Any:
        _configure_dynamo()
        return compiled(*args, **kwargs)

    return call


def _configure_dynamo() -> None:
    """Before every call: from torch 2.12 threads have their own configuration, as autograd's, which recomputes."""
    config = torch._dynamo.config
    if config.recompile_limit < MAX_GRAPHS:
        config.recompile_limit = MAX_GRAPHS  # with fullgraph its excess is an error
    if config.error_on_nested_fx_trace:  # torch 2.11 means other threads too: what is called meanwhile runs uncompiled
        config.error_on_nested_fx_trace = False
    if config.optimize_ddp:  # would cut a block's graph at DDP's buckets; gradients overlap between blocks anyway
        config.optimize_ddp = False
