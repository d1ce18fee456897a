"""UnifiedReward: a vision-language model rates pictures, by one of four published protocols that are not comparable."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from pydantic import model_validator

from flowrl.errors import RunFailed
from flowrl.judges.log import AnswerLog, recorded
from flowrl.protocols import Judge, JudgeConfig, Scorer, ScorerConfig
from flowrl.rewards.images import as_pictures, finite, take
from flowrl.rewards.unified_reward_protocols import PROTOCOLS, Axis, ProtocolName, Wording, official_wording
from flowrl.types import Answer, Images, Prompt, Question, Scores

Value = Literal["final", "alignment", "coherence", "style", "mean"]

_DEFAULT_VALUE: dict[ProtocolName, Value] = {
    "final_score_v1": "final",
    "final_score_v1_5": "final",
    "acs_v1_5": "alignment",
    "acs_v2": "mean",
}


class UnifiedReward(ScorerConfig, kind="unified_reward"):
    """On a scale of 1 to 5. ``value``: which number of the answer counts; ``mean``: of alignment, coherence and style.

    By default ``final`` in the protocols of a final score, ``alignment`` in acs_v1_5 (what MixGRPO keeps) and ``mean``
    in acs_v2. ``normalise`` divides by 5, as the published client of final_score_v1_5 does. A question whose answer
    did not come, was cut off or does not parse ends everything (``on_failure: fail``), or leaves its picture without a
    valid score (``skip``); it is counted either way. ``official_from``: a checkout of the UnifiedReward repository,
    whose wording is used in place of this project's own.
    """

    judge: JudgeConfig
    protocol: ProtocolName = "final_score_v1"
    value: Value | None = None
    normalise: bool = False
    on_failure: Literal["fail", "skip"] = "skip"
    official_from: Path | None = None
    text_first: bool = False
    """Whether the text goes before the picture; the published clients send the picture first."""
    log: Path | None = None
    """Where every answer is kept verbatim, a JSON object a line."""

    @model_validator(mode="after")
    def _fits_the_protocol(self) -> Self:
        allowed = ("final",) if "final" in PROTOCOLS[self.protocol].patterns else (*get_args(Axis), "mean")
        if self.value is not None and self.value not in allowed:
            raise ValueError(
                f"value {self.value!r} is not in the answers of {self.protocol} (it has {', '.join(allowed)})"
            )
        if self.normalise and self.protocol != "final_score_v1_5":
            raise ValueError(
                f"normalise belongs to final_score_v1_5; {self.protocol} is published on a scale of 1 to 5"
            )
        return self

    @property
    def counted(self) -> Value:
        """The value, its default filled in."""
        return self.value or _DEFAULT_VALUE[self.protocol]

    def wording(self) -> Wording:
        """What the judge is asked. Raises UserError where the official wording cannot be read."""
        if self.official_from is None:
            return PROTOCOLS[self.protocol].wording
        return official_wording(self.official_from, self.protocol)

    def check(self) -> None:
        """The wording is there, and so is the judge."""
        self.wording()
        self.judge.check()

    def identity(self) -> dict[str, Any]:
        """The protocol, the judge and the wording's digest: what must be equal where numbers are compared."""
        wording = hashlib.sha256("\0".join(self.wording()).encode()).hexdigest()
        decisive = {"protocol": self.protocol, "value": self.counted, "normalise": self.normalise}
        asked = {"wording": "official" if self.official_from else "own", "wording_sha256": wording}
        return {"kind": self.kind, **decisive, **asked, "text_first": self.text_first, "judge": self.judge.identity()}

    def load(self, device: torch.device) -> Scorer:
        """Raises UserError where the judge or the official wording is missing."""
        wording = self.wording()
        return UnifiedRewardScorer(self, wording, self.judge.load(device))


class UnifiedRewardScorer:
    """Asks a judge about all pictures of a call at once; ``parts`` has every number of the protocol, nan where missing.

    ``asked`` counts the questions since loading, ``failures`` those without a score by their cause.
    """

    scope: Literal["image", "group"] = "image"

    def __init__(self, config: UnifiedReward, wording: Wording, judge: Judge) -> None:
        self.config, self.wording, self.judge = config, wording, judge
        self.protocol = PROTOCOLS[config.protocol]
        self.asked = 0
        self.failures: Counter[str] = Counter()
        self._log = AnswerLog(config.log)

    @property
    def coverage(self) -> float:
        """The share of the questions so far that have a score; nan before the first."""
        return 1 - self.failures.total() / self.asked if self.asked else float("nan")

    def score(self, images: Images, prompts: Sequence[Prompt]) -> Scores:
        """Raises RunFailed where a question has no score and the policy is ``fail``."""
        judged = finite(images)
        rows = [row for row, is_finite in enumerate(judged) if is_finite]
        answers = iter(self.judge.ask(self._questions(take(images, rows), [prompts[row] for row in rows])))
        read = [
            self._read(next(answers) if is_finite else Answer(None, "not finite: the picture"), prompt)
            for is_finite, prompt in zip(judged, prompts, strict=True)
        ]
        self._count([error for _, _, error in read if error is not None], len(read))
        names = list(self.protocol.patterns)
        table = torch.tensor([[parts.get(name, torch.nan) for name in names] for _, parts, _ in read]).view(
            -1, len(names)
        )
        values = torch.tensor([torch.nan if value is None else value for value, _, _ in read])
        valid = values.isfinite()
        where = images.device if isinstance(images, torch.Tensor) else torch.device("cpu")
        columns = {name: column.to(where) for name, column in zip(names, table.T, strict=True)}
        return Scores(values.where(valid, 0).to(where), valid.to(where), columns)

    def _questions(self, images: Images, prompts: Sequence[Prompt]) -> list[Question]:
        asked = zip(as_pictures(images), prompts, strict=True)
        return [Question(image, self.wording.about(prompt.text), self.config.text_first) for image, prompt in asked]

    def _read(self, answer: Answer, prompt: Prompt) -> tuple[float | None, dict[str, float], str | None]:
        """The value, the parts, and why there is no value."""
        parts: dict[str, float] = {}
        error = answer.error
        if error is None:
            parts = self.protocol.read(answer.text or "")
            wanted = get_args(Axis) if self.config.counted == "mean" else (self.config.counted,)
            missing = [name for name in wanted if name not in parts]
            error = f"unparsable: no {' and no '.join(missing)} score in the answer" if missing else None
        value = None
        if error is None:
            value = sum(parts[name] for name in wanted) / len(wanted)
            value = value / 5 if self.config.normalise else value
        record = {"index": prompt.index, "prompt": prompt.text} | recorded(replace(answer, error=error))
        self._log.append(record | {"protocol": self.config.protocol, "parts": parts, "value": value})
        return value, parts, error

    def _count(self, errors: Sequence[str], asked: int) -> None:
        self.asked += asked
        self.failures.update(error.partition(":")[0] for error in errors)
        if errors and self.config.on_failure == "fail":
            kept = f"; every answer is in {self.config.log}" if self.config.log else "; log: FILE keeps every answer"
            raise RunFailed(
                f"reward unified_reward: {len(errors)} of {asked} pictures have no score, the first because of "
                f"{errors[0]}{kept}; on_failure: skip leaves such pictures out and counts them"
            )
