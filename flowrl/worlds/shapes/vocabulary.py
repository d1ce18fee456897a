"""Every word that a prompt of the shapes world can contain. Weights depend on the order: append, never sort again."""

from __future__ import annotations

from flowrl.worlds.shapes.scene import LETTERS

_PUNCTUATION = ('"', ",", ".", ":", ";")
_WORDS = """
    a above against all amethyst an and angles any arms arrow as ashes at austria background badge banana bars
    below beside bicycle bigger black blood blue board both bottom but canary centre chess circle circles coal
    coin colour coloured colours column contact corner corners cross crosses crossing cyan diagonal die
    different dog down drawing drawn each eggplant emerald engine equal every except eyes fewest figure filled
    fire five flag flat former four france fresh frog from full germany grass green grey ground half hang
    hanging has holding horizontal hospital image in inside is it italy japan jeans large larger latter lavender
    leaning left legs lemon letter letters letting light like line looks lying mali many middle minus moon
    netherlands next nigeria no not nothing of on one order out outline over painted pale pastel person picture
    pizza plain plus pointing points poland purple pyramid raised read red right ripe row ruby same sapphire
    says sea shape shaped sheriff side sides sign simple slice small smaller snow soft something spikes square
    squares stacked star starfish stars stick stretched striped stripes style than that the them there thing
    three times to tomato tone tones top touching traffic triangle triangles twice two ukraine under up vertical
    waving wheel wheels white whose with within without yellow
"""


def vocabulary() -> tuple[str, ...]:
    """Punctuation marks, the letters that can be drawn, and words; no two differ by case alone."""
    return (*_PUNCTUATION, *LETTERS, *_WORDS.split())
