"""What a training forward keeps for its backward pass, and how much of it is better computed twice.

Axes of the arithmetic: blocks in the order in which they run; bytes; rows of a microbatch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, StrictBool
from torch import Tensor, nn

from flowrl.policies.blocks import BlockCall, Blocks

Checkpointing = StrictBool | Literal["auto"] | Annotated[float, Field(ge=0, le=1)]
"""Which blocks are recomputed in the backward pass: all, none, a share of them (the first), or what does not fit."""
RESERVE = 0.05
"""Of the device's memory, left free: fragments, kernels' workspaces, communication."""
BYTES_TRAINED = 16
"""Of a parameter under AdamW in float32: itself, its gradient, two moments."""
LARGE = 0.5
"""Of a GPU's memory: a model that takes more by these bytes alone leaves too little for activations."""


def share_of(setting: Checkpointing) -> float:
    """The share of blocks that are recomputed; auto counts as all, its upper bound, until memory was measured."""
    return 1.0 if setting == "auto" else float(setting)


@dataclass(frozen=True)
class BlockBytes:
    """Of one block: what it saves for its backward pass, a part per row and one that is there once (weights that
    autocast has converted), and the ``inputs`` per row, which are all that is kept of a block that is recomputed."""

    saved: int
    inputs: int
    once: int = 0


@dataclass(frozen=True)
class TrainingPlan:
    """Rows of a training forward, how many of the first blocks are recomputed, and the bytes that this needs."""

    microbatch: int
    checkpointed: int
    needed: int
    fits: bool = True


def needed_bytes(blocks: Sequence[BlockBytes], checkpointed: int, rows: int) -> int:
    """The most that a training forward and its backward pass hold of activations.

    The inputs of the recomputed blocks lie there throughout. The backward pass comes to them last, when what the others
    saved is gone, and holds what one of them saves at a time. Gradients of activations are allowed for by what the
    largest block saves.

    >>> needed_bytes([BlockBytes(saved=10, inputs=1)] * 3, checkpointed=0, rows=2)  # 3 x 10 and 10, two rows of each
    80
    >>> needed_bytes([BlockBytes(saved=10, inputs=1)] * 3, checkpointed=3, rows=2)  # 3 x 1, one of 10, and 10
    46
    """
    first, rest = blocks[:checkpointed], blocks[checkpointed:]
    inputs = rows * sum(block.inputs for block in first)
    kept = sum(rows * block.saved + block.once for block in rest)
    recomputed = max((rows * block.saved + block.once for block in first), default=0)
    return inputs + max(kept, recomputed) + rows * max((block.saved for block in blocks), default=0)


def plan_training(
    blocks: Sequence[BlockBytes],
    *,
    budget: int,
    num_rows: int,
    microbatch: int | None,
    checkpointed: int | None,
    passes: float = 3.0,
) -> TrainingPlan:
    """The least work that fits into ``budget`` bytes; None: to be chosen.

    Work is counted in forwards of a row: ``num_rows`` rows in microbatches of equal size, the last filled up, each row
    ``passes`` forwards (a backward counts as two) and one more for the share of blocks that are recomputed. Of equal
    work the fewest batches. Where nothing fits, the smallest microbatch with everything recomputed is returned, with
    ``fits`` False.

    >>> blocks = [BlockBytes(saved=10, inputs=1)] * 4
    >>> plan_training(blocks, budget=100, num_rows=8, microbatch=None, checkpointed=None)
    TrainingPlan(microbatch=2, checkpointed=0, needed=100, fits=True)
    >>> plan_training(blocks, budget=100, num_rows=8, microbatch=4, checkpointed=None)
    TrainingPlan(microbatch=4, checkpointed=3, needed=92, fits=True)
    """
    batches = range(1, num_rows + 1)
    sizes = [microbatch] if microbatch is not None else sorted({math.ceil(num_rows / n) for n in batches})
    counts = range(len(blocks) + 1) if checkpointed is None else [checkpointed]
    found: list[tuple[float, int, TrainingPlan]] = []
    for size in sizes:
        for count in counts:
            needed = needed_bytes(blocks, count, size)
            if needed <= budget:
                num_batches = math.ceil(num_rows / size)
                work = num_batches * size * (passes + count / max(len(blocks), 1))
                found.append((work, num_batches, TrainingPlan(size, count, needed)))
                break  # more recomputation is more work
    if found:
        return min(found, key=lambda option: option[:2])[2]
    return TrainingPlan(sizes[0], counts[-1], needed_bytes(blocks, counts[-1], sizes[0]), fits=False)


