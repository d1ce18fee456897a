"""Asks a judge about a folder of images, and keeps, counts and writes what it says."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from flowrl.errors import RunFailed, UserError
from flowrl.evaluation.results import MANIFEST, ImageRecord, read_manifest
from flowrl.evaluation.unigenbench.benchmark import Benchmark, BenchPrompt
from flowrl.evaluation.unigenbench.counts import count
from flowrl.evaluation.unigenbench.journal import Journal, Judged, Key, digest
from flowrl.evaluation.unigenbench.report import BenchResult, write
from flowrl.evaluation.unigenbench.wording import Wording
from flowrl.hub import sha256
from flowrl.interrupt import STOP_SIGNALS
from flowrl.protocols import Judge
from flowrl.types import Answer, Question

if TYPE_CHECKING:
    import PIL.Image

ANSWERS = "answers.jsonl"
OnFailure = Literal["skip", "fail"]
"""What becomes of an image without an answer that counts: it is left out and lowers the coverage, or it ends all."""
_SILENCE = 20
"""Tries in a row, of whichever images, that bring no answer at all: the judge is taken to be gone."""
_SILENCE_ABOUT_ONE = 3
"""The same for one image, which is then left to ``resume``. The judge has been patient each time already."""


@dataclass(frozen=True)
class Task:
    """One image to ask about, and what is asked."""

    prompt: BenchPrompt
    sample: int
    path: Path
    text: str
    key: Key


def evaluate(
    benchmark: Benchmark,
    images: Path,
    judge: Judge,
    output: Path,
    *,
    identity: Mapping[str, Any],
    wording: Wording,
    per_prompt: int = 4,
    resume: bool = False,
    max_retries: int = 10,
    on_failure: OnFailure = "skip",
    workers: int = 1,
    say: Callable[[str], None] = print,
) -> BenchResult:
    """Judges ``{index}_{j}.png``, j in 0..per_prompt-1, of every prompt in the folder ``images``.

    Where an evaluation's manifest lies beside that folder and names its files, it says which file shows which prompt,
    and a file that is not as it was drawn is refused.

    ``identity`` says exactly what the judge is (:meth:`flowrl.protocols.JudgeConfig.identity`). ``workers`` questions
    are asked at a time, each by its own call of ``judge.ask``; more than one wants a judge that bears it. An answer
    that cannot be read is asked for again, by the same question, up to ``max_retries`` times. An image that then has
    no answer that counts is left out (``on_failure: skip``) or ends everything (``fail``).

    Every image's answers are in ``output`` as soon as they are complete. ``resume`` asks only about images of which
    no answer is kept there for the same picture, question and judge, or which the judge could not be reached for.
    Raises UserError where images are missing or changed or ``output`` is in use, RunFailed where the judge stops
    answering, ``on_failure`` says so or the user interrupts; what was answered by then is kept.
    """
    tasks = _tasks(benchmark, images, wording, digest(identity), per_prompt)
    path = output / ANSWERS
    if path.exists() and not resume:
        raise UserError(f"--output {output} holds answers already; name another folder, or go on with them by --resume")
    with Journal(path) as journal:
        kept = journal.read()
        done = _Asking(judge, journal, max_retries, on_failure, say).ask(tasks, kept, workers)
    rows = [(task.prompt, done[task.key].reading(len(task.prompt.names))) for task in tasks]
    result = BenchResult(
        benchmark=benchmark,
        counts=count(rows, benchmark.language),
        identity=identity,
        wording=wording.identity,
        per_prompt=per_prompt,
        max_retries=max_retries,
        images=images,
        output=output,
    )
    write(result, rows, [done[task.key].text for task in tasks], [task.path for task in tasks])
    return result


def _tasks(benchmark: Benchmark, images: Path, wording: Wording, judge: str, per_prompt: int) -> list[Task]:
    """One per image, in the order of the benchmark."""
    drawn = _manifest(images)
    names = {(prompt.index, sample) for prompt in benchmark.prompts for sample in range(per_prompt)}
    missing = [
        f"{index}_{sample}.png"
        for index, sample in sorted(names)
        if (drawn and (index, sample) not in drawn) or not _image(images, index, sample).is_file()
    ]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UserError(
            f"{images} lacks {len(missing)} of {len(names)} images: {shown}; they are named INDEX_J.png, J from 0 to "
            f"{per_prompt - 1} (--per-prompt)"
        )
    tasks = []
    for prompt in benchmark.prompts:
        text = wording.render(prompt)
        for sample in range(per_prompt):
            path = _image(images, prompt.index, sample)
            key = Key(path.name, sha256(path), digest(text), judge)
            if drawn:
                _check_drawn(drawn[prompt.index, sample], prompt, path, key.image)
            tasks.append(Task(prompt, sample, path, text, key))
    return tasks


def _manifest(images: Path) -> dict[tuple[int, int], ImageRecord]:
    """The files of a folder by the manifest beside it; {} for a folder that no manifest speaks of."""
    folder = images.resolve().parent
    if not (folder / MANIFEST).is_file():
        return {}
    of_folder = (record for record in read_manifest(folder) if (folder / record.file).parent == images.resolve())
    return {record.key: record for record in of_folder}


def _check_drawn(record: ImageRecord, prompt: BenchPrompt, path: Path, digest_now: str) -> None:
    """Raise UserError where a file is not the one that the manifest binds to the prompt."""
    if Path(record.file).name != path.name or record.prompt != prompt.text:
        raise UserError(
            f"{path}: by the {MANIFEST} beside its folder {record.file} shows {record.prompt!r}, and prompt "
            f"{prompt.index} of the benchmark is {prompt.text!r}; name the prompts that were drawn"
        )
    if record.sha256 != digest_now:
        raise UserError(f"{path} has changed since it was drawn; draw it again with flowrl eval MODEL_OR_RUN")


def _image(images: Path, index: int, sample: int) -> Path:
    return images / f"{index}_{sample}.png"


class _Asking:
    """The judge's answers to a list of tasks, kept as they come."""

    def __init__(
        self, judge: Judge, journal: Journal, max_retries: int, on_failure: OnFailure, say: Callable[[str], None]
    ) -> None:
        self.judge, self.journal, self.max_retries, self.say = judge, journal, max_retries, say
        self.on_failure = on_failure
        self.over = threading.Event()
        """Set where nothing more is to be asked."""
        self.reason: str | None = None
        """Why, where it is no error of the program."""
        self.silence = 0

    def ask(self, tasks: Sequence[Task], kept: Mapping[Key, Judged], workers: int) -> dict[Key, Judged]:
        """Every task's answers, those in ``kept`` included. Raises RunFailed where not all could be had, UserError
        where a picture cannot be read."""
        done = {task.key: kept[task.key] for task in tasks if task.key in kept and self._is_final(task, kept[task.key])}
        if kept:
            self.say(f"{len(done)} of {len(tasks)} images are answered already")
        waiting = [(task, kept.get(task.key)) for task in tasks if task.key not in done]
        for task in tasks:
            if task.key in done:
                self._accept(task, done[task.key])
        with _on_signal(self._stop), ThreadPoolExecutor(workers, thread_name_prefix="unigenbench") as pool:
            try:
                for judged in _as_they_come(pool, self._one, waiting, 2 * workers):
                    if judged is not None:
                        done[judged.key] = judged
                        if len(done) % max(1, len(tasks) // 20) == 0 or len(done) == len(tasks):
                            self.say(f"{len(done)} of {len(tasks)} images answered")
            finally:
                self.over.set()
        if self.reason is not None:
            raise RunFailed(f"{self.reason}; what was answered is in {self.journal.path}: go on by --resume")
        return done

    def _one(self, task: Task, before: Judged | None) -> Judged | None:
        """Asks about an image until an answer can be read, or enough were not. None where all is over before that.

        ``before``: what an earlier time left unfinished. What was answered is kept in any case.
        """
        if self.over.is_set():
            return None
        question = Question(_picture(task.path), task.text)
        answers = [answer for answer in before.answers if answer.text is not None] if before else []
        judged = Judged(task.key, tuple(answers))
        while not (self.over.is_set() or self._is_enough(task, judged)):
            answers += self.judge.ask([question])
            self._listen(answers[-1])
            judged = Judged(task.key, tuple(answers))
        is_enough = self._is_enough(task, judged)
        if is_enough or judged.text is not None:
            reading = judged.reading(len(task.prompt.names))
            values = {"index": task.prompt.index, "sample": task.sample, "testpoints": list(task.prompt.names)}
            self.journal.add(judged, values | {"outcome": reading.outcome, "passed": reading.passed})
        if is_enough:
            self._accept(task, judged)
        return judged if is_enough else None

    def _accept(self, task: Task, judged: Judged) -> None:
        """Ends everything where an image is left without an answer that counts and that is not to be borne."""
        outcome = judged.reading(len(task.prompt.names)).outcome
        if self.on_failure == "fail" and outcome != "counted":
            last = judged.answers[-1].error or f"the last of {len(judged.answers)} is {outcome}"
            self._stop(f"{task.key.file} has no answer that counts ({last}), and on_failure is fail")

    def _is_final(self, task: Task, judged: Judged) -> bool:
        """Whether asking again, another time, would be asking twice."""
        return judged.is_final(len(task.prompt.names), self.max_retries)

    def _is_enough(self, task: Task, judged: Judged) -> bool:
        """Whether the image is left alone for this time."""
        if not judged.answers:
            return False
        recent = judged.answers[-_SILENCE_ABOUT_ONE:]
        is_silent = len(recent) == _SILENCE_ABOUT_ONE and all(answer.text is None for answer in recent)
        return is_silent or len(judged.answers) > self.max_retries or self._is_final(task, judged)

    def _listen(self, answer: Answer) -> None:
        """Ends everything where the judge has been silent for long."""
        self.silence = 0 if answer.text is not None else self.silence + 1
        if self.silence >= _SILENCE:
            self._stop(f"the judge has not answered {self.silence} times in a row ({answer.error})")

    def _stop(self, reason: str) -> None:
        if not self.over.is_set():
            self.reason = reason
            self.over.set()


@contextmanager
def _on_signal(stop: Callable[[str], None]) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM stop in good order; once more they end the process at once, which loses nothing kept.

    A KeyboardInterrupt would not do: raised while the pool starts a thread, it leaves one that nobody waits for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def handle(number: int, frame: FrameType | None) -> None:
        for other in STOP_SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: waiting for the answers that are on their way; once more ends at once\n".encode())
        stop(f"stopped by {name}")

    for number in STOP_SIGNALS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            # None: a handler that was not installed from Python and cannot be put back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _picture(path: Path) -> PIL.Image.Image:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable picture: {error}") from error


def _as_they_come(
    pool: ThreadPoolExecutor,
    work: Callable[[Task, Judged | None], Judged | None],
    tasks: Sequence[tuple[Task, Judged | None]],
    ahead: int,
) -> Iterator[Judged | None]:
    """The results of ``work``, at most ``ahead`` tasks being handed out at a time."""
    waiting = iter(tasks)
    running: set[Future[Judged | None]] = set()
    while True:
        running |= {pool.submit(work, *task) for task in islice(waiting, ahead - len(running))}
        if not running:
            return
        finished, running = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            yield future.result()
