"""The real prompts of UniGenBench++, a random FluxPipeline, a judge behind an address: killed half-way and resumed."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from judges.http_double import Stage, completion, playing, question_of
from unigenbench_fakes import data_file

NUM_PROMPTS = 40
QUESTIONS = 4 * NUM_PROMPTS


def decides(stage: Stage, body: dict[str, Any]) -> None:
    """An answer in the form asked for, decided by a hash of the question."""
    time.sleep(0.05)
    text = question_of(body)
    (count,) = map(int, re.findall(r"each of these (\d+) testpoints", text))
    bits = [str(byte % 2) for byte in hashlib.sha256(json.dumps(body).encode()).digest()[:count]]
    stage.send(200, completion(f"<analysis>{['seen'] * count}</analysis><score>[{', '.join(bits)}]</score>"))


@pytest.mark.slow
def test_nothing_is_asked_twice(pipeline: Path, tmp_path: Path) -> None:
    prompts = data_file("unigenbench_test_prompts_en.csv")
    metrics, output = tmp_path / "metrics.yaml", tmp_path / "out"
    with playing(decides) as judge:
        endpoint = f"{{kind: endpoint, url: '{judge.url}', model: fake, concurrency: 4}}"
        metrics.write_text(f"fragment: true\nbenchmarks: {{unigenbench: {{judge: {endpoint}}}}}\n")
        command = [sys.executable, "-m", "flowrl", "eval", str(pipeline), "--metrics", str(metrics)]
        command += ["--benchmark", str(prompts), "--limit", str(NUM_PROMPTS), "--steps", "2", "--output", str(output)]
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(judge.bodies) < QUESTIONS // 2:
            assert first.poll() is None
            time.sleep(0.02)
        first.send_signal(signal.SIGTERM)
        first.wait(timeout=60)
        asked = len(judge.bodies)
        assert QUESTIONS // 2 <= asked < QUESTIONS
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
        times = Counter(json.dumps(body) for body in judge.bodies)
    twice = sum(count > 1 for count in times.values())
    print(f"\n{asked} questions before the kill, {len(judge.bodies) - asked} after it, asked twice: {twice}")
    assert len(times) == QUESTIONS
    assert set(times.values()) == {1}
    assert len(list((output / "unigenbench" / "images").glob("*.png"))) == QUESTIONS
    assert json.loads((output / "results.json").read_text())["benchmarks"]["unigenbench"]["coverage"] == 1
