"""A FLUX velocity in three parts, so that the blocks in the middle can be left out and replaced by their residual.

Runs the submodules of FluxTransformer2DModel (diffusers 0.36 and later) in the order of its own ``forward``, so that
with nothing left out the result is that of ``forward``. Blocks are numbered through: those with two streams, then
those with one. No gradients, no adapters' scale argument, no ControlNet.

Axes: B rows, n text and image tokens together, d width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel


class Streams(NamedTuple):
    """What runs through the blocks: image [B, tokens, d] and text [B, tokens, d], and what all blocks are told."""

    image: Tensor
    text: Tensor
    time: Tensor
    rotary: tuple[Tensor, Tensor]

    @property
    def joined(self) -> Tensor:
        """[B, n, d]."""
        return torch.cat([self.text, self.image], 1)

    def plus(self, residual: Tensor) -> Streams:
        """With a residual [B, n, d] added, or one of the image alone [B, tokens, d], whose text nothing uses."""
        num_text = residual.shape[1] - self.image.shape[1]
        text = self.text + residual[:, :num_text] if num_text else self.text
        return self._replace(image=self.image + residual[:, num_text:], text=text)


def num_blocks(transformer: FluxTransformer2DModel) -> int:
    return len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)


def velocity(
    transformer: FluxTransformer2DModel,
    inputs: Mapping[str, Any],
    *,
    span: tuple[int, int] | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """v [B, tokens, channels] of ``transformer(**inputs)``, and the residual of the blocks of ``span``.

    Without a span all blocks run and there is no residual. With a span they run too, and what its blocks add to the
    streams is returned: [B, n, d], or the image's part alone where no block follows, which is all that the velocity
    depends on. With a residual, that is added in their place.
    """
    depth = num_blocks(transformer)
    first, last = span or (depth, depth)
    streams = run_blocks(transformer, embed(transformer, inputs), 0, first)
    made = None
    if residual is not None:
        streams = streams.plus(residual)
    elif span is not None:
        before = streams
        streams = run_blocks(transformer, streams, first, last)
        made = streams.image - before.image if last == depth else streams.joined - before.joined
    streams = run_blocks(transformer, streams, last, depth)
    return transformer.proj_out(transformer.norm_out(streams.image, streams.time)), made


def embed(transformer: FluxTransformer2DModel, inputs: Mapping[str, Any]) -> Streams:
    """The streams before the first block, from the arguments of ``forward``."""
    image = transformer.x_embedder(inputs["hidden_states"])
    levels = [inputs["timestep"], *([] if inputs.get("guidance") is None else [inputs["guidance"]])]
    levels = [level.to(image.dtype) * 1000 for level in levels]
    time = transformer.time_text_embed(*levels, inputs["pooled_projections"])
    text = transformer.context_embedder(inputs["encoder_hidden_states"])
    rotary = transformer.pos_embed(torch.cat([inputs["txt_ids"], inputs["img_ids"]]))
    return Streams(image, text, time, rotary)


def run_blocks(transformer: FluxTransformer2DModel, streams: Streams, first: int, last: int) -> Streams:
    """The blocks first..last-1."""
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    image, text = streams.image, streams.text
    for block in blocks[first:last]:
        text, image = block(
            hidden_states=image,
            encoder_hidden_states=text,
            temb=streams.time,
            image_rotary_emb=streams.rotary,
            joint_attention_kwargs=None,  # as forward does, so that compiled blocks see one call
        )
    return streams._replace(image=image, text=text)
