"""The judge of the shapes world behind its own HTTP server, started here and ended with the process."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from pydantic import Field

from flowrl.judges.endpoint import Endpoint
from flowrl.protocols import Judge, JudgeConfig

if TYPE_CHECKING:
    import torch


class Shapes(JudgeConfig, kind="shapes"):
    """What ``flowrl judge serve shapes`` and the kind ``endpoint`` are together: nothing to start, nothing to stop."""

    concurrency: int = Field(default=4, ge=1)

    def identity(self) -> dict[str, Any]:
        """With a digest of the sources that say what it answers; how many questions are asked at a time decides
        nothing."""
        from flowrl.worlds.shapes.judge_identity import ANSWER_SOURCES, judge_identity

        return {"kind": self.kind} | judge_identity(ANSWER_SOURCES)

    def load(self, device: torch.device) -> Judge:
        """Serves on a free port of this machine and connects to it. Pictures go as PNG: 64 pixels leave no room for
        the blur of JPEG."""
        from flowrl.worlds.shapes.judge_server import MODEL, serving

        with ExitStack() as stack:
            url = stack.enter_context(serving())
            judge = Endpoint(url=url, model=MODEL, image_format="png", concurrency=self.concurrency).load(device)
            weakref.finalize(judge, stack.pop_all().close)
        return judge
