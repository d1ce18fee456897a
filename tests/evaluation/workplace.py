"""A folder with prompts and metrics, in which the tests evaluate a tiny pipeline."""

from __future__ import annotations

from pathlib import Path

from flowrl.evaluation.harness import Request, prepare, run
from flowrl.evaluation.results import Results

TEXTS = ["a cat", "two dogs", "a red square", "$5 | in a bowl", "a star"]


class Workplace:
    """A folder with prompts, metrics and an evaluation of the pipeline in it."""

    def __init__(self, folder: Path, pipeline: Path) -> None:
        self.folder, self.pipeline, self.output = folder, pipeline, folder / "out"
        self.prompts("prompts.txt", TEXTS)
        self.metrics({"brightness": "{kind: brightness}", "place": "{kind: place}"})

    def prompts(self, name: str, texts: list[str]) -> str:
        (self.folder / name).write_text("\n".join(texts) + "\n")
        return str(self.folder / name)

    def metrics(self, kinds: dict[str, str]) -> str:
        lines = [f"  {name}: {values}" for name, values in kinds.items()]
        path = self.folder / "metrics.yaml"
        path.write_text("\n".join(["fragment: true", "plugins: [plain_scorers]", "metrics:", *lines]) + "\n")
        return str(path)

    def request(self, **changes: object) -> Request:
        values = {
            "output": self.output,
            "model_or_run": str(self.pipeline),
            "metrics": str(self.folder / "metrics.yaml"),
            "prompts": str(self.folder / "prompts.txt"),
            "num_steps": 2,
        }
        return Request(**(values | changes))

    def evaluate(self, **changes: object) -> Results | None:
        return run(prepare(self.request(**changes)))

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.output / "images").glob("*"))}
