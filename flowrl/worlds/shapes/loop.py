"""What the build's training loops share: learning rate, averaged weights, checkpoints, seeds per step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flowrl import atomic
from flowrl.seeds import derive_seed

TIMED = range(30, 90)  # steps of a run whose time tells how many fit; the first ones compile and warm up

Tensors = dict[str, Tensor]
Batch = Callable[[torch.Generator], Tensors]
Loss = Callable[..., Tensors]


class Shared(Protocol):
    """What the settings of every training say."""

    @property
    def seed(self) -> int: ...
    @property
    def warmup(self) -> int: ...
    @property
    def ema(self) -> float: ...
    @property
    def checkpoint_every(self) -> int: ...


def learning_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak at the last step."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return peak * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * cosine)


class Loop:
    """Trains modules with AdamW; its state is a file, so a killed loop goes on.

    Each step draws from a generator seeded by (seed, name, step) alone: a resumed loop takes the steps that an
    uninterrupted one takes. ``together`` with the other processes of a group, every rank draws a batch of its own and
    gradients are averaged; the first rank logs and saves.
    """

    def __init__(
        self,
        name: str,
        modules: nn.Module,
        settings: Shared,
        *,
        steps: int,
        lr: float,
        device: torch.device,
        checkpoint: Path,
        capture: bool = True,
        together: bool = False,
        log: Callable[[str], None] = print,
    ) -> None:
        """Of ``settings`` what all stages share: warm-up, decay of the average, seed, interval of the checkpoints."""
        self.name, self.modules, self.steps, self.lr, self.warmup = name, modules, steps, lr, settings.warmup
        self.ema_decay, self.seed, self.device = settings.ema, settings.seed, device
        self.checkpoint, self.checkpoint_every, self.log = checkpoint, settings.checkpoint_every, log
        self.capture = capture and device.type == "cuda"
        together = together and dist.is_initialized()
        self.world, self.rank = (dist.get_world_size(), dist.get_rank()) if together else (1, 0)
        self.parameters = [p for p in modules.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr, betas=(0.9, 0.95), weight_decay=0.01, fused=device.type == "cuda"
        )
        self.history: list[dict[str, float]] = []

    def run(self, batch: Batch, loss: Loss, *, time_limit: float | None = None) -> list[dict[str, float]]:
        """Minimises ``loss(**batch(generator))["loss"]``; leaves the averaged weights in the modules.

        Returns the logged values. Under a ``time_limit`` in seconds the first steps are timed and, where all would
        take longer, the number of steps (and with it the learning rate's decay) is cut to what fits, and that is said.
        """
        began = time.monotonic()
        start = step = self._load()
        generator = torch.Generator(self.device)
        weights = [parameter.detach() for parameter in self.parameters]
        gradients = self._eager(loss)
        while step < self.steps:
            generator.manual_seed(derive_seed(self.seed, self.name, step, *([self.rank] if self.rank else [])))
            inputs = batch(generator)
            if step == start and self.capture:
                gradients = self._captured_if_possible(loss, inputs)
            terms = gradients(inputs)
            self._average_gradients()
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(step, peak=self.lr, warmup=self.warmup, steps=self.steps)
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            # The average follows fast while the weights still move fast.
            torch._foreach_lerp_(self.average, weights, 1 - min(self.ema_decay, (step + 1) / (step + 10)))
            step = done = step + 1
            if done - start == TIMED.start:
                timed_from = self._now(terms)
            elif done - start == TIMED.stop and time_limit is not None:
                now = self._now(terms)
                self._fit(done, (now - timed_from) / len(TIMED), began + time_limit - now)
            if done % max(1, self.steps // 40) == 0 or done in (1, self.steps):
                self._record(done, terms, time.monotonic() - began)
            if done % self.checkpoint_every == 0 and done < self.steps:
                self._save(done)
        with torch.no_grad():
            torch._foreach_copy_(weights, self.average)
        return self.history

    def _average_gradients(self) -> None:
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = (flat / self.world).split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])

    def _eager(self, loss: Loss) -> Callable[[Tensors], Tensors]:
        def gradients(inputs: Tensors) -> Tensors:
            self.optimizer.zero_grad(set_to_none=True)
            terms = loss(**inputs)
            terms["loss"].backward()
            return terms

        return gradients

    def _captured_if_possible(self, loss: Loss, inputs: Tensors) -> Callable[[Tensors], Tensors]:
        try:
            return self._captured(loss, inputs)
        except RuntimeError as error:
            self.log(f"{self.name}: no CUDA graph, every step is eager: {error}")
            return self._eager(loss)

    def _captured(self, loss: Loss, inputs: Tensors) -> Callable[[Tensors], Tensors]:
        """Forward and backward as one CUDA graph: networks this small spend an eager step launching kernels."""
        eager = self._eager(loss)
        static = {name: value.clone() for name, value in inputs.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # compile, and allocate what libraries allocate once
                eager(static)
        torch.cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad(set_to_none=True)  # so that the gradients live in the graph's memory
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            terms = eager(static)

        def replay(inputs: Tensors) -> Tensors:
            for name, value in inputs.items():
                static[name].copy_(value)
            graph.replay()
            return terms

        return replay

    def _fit(self, done: int, seconds_per_step: float, seconds_left: float) -> None:
        fitting = done + max(1, int(0.97 * seconds_left / seconds_per_step))
        if self.world > 1:  # all ranks take as many steps as the first
            agreed = torch.tensor([fitting], device=self.device)
            dist.broadcast(agreed, 0)
            fitting = int(agreed)
        if fitting < self.steps:
            self.log(
                f"{self.name}: {fitting} of {self.steps} steps fit the time ({1e3 * seconds_per_step:.1f} ms each)"
            )
            self.steps = fitting

    @staticmethod
    def _now(terms: Tensors) -> float:
        terms["loss"].item()  # waits for the device
        return time.monotonic()

    def _record(self, done: int, terms: Tensors, seconds: float) -> None:
        if self.rank:
            return
        values = {name: round(value.detach().item(), 6) for name, value in terms.items()}
        self.history.append({"step": done, **values, "seconds": round(seconds, 1)})
        self.log(f"{self.name} {done}/{self.steps} {values} {seconds:.0f} s")

    def _state(self) -> dict[str, Any]:
        return {
            "modules": self.modules.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "steps": self.steps,
        }

    def _save(self, done: int) -> None:
        if self.rank:
            return
        with atomic.replacing(self.checkpoint) as temporary:
            torch.save({"done": done, **self._state()}, temporary)

    def _load(self) -> int:
        if not self.checkpoint.exists():
            return 0
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.modules.load_state_dict(state["modules"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.steps = state["history"], state["steps"]
        self.log(f"{self.name}: goes on after step {state['done']}")
        return int(state["done"])
