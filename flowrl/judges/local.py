"""A judge inside this process: a vision-language checkpoint of the Qwen2.5-VL or Qwen3-VL kind, by transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from flowrl.errors import UserError
from flowrl.foreign_code import refuse_kernels
from flowrl.hub import locate_files, sha256
from flowrl.judges.log import AnswerLog
from flowrl.judges.pictures import prepared
from flowrl.policies.quiet import quietly
from flowrl.protocols import Judge, JudgeConfig
from flowrl.types import Answer, Question

if TYPE_CHECKING:
    import torch

_FILES = ("config.json", "tokenizer_config.json")
_INDEX = "model.safetensors.index.json"


class Local(JudgeConfig, kind="local"):
    """``source``: a folder, or a hub id whose files ``hf download`` has fetched. Nothing is downloaded here, no code of
    the checkpoint is run, and decoding is greedy."""

    source: str
    max_tokens: int = Field(default=4096, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: as the weights are stored."""
    resize: tuple[int, int] | None = None
    """(width, height) in pixels; by default the processor sees pictures as large as they are."""
    log: Path | None = None
    """Where every question and its answer are kept, a JSON object a line."""

    def folder(self) -> Path:
        """Where the checkpoint lies. Raises UserError that names what is missing."""
        return self._with(_FILES)

    def weights(self) -> list[Path]:
        """The files of weights, every shard of them. Raises UserError that names what is missing."""
        folder = self._with(_FILES)
        index = folder / _INDEX
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values()) if index.is_file() else None
        names = sorted(shards or {"model.safetensors"})
        self._with((*_FILES, *names))
        return [folder / name for name in names]

    def _with(self, files: Sequence[str]) -> Path:
        return locate_files(self.source, files, what="judge local", world_folder="judge")

    def check(self) -> None:
        """The files are there."""
        self.weights()

    def identity(self) -> dict[str, Any]:
        """With the SHA-256 of every file of weights."""
        values = {name: value for name, value in super().identity().items() if name != "log"}
        return values | {"sha256": {file.name: sha256(file) for file in self.weights()}}

    def load(self, device: torch.device) -> Judge:
        """Raises UserError where files are missing."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.check()
        folder = self.folder()
        refuse_kernels(folder / "config.json")
        safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            with quietly():
                processor = AutoProcessor.from_pretrained(folder, **safe)
                model = AutoModelForImageTextToText.from_pretrained(
                    folder, dtype=self.dtype, use_safetensors=True, **safe
                )
        except (OSError, ValueError) as error:  # what transformers raises for other kinds of models, and for code
            raise UserError(f"judge local: transformers cannot load {self.source}: {error}") from error
        return LocalJudge(self, model.to(device).eval(), processor)


class LocalJudge:
    """Answers one question after another: batches would pad, and padding changes what some kernels compute."""

    def __init__(self, config: Local, model: Any, processor: Any) -> None:
        self.config, self.model, self.processor = config, model, processor
        self._log = AnswerLog(config.log)
        # The checkpoint's sampling settings do not apply to greedy decoding, and each would be a warning.
        model.generation_config.update(do_sample=False, temperature=None, top_p=None, top_k=None)

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question, in order."""
        answers = []
        for question in questions:
            try:
                answer = self._answer(question)
            except (OSError, ValueError, RuntimeError) as error:  # a picture that the processor refuses, no memory
                answer = Answer(None, f"{type(error).__name__}: {error}")
            self._log.append({"question": question.text, "text": answer.text, "error": answer.error})
            answers.append(answer)
        return answers

    def _answer(self, question: Question) -> Answer:
        import torch

        picture = {"type": "image", "image": prepared(question.image, self.config.resize)}
        content = [picture, {"type": "text", "text": question.text}]
        message = {"role": "user", "content": content[::-1] if question.text_first else content}
        inputs = self.processor.apply_chat_template(
            [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, max_new_tokens=self.config.max_tokens)
        new = tokens[0, inputs["input_ids"].shape[1] :]
        text = self.processor.tokenizer.decode(new, skip_special_tokens=True)
        if len(new) >= self.config.max_tokens and int(new[-1]) not in self._ends():
            return Answer(text, f"cut off: at max_tokens {self.config.max_tokens}")
        return Answer(text) if text.strip() else Answer(None, "empty answer: nothing but special tokens")

    def _ends(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        return set(ends if isinstance(ends, list) else [ends])
