"""Every number that the build of the embedded world depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from flowrl.worlds.shapes.parts import Sizes
from flowrl.worlds.shapes.scene import PRIMARY_DIMENSIONS


@dataclass(frozen=True)
class Settings:
    """The settings of a build; the defaults are those of the weights in the package.

    There one GPU ran every stage but ``refine``, which three GPUs shared: each takes batches of ``batch``.

    ``wrong`` is the rate, per dimension of the prompts, at which a training picture breaks a testpoint of its caption:
    it leaves the base model the headroom that reinforcement learning closes.
    """

    sizes: Sizes = field(default_factory=Sizes)
    seed: int = 0
    num_scenes: int = 200_000

    vae_steps: int = 6000
    vae_batch: int = 128
    vae_lr: float = 2e-3
    kl_weight: float = 4e-3  # of the mean KL per latent number, against the mean error per pixel number

    steps: int = 26_147
    batch: int = 512  # on each GPU
    lr: float = 1e-3
    warmup: int = 200
    ema: float = 0.999
    shift: float = 2.0  # of the training's noise levels: lower than the sampler's, since fine edges are hard
    even: float = 0.5  # share of noise levels drawn evenly before the shift; the others are logit-normal
    guidance: tuple[float, float] = (1.0, 6.0)  # drawn evenly: the embedding is conditioned on, it steers nothing
    wrong: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(PRIMARY_DIMENSIONS, 0.25))
    compile: bool = True  # the transformer's blocks, on CUDA

    refine_steps: int = 16_733  # from there on, with fresh scenes
    refine_lr: float = 7e-4
    refine_wrong: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(PRIMARY_DIMENSIONS, 0.12))

    auditor_scenes: int = 400_000
    auditor_steps: int = 9112
    auditor_batch: int = 512
    auditor_lr: float = 1e-3

    checkpoint_every: int = 1000
    num_prompts: int = 400  # of the held-out split, for the gold score
    num_audited: int = 2000  # samples on which judge and auditor are compared

    def quick(self) -> Settings:
        """A build of minutes on a CPU that draws nothing worth looking at: for tests of the stages."""
        sizes = replace(self.sizes, double_blocks=1, single_blocks=1, text_layers=1)
        return replace(
            self,
            sizes=sizes,
            num_scenes=256,
            vae_steps=6,
            vae_batch=16,
            steps=6,
            refine_steps=6,
            batch=16,
            warmup=2,
            auditor_scenes=64,
            auditor_steps=6,
            auditor_batch=16,
            checkpoint_every=3,
            num_prompts=6,
            num_audited=12,
        )
