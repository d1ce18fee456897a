"""flowrl: reinforcement learning of flow-matching text-to-image models with GRPO."""

__version__ = "0.1.0"
