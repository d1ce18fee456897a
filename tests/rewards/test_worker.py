"""A scorer in a process of its own: answers, and one clear error for all that a child can do wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from flowrl.errors import RunFailed, UserError
from flowrl.protocols import ScorerConfig
from flowrl.rewards.worker import Worker, WorkerScorer, packed
from flowrl.types import Prompt

CPU = torch.device("cpu")
BRIGHTNESS = """
    def score(images, prompts):
        return [image.array().mean() / 255 * float(prompt) for image, prompt in zip(images, prompts)]
"""


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(text, index) for index, text in enumerate(texts)]


@pytest.fixture
def worker(tmp_path: Path):
    """Starts a scorer whose child runs the body of ``load(options, device)``."""
    running: list[WorkerScorer] = []

    def start(body: str, **fields) -> WorkerScorer:
        script = tmp_path / "toy.py"
        script.write_text(
            f"import os, sys, time\nfrom flowrl_worker import serve\n\ndef load(options, device):{body}\n"
        )
        with script.open("a") as file:
            file.write("    return score\n\nserve(load, packages=['numpy', 'no_such_package'])\n")
        config = ScorerConfig.model_validate({"kind": "worker", "script": str(script), "start_timeout": 120} | fields)
        running.append(config.load(CPU))
        return running[-1]

    yield start
    for scorer in running:
        scorer.close()


def ends(pid: int, seconds: float = 5) -> bool:
    """Whether a process that is not ours to wait for ends."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_scores_pictures_of_a_policy_in_batches(worker) -> None:
    scorer = worker(BRIGHTNESS, batch_size=2)
    images = torch.stack([torch.full((3, 8, 6), value) for value in (0.0, 0.2, 1.0, torch.nan, 0.6)])
    values, valid, parts = scorer.score(images, prompts("1", "1", "2", "1", "1"))
    assert valid.tolist() == [True, True, True, False, True]
    torch.testing.assert_close(values, torch.tensor([0.0, 0.2, 2.0, 0.0, 0.6]))
    assert not parts
    assert scorer.process.identity["python"] == sys.version.split()[0]
    assert set(scorer.process.identity["packages"]) == {"numpy", "no_such_package"}
    assert scorer.process.identity["packages"]["no_such_package"] is None


def test_options_and_device_reach_the_child(worker) -> None:
    scorer = worker(
        "\n    def score(images, prompts): return [options['x'][1] + len(device)]\n", options={"x": [1, 2.5]}
    )
    assert scorer.score(torch.zeros(1, 3, 4, 4), prompts("")).values.tolist() == [5.5]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK", "F"])
def test_pictures_arrive_as_they_lie_in_files(mode: str) -> None:
    from flowrl.workers.flowrl_worker import Image as Received

    source = Image.frombytes("RGB", (7, 5), bytes(range(105)))
    if mode == "RGBA":
        source.putalpha(100)
    picture = source.convert("I").convert("I;16") if mode == "I;16" else source.convert(mode)
    received = Received(*packed(picture)).pil()
    expected = picture if mode not in ("CMYK", "F") else picture.convert("RGB")
    assert received.mode == expected.mode
    assert received.tobytes() == expected.tobytes()
    assert Received(*packed(picture)).array().shape == (5, 7, 3)


def test_a_palettes_transparency_arrives() -> None:
    from flowrl.workers.flowrl_worker import Image as Received

    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.info["transparency"] = 0
    assert Received(*packed(picture)).pil().convert("RGBA").getpixel((0, 0)) == (255, 0, 0, 0)


def test_what_cannot_be_judged_spares_the_others(worker, caplog) -> None:
    scorer = worker("""
    answers = {"nan": float("nan"), "none": None, "inf": float("inf")}
    def score(images, prompts):
        if "bad" in prompts:
            raise KeyError("no such thing")
        return [answers.get(prompt, 1.5) for prompt in prompts]
""")
    texts = ["good", "nan", "none", "bad", "inf", "bad"]
    values, valid, _ = scorer.score(torch.zeros(6, 3, 2, 2), prompts(*texts))
    assert valid.tolist() == [True, False, False, False, False, False]
    assert values.tolist() == [1.5, 0, 0, 0, 0, 0]
    scores, errors = scorer.answers(torch.zeros(6, 3, 2, 2), texts)
    assert scores == [1.5, None, None, None, None, None]
    bad = "KeyError: 'no such thing'"
    assert errors == [None, "the score is nan", "no score", bad, "the score is inf", bad]
    assert caplog.text.count("no such thing") == 1


def test_prints_do_not_disturb_the_channel(worker) -> None:
    scorer = worker("""
    print("loading")
    os.system("echo from a process of its own")
    def score(images, prompts):
        print("x" * 100_000, flush=True)
        sys.stdout.buffer.write(b"bytes")
        return [sys.stdin.read() == ""]
""")
    assert scorer.score(torch.zeros(1, 3, 2, 2), prompts("")).values.tolist() == [1.0]


