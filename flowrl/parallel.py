"""How the processes of a run share the model: each holds all of it (DDP), or a part of every weight (FSDP2).

The trainer works through a layout, :class:`Replicated` or :class:`Sharded`, and knows no other difference. Which one is
``run.parallel``: ``ddp``, ``fsdp``, or ``auto``, what accelerate's configuration says, and without one FSDP where the
model is too large for a GPU (:func:`flowrl.policies.memory.is_large`), else DDP. One process alone always holds the
whole model.

Sharding is by torch's ``fully_shard``, with accelerate's FullyShardedDataParallelPlugin as the source of the settings:
accelerate shards on GPUs only, so that its own preparation could not be tested without some, and it would reduce
gradients in bfloat16 and round the timesteps and rotary angles that go into the model.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Protocol, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import Tensor, nn

from flowrl.agreement import shared_store
from flowrl.copies import Copy
from flowrl.errors import UserError, listing
from flowrl.policies.memory import is_large
from flowrl.protocols import Policy
from flowrl.shards import is_cut
from flowrl.watch import Watch

Parallel = Literal["auto", "ddp", "fsdp"]
PATIENCE = timedelta(hours=2)
"""Of a collective: how long processes wait for one that lives but does not come (it writes weights to a slow disk).
One that died is found at once, by :mod:`flowrl.watch`."""
OTHER_ENGINES = ("DEEPSPEED", "MEGATRON_LM")
OTHER_AXES = ("TP", "CP", "SP")


@dataclass(frozen=True)
class Sharding:
    """How weights are sharded, as accelerate is configured to."""

    reshard_after_forward: bool = True
    """Whether a block's weights are freed between its training forward and its backward."""
    blocks: tuple[str, ...] = ()
    """Classes of what is gathered at a time; none: those that the model names."""
    replicas: int = 1
    """Groups of processes that each hold all weights, sharded inside the group: one a machine keeps the gathering of
    weights inside machines."""


class Layout(Protocol):
    """Where the weights are, and what that means for what a process does with them."""

    def gathered(self) -> AbstractContextManager[None]:
        """Inside, forwards without gradients need no other process: ranks may run different numbers of them."""

    def no_sync(self) -> AbstractContextManager[None]:
        """Around a backward that others of the same update follow: what it need not reduce, it does not."""

    def reference(self) -> AbstractContextManager[None]:
        """Inside, the policy is the untrained one."""

    def whole(self) -> AbstractContextManager[None]:
        """Inside, the main process finds whole weights in the module's ``state_dict()``, of a LoRA run its factors.
        All processes enter it."""


def join() -> Watch:
    """Join the other processes of the run, of whom the watch then tells."""
    _check_environment()
    with _unsharded():
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    store = shared_store("watch") if state.num_processes > 1 else None
    return Watch(state.process_index, state.num_processes, store, os.environ.get("MASTER_ADDR", "localhost"))


def leave(code: int = 0) -> None:
    """The last line of a program whose run has gone well. One of several processes ends here, with exit code ``code``.

    NCCL complains of processes that leave without a word. Gloo's threads may outlive what the interpreter's own end
    destroys, which now and then aborts a process that has done all its work ("terminate called without an active
    exception"), so that end is left out.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start(
    parallel: Parallel, precision: Literal["fp32", "bf16"], num_trained: int = 0
) -> tuple[Accelerator, Sharding | None]:
    """Join the other processes. Returns accelerate's part in it and, where the model is to be sharded, how.

    ``num_trained``: parameters of the model, where all of them are trained.
    """
    memory = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else math.inf
    settings = sharding(parallel, large=is_large(num_trained, memory))
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # else transformers loads scorers in one process only
    handlers = [
        DistributedDataParallelKwargs(broadcast_buffers=False),  # ranks' rollouts differ in their forwards
        InitProcessGroupKwargs(timeout=PATIENCE),
    ]
    AcceleratorState._reset_state()  # else a process is held to the precision of its first trainer
    with _unsharded():
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="bf16" if precision == "bf16" else "no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # the learner accumulates
            kwargs_handlers=handlers,
        )
    if settings is None or accelerator.num_processes == 1:
        return accelerator, None
    if accelerator.num_processes % settings.replicas:
        raise UserError(
            f"accelerate's configuration: parallelism_config_dp_replicate_size is {settings.replicas}, which does not "
            f"divide {accelerator.num_processes} processes"
        )
    return accelerator, settings


def lay_out(policy: Policy, accelerator: Accelerator, settings: Sharding | None, *, needs_reference: bool) -> Layout:
    """Prepare the policy's module for training on all processes; its parameters are other objects afterwards."""
    if settings is None:
        return Replicated(policy, accelerator)
    return Sharded(policy, accelerator, settings, needs_reference=needs_reference)


