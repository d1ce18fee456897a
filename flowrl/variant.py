"""What a strategy is: its own frozen, validated config. ``kind`` in YAML picks the class.

A family is a direct subclass of :class:`Variant`; a member names its kind:

    class Schedule(Variant): ...
    class Singular(Schedule, kind="singular"): ...
    Schedule.model_validate({"kind": "singular", "steps": [0, 1]})

A family that names its ``package`` finds its members by itself: one new file in that folder is one new variant.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, model_serializer, model_validator

from flowrl.errors import did_you_mean, listing


class Variant(BaseModel):
    """Base of all strategy families. Unknown keys and kinds are errors that name the nearest match."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kinds: ClassVar[dict[str, type[Variant]]]
    kind: ClassVar[str]
    package: ClassVar[str | None] = None

    def __init_subclass__(cls, *, kind: str | None = None, package: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Variant in cls.__bases__:
            cls.kinds = {}
            cls.package = package
        elif kind is not None:
            registered = cls.kinds.get(kind)
            if registered is not None and registered.__module__ != cls.__module__:
                raise TypeError(f"kind {kind!r} is already {registered.__module__}.{registered.__qualname__}")
            cls.kind = kind
            cls.kinds[kind] = cls

    @classmethod
    def members(cls) -> dict[str, type[Variant]]:
        """Every kind of this family, its package imported first."""
        if cls.package is not None:
            discover(cls.package)
        return cls.kinds

    @model_validator(mode="wrap")
    @classmethod
    def _dispatch(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, Variant) or hasattr(cls, "kind"):
            return handler(data)
        if isinstance(data, str):
            data = {"kind": data}
        if not isinstance(data, dict):
            raise ValueError(f"{cls.__name__} must be a mapping with a kind, or a kind; got {data!r}")
        members = cls.members()
        if "kind" not in data:
            raise ValueError(f"{cls.__name__} needs a kind (known: {listing(members)})")
        kind = data["kind"]
        if not isinstance(kind, str) or kind not in members:
            hint = did_you_mean(kind, members)
            raise ValueError(f"unknown {cls.__name__} kind {kind!r}{hint} (known: {listing(members)})")
        return members[kind].model_validate({k: v for k, v in data.items() if k != "kind"})  # type: ignore[return-value]

    @model_serializer(mode="plain")
    def _with_kind(self) -> dict[str, Any]:
        return {"kind": self.kind} | {name: getattr(self, name) for name in type(self).model_fields}


def discover(package: str) -> None:
    """Import every module of a package."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(module.name)