def test_a_child_that_dies_is_started_again_once(worker, tmp_path: Path, caplog) -> None:
    scorer = worker("""
    def score(images, prompts):
        if not os.path.exists(prompts[0]):
            open(prompts[0], "w").close()
            print("out of memory", file=sys.stderr)
            os._exit(3)
        return [0.5]
""")
    first = scorer.process
    assert scorer.score(torch.zeros(1, 3, 2, 2), prompts(str(tmp_path / "tried"))).values.tolist() == [0.5]
    assert scorer.process is not first
    assert "exit code 3" in caplog.text
    assert "| out of memory" in caplog.text


def test_a_child_that_dies_twice_ends_the_run(worker, tmp_path: Path) -> None:
    scorer = worker("""
    open(options["log"], "a").write("started ")
    def score(images, prompts):
        import signal
        print("the last words", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGSEGV)
""", options={"log": str(tmp_path / "log")})  # fmt: skip
    with pytest.raises(RunFailed, match=r"toy.py ended with SIGSEGV while scoring 1 images(.|\n)*\| the last words"):
        scorer.score(torch.zeros(1, 3, 2, 2), prompts(""))
    assert (tmp_path / "log").read_text() == "started started "


def test_a_child_that_hangs_is_ended(worker) -> None:
    scorer = worker("\n    def score(images, prompts):\n        time.sleep(60)\n", timeout=0.3)
    started = time.monotonic()
    with pytest.raises(RunFailed, match=r"gave no answer in 0.3 s while scoring 2 images"):
        scorer.score(torch.zeros(2, 3, 2, 2), prompts("", ""))
    assert time.monotonic() - started < 10
    assert not scorer.process.alive


def test_a_child_that_does_not_read_is_ended(worker) -> None:
    scorer = worker(BRIGHTNESS, timeout=0.5)
    os.kill(scorer.process._child.pid, signal.SIGSTOP)
    stopped = scorer.process
    values = scorer.score(torch.ones(1, 3, 1024, 1024), prompts("1")).values  # more than a pipe holds
    assert values.tolist() == [1.0]
    assert not stopped.alive
    assert scorer.process is not stopped


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("b'hello, this is no frame'", "wrote garbage to the channel while scoring 1 images: b'hell'"),
        ("pack({'scores': [1.0], 'errors': [None]})[:9]", "gave no answer in 1 s"),
        ("HEAD.pack(MAGIC, 1 << 30, 0)", "a frame of 1073741824 bytes"),
        ("HEAD.pack(MAGIC, 3, 0) + b'{{{'", "wrote garbage to the channel"),
        ("pack({'scores': [1.0, 2.0], 'errors': [None, None]})", "answered garbage while scoring 1 images"),
        ("pack({'scores': [None], 'errors': [None]})", "answered garbage"),
        ("pack({'scores': ['1'], 'errors': [None]})", "answered garbage"),
        ("pack({})", "answered garbage"),
    ],
)
def test_garbage_is_an_error(worker, said: str, error: str) -> None:
    scorer = worker(f"""
    import flowrl_worker
    from flowrl_worker import HEAD, MAGIC, pack
    def score(images, prompts):
        flowrl_worker._channel.sink.write({said})
        flowrl_worker._channel.sink.flush()
        time.sleep(60)
""", timeout=1)  # fmt: skip
    with pytest.raises(RunFailed) as caught:
        scorer.score(torch.zeros(1, 3, 2, 2), prompts(""))
    assert error in str(caught.value)


def test_a_wrong_number_of_scores_is_an_error(worker) -> None:
    scorer = worker("\n    def score(images, prompts): return [1.0]\n")
    with pytest.raises(RunFailed, match=r"returned 1 scores for 3 images"):
        scorer.score(torch.zeros(3, 3, 2, 2), prompts("", "", ""))


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("\n    import no_such_package\n", r"failed while loading: ModuleNotFoundError(.|\n)*\| *ModuleNotFoundError"),
        ("\n    sys.exit(7)\n", r"ended with exit code 7 while loading"),
        ("\n    time.sleep(60)\n", r"gave no answer in 1 s while loading"),
        (
            "\n    import flowrl_worker\n    flowrl_worker.PROTOCOL = 99\n    score = None\n",
            r"speaks protocol 99, not 1",
        ),
    ],
)
def test_what_does_not_load_is_the_users_to_mend(worker, body: str, error: str) -> None:
    with pytest.raises(UserError, match=error):
        worker(body, start_timeout=1 if "sleep" in body else 60)


def test_a_script_that_never_serves_is_an_error(tmp_path: Path) -> None:
    script = tmp_path / "silent.py"
    script.write_text("print('done')")
    with pytest.raises(UserError, match=r"silent.py ended with exit code 0 while loading"):
        Worker(script=str(script)).load(CPU)


def test_a_busy_child_ends_with_its_parent(tmp_path: Path) -> None:
    script, pid = tmp_path / "toy.py", tmp_path / "pid"
    script.write_text(
        "import os, time\nfrom flowrl_worker import serve\ndef load(options, device):\n"
        "    open(options['pid'], 'w').write(str(os.getpid()))\n    time.sleep(60)\nserve(load)\n"
    )
    load = (
        "import sys; from flowrl.rewards.worker import Worker; Worker(script=sys.argv[1], options={'pid': sys.argv[2]})"
    )
    parent = subprocess.Popen([sys.executable, "-c", load + ".load('cpu')", str(script), str(pid)])
    deadline = time.monotonic() + 60
    while not pid.exists() or not pid.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert ends(int(pid.read_text()))


