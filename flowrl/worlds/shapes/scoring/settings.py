"""Every number that the build of the embedded scorers depends on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Tower:
    """A transformer over pictures or words."""

    width: int = 64
    layers: int = 3
    heads: int = 4
    mlp: int = 4  # width of the feed-forward layers, in widths


@dataclass(frozen=True)
class Training:
    """One training: groups of pictures a step, and how they are stepped on."""

    steps: int
    lr: float
    renders: int  # captions a step whose pictures are renders: right and broken
    samples: int = 0  # prompts a step whose pictures are samples of the base model and renders


@dataclass(frozen=True)
class ScorerSettings:
    """The settings of a build of the scorers; the defaults are those of the weights in the package.

    What makes the scorers imperfect is how little they see: some thousand prompts, labels that err, small pictures of
    the world in small networks. Nothing else is done to weaken them.
    """

    seed: int = 0
    num_renders: int = 60_000  # captions, each with a picture that shows it and one that breaks one testpoint
    num_groups: int = 2500  # prompts with preferences
    group: int = 4  # samples of the base model per prompt; a render and a broken render come on top
    sample_steps: int = 8  # denoising steps of the samples, as in training
    temperature: float = 0.05  # of the labellers: P(a over b) = sigmoid((gold(a) - gold(b)) / temperature)

    embed: int = 128  # numbers in which picture and text are compared
    context: int = 32  # tokens of a text; the longest prompt of the world has 28
    vision: Tower = field(default_factory=Tower)
    text: Tower = field(default_factory=lambda: Tower(layers=2))
    small_vision: Tower = field(default_factory=lambda: Tower(layers=2))  # of PickScore
    small_text: Tower = field(default_factory=lambda: Tower(layers=1))

    clip: Training = field(default_factory=lambda: Training(4000, 2e-3, renders=40))
    hps: Training = field(default_factory=lambda: Training(900, 1e-3, renders=12, samples=12))
    pickscore: Training = field(default_factory=lambda: Training(900, 1e-3, renders=12, samples=12))
    image_reward: Training = field(default_factory=lambda: Training(2400, 1.5e-3, renders=20, samples=10))
    reading: float = 0.5  # weight, while CLIP is trained, of naming the thing at each place of the picture
    warmup: int = 50
    ema: float = 0.99
    checkpoint_every: int = 100

    num_prompts: int = 400  # of the held-out split, for the agreement with gold
    images_per_prompt: int = 4

    def quick(self) -> ScorerSettings:
        """A build of seconds whose scorers know nothing: for tests of the stages."""
        tower, training = Tower(32, 1, 2, 2), Training(4, 1e-3, renders=4, samples=2)
        return replace(
            self,
            num_renders=24,
            num_groups=6,
            group=2,
            sample_steps=2,
            embed=16,
            vision=tower,
            text=tower,
            small_vision=tower,
            small_text=tower,
            clip=training,
            hps=training,
            pickscore=training,
            image_reward=training,
            warmup=2,
            checkpoint_every=3,
            num_prompts=10,
            images_per_prompt=2,
        )