# ---- measured


def measure(blocks: Blocks, call: Callable[[], object], rows: int) -> list[BlockBytes]:
    """What each block saves, by running one of each kind as it is run in training.

    ``call`` evaluates the policy on ``rows`` rows under the precision of the training; it is called once, with
    gradients, everything recomputed and nothing compiled, for what the blocks are given. Where blocks are compiled one
    of each kind then is, since it saves less than eager code. Blocks are of one kind where class, parameters and
    adapters are alike.
    """
    of_kind = {_kind(block): block for block in blocks.calls}  # the last: what the first is given may need no gradient
    seen: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    autocast: dict[str, Any] = {}
    before = [block.checkpointed for block in blocks.calls]
    blocks.checkpoint(len(blocks.calls))
    for kind, block in of_kind.items():
        block.spy = _noting(seen, kind, autocast)
    try:
        with torch.enable_grad(), blocks.uncompiled():
            call()
        for block in of_kind.values():
            block.spy = None
            block.checkpointed = False
        found = {kind: _saved(of_kind[kind], *seen[kind], rows, autocast) for kind in seen}
    finally:
        for block, was in zip(blocks.calls, before, strict=True):
            block.spy, block.checkpointed = None, was
    return [found[_kind(block)] for block in blocks.calls]


def _noting(seen: dict[str, Any], kind: str, autocast: dict[str, Any]) -> Callable[..., None]:
    def note(*args: Any, **kwargs: Any) -> None:
        device = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)).device.type
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        cached = torch.is_autocast_cache_enabled()  # compiled code is for one value of it, too
        autocast.update(device_type=device, enabled=enabled, dtype=dtype, cache_enabled=cached)
        seen[kind] = tuple(map(_leaf, args)), {name: _leaf(value) for name, value in kwargs.items()}

    return note


def _leaf(value: Any) -> Any:
    """The same without its history, needing a gradient if it did."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    return tuple(map(_leaf, value)) if isinstance(value, tuple) else value


def _kind(call: BlockCall) -> str:
    parameters = ((name, tuple(p.shape), p.requires_grad) for name, p in call.block.named_parameters())
    return f"{call.kind} {list(parameters)}"


def _saved(
    block: BlockCall, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int, autocast: dict[str, Any]
) -> BlockBytes:
    parameters = list(block.block.parameters())
    converted = autocast["dtype"] if autocast["enabled"] else None
    of_weights = {shape for p in parameters if p.dtype != converted for shape in (p.shape, p.shape[::-1])}
    held = {_local(p).untyped_storage().data_ptr() for p in parameters}
    tensors: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in held:
            tensors.setdefault(pointer, tensor)
        return tensor

    with (
        torch.enable_grad(),
        torch.autocast(**autocast),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        out = block.block(*args, **kwargs)
    # Storages are counted after the call: whole weights that FSDP2 gathered for it are freed by then.
    once = sum(_size(t) for t in tensors.values() if t.dtype == converted and t.shape in of_weights)
    saved = sum(_size(t) for t in tensors.values()) - once
    inputs = _distinct(_tensors((*args, *kwargs.values())))
    del out
    return BlockBytes(math.ceil(saved / rows), math.ceil(sum(map(_size, inputs)) / rows), once)


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple):
            found += _tensors(value)
    return found


def _distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}.values())


def _size(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


# ---- what there is


def free_bytes(device: torch.device, parameters: Iterable[nn.Parameter], has_state: bool) -> int:
    """Bytes for activations: what is free and what PyTorch holds unused, less the reserve, the gradients that are not
    there yet and, unless the optimiser ``has_state``, its two moments."""
    pending = sum(_local(p).numel() * p.element_size() * ((p.grad is None) + 2 * (not has_state)) for p in parameters)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        page = os.sysconf("SC_PAGE_SIZE")
        free, total = page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")
    return int(free - RESERVE * total - pending)


def _local(parameter: nn.Parameter) -> Tensor:
    """This rank's part of a sharded parameter, or the whole of another."""
    local: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local


def is_large(num_trained: int, memory: float) -> bool:
    """Whether training so many parameters needs sharding on GPUs of so many bytes.

    >>> is_large(11_900_000_000, 141e9), is_large(2_240_000_000, 80e9)
    (True, False)
    """
    return BYTES_TRAINED * num_trained > LARGE * memory