def test_closing_ends_what_the_child_started(worker) -> None:
    scorer = worker("""
    import subprocess
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    def score(images, prompts): return [other.pid]
""")
    pid = int(scorer.score(torch.zeros(1, 3, 2, 2), prompts("")).values.item())
    child = scorer.process._child
    scorer.close()
    assert child.poll() is not None
    assert ends(pid)
    assert scorer.score(torch.zeros(1, 3, 2, 2), prompts("")).valid.all()  # another one


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"script": "hpsv3"}, r"'hpsv3' is neither a file nor a shipped worker \(hpsv2, .*did you mean 'hpsv2'"),
        ({"script": __file__, "python": "hpsv"}, r"python 'hpsv' is neither .*did you mean 'hpsv2'"),
        ({"script": __file__, "python": "/no/such/python"}, r"neither an interpreter nor an environment"),
        ({"script": "hpsv2"}, r"environment hpsv2 .* is not built(.|\n)*flowrl scorers environments hpsv2"),
    ],
)
def test_what_is_missing_is_named_before_anything_starts(fields, error: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=error):
        Worker(**fields).check()


def test_a_file_that_is_no_interpreter_is_named(tmp_path: Path) -> None:
    script = tmp_path / "toy.py"
    script.write_text("")
    with pytest.raises(UserError, match=r"toy.py cannot be started: Permission denied"):
        Worker(script=str(script), python=str(script)).load(CPU)


ONLY_NAMED = "from flowrl_worker import serve\n\nserve(lambda options, device: 1 / 0, packages=['numpy', 'no_such'])\n"


def test_its_identity_names_what_it_reads(tmp_path: Path) -> None:
    script, weights = tmp_path / "toy.py", tmp_path / "weights.bin"
    script.write_text(ONLY_NAMED)
    weights.write_text("some")
    config = Worker(script=str(script), options={"weights": str(weights), "scale": 2})
    identity = config.identity()
    assert set(identity["files"]) == {str(script), str(weights)}
    assert identity["pins"] is None
    weights.write_text("other")
    assert config.identity()["files"] != identity["files"]


def test_its_identity_names_what_lies_in_folders(tmp_path: Path) -> None:
    script, model, vocabulary = tmp_path / "toy.py", tmp_path / "model", tmp_path / "vocabulary"
    script.write_text(ONLY_NAMED)
    seen = [model / "weights.bin", model / "text" / "config.json", vocabulary / "v.txt"]
    for file in (*seen, model / ".cache" / "note"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.name)
    options = {"model": f"local-dir:{model}", "more": [{"tokenizer_in": str(vocabulary)}], "empty": ""}
    config = Worker(script=str(script), options=options)
    before = config.identity()["files"]
    assert set(before) == {str(script), *map(str, seen)}
    (vocabulary / "v.txt").write_text("another vocabulary")
    after = config.identity()["files"]
    assert {name for name in after if after[name] != before[name]} == {str(vocabulary / "v.txt")}


def test_its_identity_has_the_versions_of_the_child(tmp_path: Path) -> None:
    from importlib.metadata import version

    script = tmp_path / "toy.py"
    script.write_text(ONLY_NAMED)
    found = Worker(script=str(script)).identity()["versions"]
    assert found == {"python": sys.version.split()[0], "packages": {"numpy": version("numpy"), "no_such": None}}
    script.write_text("raise RuntimeError('no such luck')")
    with pytest.raises(UserError, match=r"reward worker: toy.py ended with exit code 1(.|\n)*no such luck"):
        Worker(script=str(script)).identity()


def test_the_identity_of_a_shipped_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowrl.workers.environments.interpreter", lambda name: Path(sys.executable))
    identity = Worker(script="hpsv2").identity()
    assert "hpsv2==1.2.0" in identity["pins"]
    assert set(identity["versions"]["packages"]) == {"hpsv2", "torch", "torchvision", "pillow", "numpy"}


def test_the_documented_worker_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "scorers" / "worker.md").read_text()
    recipe, script = (
        re.findall(rf"^```{language}\n(.*?)^```$", page, re.M | re.S)[0] for language in ("yaml", "python")
    )
    (tmp_path / "sharpness.py").write_text(script)
    monkeypatch.chdir(tmp_path)
    fields = yaml.safe_load(recipe)["rewards"]["sharpness"] | {"python": sys.executable}
    fields.pop("weight")
    scorer = ScorerConfig.model_validate(fields).load(CPU)
    stripes = torch.zeros(3, 8, 8)
    stripes[:, :, 2::4] = stripes[:, :, 3::4] = 1  # black and white, two pixels wide each
    images = torch.stack([torch.zeros(3, 8, 8), stripes, stripes])
    values, valid, _ = scorer.score(images, prompts("plain", "stripes", ""))
    scorer.close()
    assert values.tolist() == [0, 255, 0]
    assert valid.tolist() == [True, True, False]
