"""A state that another kind of device has written."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from runs import write_recipe
from tiny import prompts_of

from flowrl.data import PromptOrder
from flowrl.recipe import load_recipe
from flowrl.trainer import Trainer


def test_the_optimiser_runs_as_this_device_has_it_whoever_wrote_its_state(tmp_path: Path) -> None:
    """On a GPU AdamW is fused, and its state says so; on a CPU every bit stays what it was."""
    recipe = load_recipe(write_recipe(tmp_path))
    first, second, third = (Trainer(recipe, PromptOrder(prompts_of(7), 4, seed=0)) for _ in range(3))
    assert first.optimizer.param_groups[0]["fused"] is None
    first.iterate()
    second.restore(deepcopy(first.state()))
    state = deepcopy(first.state())  # tensors are taken over as they are
    groups = [group | {"fused": True} for group in state.optimizer["param_groups"]]
    third.restore(replace(state, optimizer={**state.optimizer, "param_groups": groups}))
    assert third.optimizer.param_groups[0]["fused"] is None
    for trainer in (first, second, third):
        trainer.iterate()
    for name, parameter in first.parameters.items():
        assert torch.equal(parameter, second.parameters[name])
        assert torch.equal(parameter, third.parameters[name])
