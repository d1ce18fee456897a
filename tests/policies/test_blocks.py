"""Blocks that are compiled or recomputed give what plain ones give, in a bounded number of graphs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from policies.kinds import CPU, Kind
from torch._dynamo.utils import counters

from flowrl.continuations.strided import Strided
from flowrl.policies import blocks as blocks_module
from flowrl.policies.blocks import is_compiled
from flowrl.policies.diffusers_policy import DiffusersPolicy
from flowrl.types import Cond, Prompt

LORA = {"rank": 4, "alpha": 6.0, "targets": ["attn.to_q", "attn.to_out.0"]}
"""Few targets: every layer costs time to trace."""
KINDS = 3
"""Graphs of a tiny FLUX at one size: its double block, and its single block, whose first is given another layout."""


@pytest.fixture(autouse=True)
def _traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Traced and guarded as for inductor, then run by PyTorch's own operators: what takes inductor minutes is left."""
    monkeypatch.setattr(blocks_module, "BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def flux(folders: dict[str, Path], cache: str) -> Kind:
    return Kind("flux", folders["flux"], cache)


def load(kind: Kind, **fields: Any) -> DiffusersPolicy:
    torch.manual_seed(0)
    policy = kind.load(**fields)
    train_randomly(policy, 1)
    return policy


def train_randomly(policy: DiffusersPolicy, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def inputs(policy: DiffusersPolicy, rows: int) -> tuple[torch.Tensor, torch.Tensor, Cond]:
    x = torch.randn(rows, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    return x, torch.linspace(0.9, 0.2, rows), policy.encode([Prompt(f"cat {i}", i) for i in range(rows)])


def gradients(policy: DiffusersPolicy, *at: Any, autocast: bool = False) -> list[torch.Tensor]:
    """The velocity and its gradients."""
    policy.module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        v = policy.velocity(*at)
    v.square().mean().backward()
    return [v.detach(), *(p.grad for p in policy.module.parameters() if p.grad is not None)]


def num_graphs() -> int:
    return counters["stats"]["unique_graphs"]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    assert len(found) == len(expected) > 1
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= tolerance * b.norm() + 1e-12


@pytest.mark.parametrize(
    ("backend", "share", "lora"),
    [
        ("aot_eager", 0.5, LORA),  # with its own partition into forward and backward
        pytest.param("eager", True, None, marks=pytest.mark.slow),
        pytest.param("aot_eager", 0.5, None, marks=pytest.mark.slow),
        pytest.param("aot_eager", False, LORA, marks=pytest.mark.slow),
        pytest.param("inductor", 0.5, LORA, marks=pytest.mark.slow),
    ],
)
def test_compiled_equals_eager(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, backend: str, share: Any, lora: Any
) -> None:
    monkeypatch.setattr(blocks_module, "BACKEND", backend)
    plain = load(kind, lora=lora)
    fast = load(kind, lora=lora, compile="blocks", gradient_checkpointing=share)
    at = inputs(plain, 3)
    with torch.no_grad():
        torch.testing.assert_close(fast.velocity(*at), plain.velocity(*at), rtol=1e-5, atol=1e-6)
    assert_close(gradients(fast, *at), gradients(plain, *at))


@pytest.mark.slow
def test_fp32_factors_under_bf16_autocast(flux: Kind) -> None:
    fields = {"lora": LORA, "dtype": "bf16"}
    plain, fast = load(flux, **fields), load(flux, compile="blocks", **fields)
    at = inputs(plain, 2)
    assert_close(gradients(fast, *at, autocast=True), gradients(plain, *at, autocast=True), tolerance=0.05)


@pytest.mark.parametrize("lora", [pytest.param(None, marks=pytest.mark.slow), LORA])
def test_the_reference_is_never_stale(flux: Kind, lora: Any) -> None:
    """The adapter goes off and on, or weights are swapped, while training moves them: results follow at once."""
    plain, fast = load(flux, lora=lora), load(flux, lora=lora, compile="blocks")
    at = inputs(plain, 2)
    graphs = []
    for step in range(3):
        for policy in (plain, fast):
            train_randomly(policy, 2 + step)
        found, expected = [], []
        for policy, into in ((fast, found), (plain, expected)):
            with torch.no_grad(), policy.reference():
                into.append(policy.velocity(*at))
            with torch.no_grad():
                into.append(policy.velocity(*at))
            into += gradients(policy, *at)
        assert_close(found, expected)
        assert not torch.equal(found[0], found[1])
        graphs.append(num_graphs())
    assert graphs[0] == graphs[-1] <= 3 * KINDS  # adapter off, without gradients, with


@pytest.mark.slow
def test_a_run_of_partial_batches_has_few_graphs(flux: Kind) -> None:
    plain, fast = load(flux, lora=LORA), load(flux, lora=LORA, compile="blocks")
    fast.speed.expect(rollout=[1, 4], training=[2])
    for rows in (1, 2, 3, 4, 7, 2, 3):
        at = inputs(plain, rows)
        with torch.no_grad():
            torch.testing.assert_close(fast.velocity(*at), plain.velocity(*at), rtol=1e-5, atol=1e-6)
    for rows in (2, 1, 2):
        at = inputs(plain, rows)
        assert_close(gradients(fast, *at), gradients(plain, *at))
    assert num_graphs() <= 3 * KINDS  # two sizes without gradients, one with
    assert fast.speed.padding.num_padded == (2 + 1 + 1 + 2 + 1) + 1
    assert plain.speed.padding.num_padded == 0


def test_under_ddp_blocks_stay_whole(flux: Kind, tmp_path: Path) -> None:
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    plain = load(flux, lora=LORA)
    fast = load(flux, lora=LORA, compile="blocks", gradient_checkpointing=0.5)
    at = inputs(plain, 2)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        fast.module = DistributedDataParallel(fast.module, bucket_cap_mb=1)
        for _ in range(2):
            assert_close(gradients(fast, *at), gradients(plain, *at))
        assert num_graphs() == KINDS
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("autocast", [False, True])
def test_measuring_compiles_what_training_then_uses(flux: Kind, autocast: bool) -> None:
    """A graph of each class of block; the first of a kind, with tensors of another layout, comes with training."""
    policy = load(flux, lora=LORA, compile="blocks")
    x, sigma, cond = inputs(policy, 2)

    def velocity(*at: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            return policy.velocity(*at)

    policy.speed.measure(velocity, x, sigma, cond)
    assert num_graphs() == 2
    gradients(policy, x, sigma, cond, autocast=autocast)
    assert num_graphs() <= KINDS + 1


def test_a_thread_of_its_own_compiles_under_the_same_configuration(flux: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU what is recomputed is compiled in autograd's thread; from torch 2.12 each has its own configuration."""
    seen: list[tuple[int, int, bool]] = []

    def backend(graph: Any, _: Any) -> Any:
        config = torch._dynamo.config
        seen.append((threading.get_ident(), config.recompile_limit, config.optimize_ddp))
        return graph.forward

    monkeypatch.setattr(blocks_module, "BACKEND", backend)
    policy = load(flux, lora=LORA, compile="blocks")
    thread = threading.Thread(target=policy.velocity, args=inputs(policy, 1))
    thread.start()
    thread.join()
    assert seen
    assert {found[1:] for found in seen} == {(blocks_module.MAX_GRAPHS, False)}
    assert threading.get_ident() not in {found[0] for found in seen}


def test_saved_weights_do_not_know_of_it(flux: Kind, tmp_path: Path) -> None:
    from diffusers import FluxTransformer2DModel

    policy = load(flux, compile="blocks", gradient_checkpointing=True)
    policy.save_pretrained(tmp_path)
    loaded = FluxTransformer2DModel.from_pretrained(tmp_path / "transformer").state_dict()
    assert loaded.keys() == policy.module.state_dict().keys()
    assert all(torch.equal(value, policy.module.state_dict()[name]) for name, value in loaded.items())


def test_auto_compiles_on_gpus_alone() -> None:
    assert not is_compiled("auto", CPU)
    assert is_compiled("auto", torch.device("cuda"))
    assert is_compiled("blocks", CPU)
    assert not is_compiled("none", torch.device("cuda"))


@pytest.mark.slow
@torch.no_grad()
def test_cheaper_continuations_are_compiled_and_padded_too(flux: Kind) -> None:
    """In 8 bits and with blocks reused; weights that move are followed without a new graph."""
    continuation = Strided.model_validate({"precision": "fp8", "cache": {}})
    plain, fast = load(flux, lora=LORA), load(flux, lora=LORA, compile="blocks")
    fast.speed.expect(rollout=[4])
    cheap = [policy.approximation(continuation, "fp32") for policy in (plain, fast)]
    at = inputs(plain, 3)
    graphs = []
    for step in range(2):
        results = []
        for policy, approximation in zip((plain, fast), cheap, strict=True):
            train_randomly(policy, 2 + step)
            approximation.refresh()
            v, residual = approximation.velocity(*at, keep=True)
            results.append([v, residual, approximation.velocity_by(*at, residual)])
        # Rows of another batch differ by rounding in fp32, after which a number may round to its other neighbour in 8
        # bits, 6 % away: few do.
        assert_close(results[1], results[0], tolerance=2e-3)
        graphs.append(num_graphs())
    assert 0 < graphs[0] == graphs[1] <= 2 * KINDS
    assert fast.speed.padding.num_padded == 4
    assert plain.speed.padding.num_padded == 0


def test_whole_chunks_of_images_are_decoded_by_compiled_code(flux: Kind) -> None:
    plain, fast = load(flux), load(flux, compile="blocks")
    x = inputs(plain, 5)[0]
    torch.testing.assert_close(fast.decode(x), plain.decode(x))
    assert num_graphs() == 0, "no run has said how many images are decoded at once"
    fast.speed.expect(images=2)
    for _ in range(2):
        torch.testing.assert_close(fast.decode(x), plain.decode(x))
    assert num_graphs() == 1, "two chunks of 2 by one graph, and the last image without"


def test_compiled_code_may_be_called_while_another_thread_traces(flux: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the decoder is beside a rollout. Up to torch 2.11 dynamo takes another thread's tracing for its own."""
    monkeypatch.setattr(torch.fx._symbolic_trace, "is_fx_symbolic_tracing", lambda: True)
    plain, fast = load(flux), load(flux, compile="blocks")
    at = inputs(plain, 2)
    with torch.no_grad():
        torch.testing.assert_close(fast.velocity(*at), plain.velocity(*at))
    assert num_graphs() == 0