def exchange(value: Any) -> list[Any]:
    """What every process has handed in, by rank: small objects."""
    if not dist.is_initialized():
        return [value]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def scalar(value: Tensor) -> float:
    """A number, also of a DTensor of which each process knows a part."""
    return float(value.full_tensor() if is_cut(value) else value)


class Replicated:
    """Every process holds all weights; DDP averages the gradients."""

    def __init__(self, policy: Policy, accelerator: Accelerator) -> None:
        self.policy, self.accelerator = policy, accelerator
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers, whose successor torch 2.11 lacks
            policy.module = accelerator.prepare_model(policy.module)

    def gathered(self) -> AbstractContextManager[None]:
        return nullcontext()

    def no_sync(self) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = self.accelerator.no_sync(self.policy.module)
        return context

    def reference(self) -> AbstractContextManager[None]:
        return self.policy.reference()

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()


class Sharded:
    """Every process holds its rows of every weight, in float32 where it is trained; blocks are gathered as they run.

    Forwards compute in the run's precision: under bf16 the gathered weights are bfloat16, so that autocast, which
    keeps its own list of what stays float32, casts activations alone. Gradients are reduced in float32 after every
    microbatch, since to hold them back would take whole float32 gradients on every process.
    """

    def __init__(
        self,
        policy: Policy,
        accelerator: Accelerator,
        settings: Sharding,
        *,
        needs_reference: bool,
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        # Diffusers' blocks return slices. Nothing is added to one in place: gradients would differ, which is tested.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
        self.policy, self.accelerator = policy, accelerator
        self.module = cast(Any, policy.module)
        self._class = type(self.module)
        is_bf16 = accelerator.mixed_precision == "bf16"
        if is_bf16:
            self.module.forward = _under(accelerator.autocast, self.module.forward)
        precision = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if is_bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        self.settings = settings
        axes = {"replicas": settings.replicas, "shards": accelerator.num_processes // settings.replicas}
        if settings.replicas == 1:
            del axes["replicas"]
        mesh = init_device_mesh(accelerator.device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))
        for block in _blocks(self.module, settings):
            fully_shard(block, mesh=mesh, mp_policy=precision)
        fully_shard(self.module, mesh=mesh, mp_policy=precision)
        self._parts: list[Any] = [module for module in self.module.modules() if isinstance(module, FSDPModule)]
        self.module.set_reshard_after_forward(settings.reshard_after_forward)
        trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self._untrained = Copy(trained) if needs_reference else None
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()  # of the whole weights

    @contextmanager
    def gathered(self) -> Iterator[None]:
        self.module.set_reshard_after_forward(False)
        for part in self._parts:
            part.unshard()
        try:
            yield
        finally:
            self._reshard()
            self.module.set_reshard_after_forward(self.settings.reshard_after_forward)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Replicas average what they have reduced each for itself after the last microbatch."""
        self.module.set_requires_all_reduce(False)
        try:
            yield
        finally:
            self.module.set_requires_all_reduce(True)

    @contextmanager
    def reference(self) -> Iterator[None]:
        if self._untrained is None:
            raise ValueError("no copy of the untrained weights was kept")
        self._reshard()
        with self._untrained.swapped_in():
            try:
                yield
            finally:
                self._reshard()

    @contextmanager
    def whole(self) -> Iterator[None]:
        full: dict[str, Tensor] = {}
        is_lora = bool(getattr(self.module, "peft_config", None))  # whose base is not saved
        frozen = {name for name, p in self.module.named_parameters() if is_lora and not p.requires_grad}
        for name, value in self.module.state_dict().items():
            if name in frozen:
                continue
            tensor = value.full_tensor() if is_cut(value) else value
            if self.accelerator.is_main_process:
                full[name] = tensor.cpu()
        hook = self.module.register_state_dict_post_hook(lambda module, state, prefix, _: state.update(full))
        sharding_class, self.module.__class__ = type(self.module), self._class  # by whose name a config is saved
        try:
            yield
        finally:
            self.module.__class__ = sharding_class
            hook.remove()

    def _reshard(self) -> None:
        for part in self._parts:
            part.reshard()


def _under(context: Any, forward: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        with context():
            return forward(*args, **kwargs)

    return call


def _blocks(module: nn.Module, settings: Sharding) -> list[nn.Module]:
    """What is gathered and freed at a time: the transformer's blocks, by the classes that the settings or it name."""
    names = settings.blocks or getattr(module, "_no_split_modules", None) or ()
    found = [child for child in module.modules() if type(child).__name__ in names]
    missing = set(settings.blocks) - {type(child).__name__ for child in found}
    if missing:
        known = sorted({type(child).__name__ for child in module.modules()})
        raise UserError(
            f"accelerate's configuration: fsdp_transformer_layer_cls_to_wrap: no layer of the model is a "
            f"{listing(missing)}; leave it out for the model's own blocks (its layers: {listing(known)})"
        )
    return [child for child in found if child is not module]


def _check_environment() -> None:
    for engine in OTHER_ENGINES:
        if _is_on(f"ACCELERATE_USE_{engine}"):
            raise UserError(f"accelerate's configuration asks for {engine}; flowrl trains by DDP or FSDP2")
    local, here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if 0 < here < local:
        raise UserError(f"{local} processes on this machine, which has {here} GPUs; every process needs one of its own")


def sharding(parallel: Parallel, *, large: bool = False) -> Sharding | None:
    """How to shard, None for DDP; a ``large`` model is, unless something says otherwise. Raises UserError for what is
    contradictory or not supported."""
    is_configured = _is_on("ACCELERATE_USE_FSDP")
    if is_configured and parallel == "ddp":
        raise UserError("run.parallel is ddp, but accelerate's configuration asks for FSDP; leave one of the two out")
    if not is_configured:
        return Sharding() if parallel == "fsdp" or (parallel == "auto" and large) else None
    plugin = FullyShardedDataParallelPlugin()  # reads the environment that accelerate launch has set
    is_by_size = os.environ.get("FSDP_AUTO_WRAP_POLICY", "").upper() == "SIZE_BASED_WRAP"
    has_axes = _is_on("ACCELERATE_USE_PARALLELISM_CONFIG")
    axes = {axis: _size(axis) if has_axes else 1 for axis in ("DP_REPLICATE", *OTHER_AXES)}
    wrong = {
        "fsdp_version: 1": (plugin.fsdp_version != 2, "fsdp_version: 2"),
        "fsdp_auto_wrap_policy: SIZE_BASED_WRAP": (is_by_size, "TRANSFORMER_BASED_WRAP"),
        "fsdp_offload_params: true": (_is_on("FSDP_OFFLOAD_PARAMS"), "false, and use more GPUs where memory is short"),
        "fsdp_activation_checkpointing: true": (
            bool(plugin.activation_checkpointing),
            "false, and model.gradient_checkpointing: true in the recipe",
        ),
    } | {f"parallelism_config_{axis.lower()}_size": (axes[axis] > 1, "1") for axis in OTHER_AXES}
    problems = [f"{setting} is not supported; set {instead}" for setting, (is_so, instead) in wrong.items() if is_so]
    if problems:
        raise UserError("accelerate's configuration: " + "; ".join(problems))
    blocks = tuple(plugin.transformer_cls_names_to_wrap or ())
    return Sharding(plugin.reshard_after_forward is not False, blocks, axes["DP_REPLICATE"])


def _size(axis: str) -> int:
    return int(os.environ.get(f"PARALLELISM_CONFIG_{axis}_SIZE", "1"))


@contextmanager
def _unsharded() -> Iterator[None]:
    """Inside, accelerate does not know that it is to shard: it would refuse to go on without its own preparation."""
    with ExitStack() as stack:
        for variable in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_PARALLELISM_CONFIG"):
            stack.enter_context(_changed(variable, "false"))
        yield


@contextmanager
def _changed(variable: str, value: str) -> Iterator[None]:
    """Inside, an environment variable that is set has another value."""
    held = os.environ.get(variable)
    if held is not None:
        os.environ[variable] = value
    try:
        yield
    finally:
        if held is not None:
            os.environ[variable] = held


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes")
