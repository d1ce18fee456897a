"""Scorers whose weights lie in files: where they are found, how they are read, and what identifies them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_serializer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from flowrl.errors import UserError, in_short
from flowrl.hub import locate_files, sha256
from flowrl.protocols import ScorerConfig
from flowrl.rewards.neural import Judge, NeuralScorer, Prepare

if TYPE_CHECKING:
    from torch.nn import Module


class WeightsConfig(ScorerConfig):
    """``source``: an embedded world, a local folder, or a hub id whose files ``hf download`` has fetched."""

    source: str
    batch_size: int = Field(default=32, ge=1)
    """Images that the network sees at a time, on a GPU more where it sees them small; of no influence on the scores."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """fp16: the network runs under float16 autocast, which is faster on a GPU and moves a cosine by about 1e-4. So
    hpsv2's own code runs there; the others' code runs in float32."""

    @model_serializer(mode="plain")
    def _with_kind(self) -> dict[str, Any]:
        """``precision`` only where it is not fp32, so that what older runs say of themselves stays the same."""
        fields: dict[str, Any] = super()._with_kind()
        return {name: value for name, value in fields.items() if (name, value) != ("precision", "fp32")}

    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """Everything that ``load`` reads, the weights first. Raises UserError that names what is missing."""

    def check(self) -> None:
        self.files()

    def identity(self) -> dict[str, Any]:
        """The fields, and the SHA-256 of every file that is read."""
        return super().identity() | {"files": {path.name: sha256(path) for path in self.files()}}

    def scorer(self, prepare: Prepare, judge: Judge, device: torch.device) -> NeuralScorer:
        """Of a network, as the fields say."""
        return NeuralScorer(prepare, judge, device, self.batch_size, half=self.precision == "fp16")

    def locate(self, *files: str | Sequence[str], source: str | None = None) -> tuple[Path, ...]:
        """The paths of ``files`` in one folder; of alternatives the first that is there; an error asks for the last."""
        *choices, last = product(*([file] if isinstance(file, str) else file for file in files))
        for names in choices:
            with suppress(UserError):
                return self._locate(names, source or self.source)
        return self._locate(last, source or self.source)

    def folder(self, file: str) -> Path | None:
        """Where ``file`` lies or, in a folder of one's own, would lie."""
        with suppress(UserError):
            return self.locate(file)[0].parent
        own = Path(self.source.removeprefix("local-dir:")).expanduser()
        return own if own.is_dir() else None

    def _locate(self, names: Sequence[str], source: str) -> tuple[Path, ...]:
        folder = locate_files(source, names, what=f"reward {self.kind}", world_folder=f"scorers/{self.kind}")
        return tuple(folder / name for name in names)


def read_weights(path: Path) -> dict[str, Any]:
    """The content of a safetensors file or of a ``torch.save``, tensors only: no code in it is run."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors each have their own
        raise UserError(f"{path} cannot be read: {in_short(error)}; fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a mapping of tensors, it holds a {type(content).__name__}")
    return content


def filled(build: Callable[[], Module], weights: Mapping[str, Tensor], path: Path) -> Module:
    """A module with these weights, in float32, for inference. Raises UserError where a key of ``path`` does not fit."""
    with uninitialised():
        module = build()
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise UserError(f"{path} does not hold the weights of this architecture: {in_short(error)}") from error
    return module.float().eval().requires_grad_(False)


@contextmanager
def uninitialised() -> Iterator[None]:
    """Modules built inside draw no initial weights, which takes a ViT-H long: they are loaded over anyway."""

    class Skip(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if getattr(function, "__module__", None) == "torch.nn.init":
                return args[0] if args else kwargs["tensor"]
            return function(*args, **kwargs)

    with Skip():
        yield
