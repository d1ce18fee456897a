"""A training run with every means of speed is the run without them, in few graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from policies.redness import write_rewards
from torch import Tensor
from torch._dynamo.utils import counters

from flowrl.data import PromptOrder
from flowrl.policies import attention, blocks
from flowrl.policies.attention import Choice
from flowrl.recipe import load_recipe
from flowrl.trainer import Trainer
from flowrl.types import Prompt

PROMPTS = [Prompt(text, i) for i, text in enumerate(["a cat", "two dogs", "a red fox", "a hat"])]


@pytest.fixture
def trained(folder: Path, tmp_path: Path) -> Callable[..., Trainer]:
    """Two iterations of G2RPO with a LoRA and a KL term to the reference, in batches that are rarely full."""
    rewards = write_rewards(tmp_path)

    def run(*changes: str) -> Trainer:
        overrides = [
            f"model.source={folder}",
            f"model.cache_dir={folder.parent / 'cache'}",
            "model={height: 32, width: 32, text_tokens: 16, lora: {rank: 4, alpha: 6.0, targets: [attn.to_q]}}",
            "grid.num_steps=6",
            "rollout={group: 3, prompts: 2, max_batch: 7, decode_batch: 4, score_ahead: 0}",
            "run={precision: fp32, iterations: 2, microbatch: 4}",
            "loss.beta=0.01",
            "optimizer.lr=1.0e-3",
            "data.train=unused.txt",
            *changes,
        ]
        recipe = load_recipe("g2rpo", model="flux1_dev", rewards=str(rewards), overrides=overrides)
        trainer = Trainer(recipe, PromptOrder(PROMPTS, 2, seed=0))
        said: list[str] = []
        trainer.say = said.append
        for _ in range(2):
            trainer.iterate()
        trainer.said = said  # type: ignore[attr-defined]
        return trainer

    return run


def parameters(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.parameters.values()])


def test_a_whole_run_compiled_is_the_run_uncompiled(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BACKEND", "eager")
    plain = trained("model.gradient_checkpointing=false")
    torch._dynamo.reset()
    counters.clear()
    fast = trained("model.compile=blocks", "model.gradient_checkpointing=0.5", "rollout.score_ahead=2")
    moved = (parameters(plain) - parameters(fast)).abs().max()
    assert moved < 0.05 * plain.recipe.optimizer.lr
    # Three sizes without gradients, one of the reference and one with them, each of a double block and of a single one
    # in two layouts; and the decoder.
    assert counters["stats"]["unique_graphs"] <= 5 * 3 + 1
    assert plain.policy.speed.padding.num_padded == 0
    assert fast.policy.speed.padding.num_padded > 0
    torch._dynamo.reset()


def test_auto_fits_training_into_memory(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = ("model.gradient_checkpointing=auto", "run.microbatch=auto")
    plain = trained("model.gradient_checkpointing=false")
    roomy = trained(*auto)
    assert "training: 6 rows a forward, 0 of 3 blocks recomputed" in roomy.said[0]
    assert (parameters(plain) - parameters(roomy)).abs().max() < 0.05 * plain.recipe.optimizer.lr
    monkeypatch.setattr("flowrl.fitting.free_bytes", lambda *args: 1000)
    tight = trained(*auto)
    assert "training: 1 rows a forward, 3 of 3 blocks recomputed" in tight.said[0]
    assert tight.said[0].endswith("which may not be enough")
    assert (parameters(plain) - parameters(tight)).abs().max() < 0.05 * plain.recipe.optimizer.lr
    assert all(call.checkpointed for call in tight.policy.speed.blocks.calls)


def test_the_untrained_copy_is_there_when_memory_is_measured(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are not free for activations."""
    held: list[bool] = []

    def budget(trainer: Trainer) -> int:
        held.append("_untrained" in vars(trainer.policy))
        return 10**9

    monkeypatch.setattr("flowrl.fitting._budget", budget)
    trained("model.lora=null", "run.microbatch=auto")
    assert held == [True]


def test_the_attention_is_chosen_at_the_first_velocity_for_the_largest_batch(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def tried(*args: Any) -> list[attention.Trial]:
        asked.append(args)
        return [attention.Trial("flash", use, 1e-3, 0.0) for use in attention.USES]

    monkeypatch.setattr(attention, "tried", tried)
    named = trained("model.attention=flash")
    ((shape, _, candidates),) = asked
    assert shape == attention.AttentionShape(7, 2, 16 + 16, 16, "float32")
    assert candidates == (("flash", "rollout"), ("flash", "training"))
    assert named.policy.speed.attention.choice == Choice(*[("flash", "efficient", "math")] * 2)
    assert "rollout: flash 1.00 ms; training: flash 1.00 ms" in named.said[0]
