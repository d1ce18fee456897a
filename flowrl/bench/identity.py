"""What a model and its rewards are, by their files: runs of other weights are other runs."""

from __future__ import annotations

import json
from typing import Any

from flowrl.errors import UserError
from flowrl.recipe import Recipe


def model_weights(config: Any) -> str:
    """A digest of a model's files; ``missing`` where they are not here, so that a plan can be shown."""
    from flowrl.policies.pipeline_folder import digest, locate

    source = getattr(config, "source", None)
    if source is None:
        return "none"
    try:
        return digest(locate(source))
    except UserError:
        return "missing"


_IDENTITIES: dict[str, Any] = {}


def weights_identity(recipe: Recipe) -> dict[str, Any]:
    """What the model and the rewards of a recipe are, by their files."""

    def once(config: Any, find: Any) -> Any:
        name = json.dumps(config.model_dump(mode="json"), sort_keys=True, default=str)
        if name not in _IDENTITIES:
            try:
                _IDENTITIES[name] = find(config)
            except (UserError, OSError):
                _IDENTITIES[name] = "missing"
        return _IDENTITIES[name]

    rewards = {name: once(reward.scorer, lambda scorer: scorer.identity()) for name, reward in recipe.rewards.items()}
    return {"model": once(recipe.model, model_weights), "rewards": rewards}
