import csv
import json
import math
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

from flowrl import tracking
from flowrl.errors import UserError
from flowrl.tracking import Tracking, read_rows


def read_csv(output: Path) -> list[dict[str, str]]:
    with (output / tracking.CSV).open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_go_to_both_files(tmp_path: Path) -> None:
    with Tracking(tmp_path, trackers=()) as run:
        run.log(1, {"reward": 0.5, "forwards": 1700})
        run.log(2, {"reward": torch.tensor(0.25), "forwards": 1700})
    assert read_rows(tmp_path) == [
        {"iteration": 1, "reward": 0.5, "forwards": 1700},
        {"iteration": 2, "reward": 0.25, "forwards": 1700},
    ]
    assert (tmp_path / tracking.CSV).read_text() == "iteration,reward,forwards\n1,0.5,1700\n2,0.25,1700\n"


def test_a_row_is_on_the_disk_when_it_is_logged(tmp_path: Path) -> None:
    run = Tracking(tmp_path, trackers=())
    run.log(1, {"reward": 0.5})
    assert len(read_rows(tmp_path)) == len(read_csv(tmp_path)) == 1
    run.close()


def test_columns_may_grow(tmp_path: Path) -> None:
    with Tracking(tmp_path, trackers=()) as run:
        run.log(1, {"reward": 0.5})
        run.log(2, {"reward": 0.6, "gold": 0.7})
        run.log(2, {"note": "an evaluation, with a comma"})
        run.log(3, {"reward": 0.8})
    assert read_csv(tmp_path) == [
        {"iteration": "1", "reward": "0.5", "gold": "", "note": ""},
        {"iteration": "2", "reward": "0.6", "gold": "0.7", "note": ""},
        {"iteration": "2", "reward": "", "gold": "", "note": "an evaluation, with a comma"},
        {"iteration": "3", "reward": "0.8", "gold": "", "note": ""},
    ]


def test_what_is_not_finite_is_null_and_named(tmp_path: Path) -> None:
    with Tracking(tmp_path, trackers=()) as run:
        row = run.log(1, {"loss": math.nan, "ratio": torch.tensor(math.inf), "reward": 1.0})
        run.log(2, {"loss": 0.5, "reward": 1.0})
    assert row == {"iteration": 1, "loss": None, "ratio": None, "reward": 1.0, "non_finite": ["loss", "ratio"]}
    text = (tmp_path / tracking.JSONL).read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text.splitlines()[0]) == row
    assert read_csv(tmp_path)[0] == {
        "iteration": "1",
        "loss": "",
        "ratio": "",
        "reward": "1.0",
        "non_finite": "loss ratio",
    }
    assert read_csv(tmp_path)[1]["non_finite"] == ""


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    with Tracking(tmp_path, trackers=()) as run, pytest.raises(TypeError, match="'rewards' is a list"):
        run.log(1, {"rewards": [1.0]})


def test_resuming_cuts_back_to_the_checkpoint(tmp_path: Path) -> None:
    with Tracking(tmp_path, trackers=()) as run:
        for iteration in range(6):
            run.log(iteration, {"reward": iteration / 10, **({"late": 1} if iteration == 5 else {})})
    with Tracking(tmp_path, trackers=(), resumed_at=3) as run:
        assert [row["iteration"] for row in read_rows(tmp_path)] == [0, 1, 2, 3]
        assert [row["iteration"] for row in read_csv(tmp_path)] == ["0", "1", "2", "3"]
        assert "late" not in read_csv(tmp_path)[0]
        run.log(4, {"reward": 0.44})
    assert [row["reward"] for row in read_rows(tmp_path)] == [0.0, 0.1, 0.2, 0.3, 0.44]
    assert len(read_csv(tmp_path)) == 5


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    with Tracking(tmp_path, trackers=()) as run:
        run.log(1, {"reward": 0.5})
    with (tmp_path / tracking.JSONL).open("a") as file:
        file.write('{"iteration": 2, "rew')
    with Tracking(tmp_path, trackers=(), resumed_at=2) as run:
        run.log(2, {"reward": 0.6})
    assert [row["iteration"] for row in read_rows(tmp_path)] == [1, 2]


@pytest.mark.parametrize("line", ["{broken", "[1]", '{"reward": 1}', ""])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / tracking.JSONL).write_text('{"iteration": 1}\n' + line + '\n{"iteration": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: .*delete the line"):
        read_rows(tmp_path)


def test_starting_anew_forgets_what_was_there(tmp_path: Path) -> None:
    for reward in (0.1, 0.2):
        with Tracking(tmp_path, trackers=()) as run:
            run.log(1, {"reward": reward})
    assert [row["reward"] for row in read_rows(tmp_path)] == [0.2]


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    with Tracking(tmp_path / "run", is_main=False) as run:
        assert run.log(1, {"reward": 0.5}) == {"iteration": 1, "reward": 0.5}
        run.log_image(1, "samples", tmp_path / "missing.png")
    assert not (tmp_path / "run").exists()


def scalars(output: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    return [(event.step, round(event.value, 4)) for event in events.Scalars(tag)]


def test_tensorboard_shows_metrics_recipe_and_pictures_and_forgets_what_was_cut(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), "red").save(tmp_path / "grid.png")
    with Tracking(tmp_path, recipe={"name": "G2RPO"}) as run:
        for iteration in (1, 2, 3):
            run.log(iteration, {"reward": iteration / 10, "note": "text"})
        run.log_image(3, "samples", tmp_path / "grid.png")
    assert scalars(tmp_path, "reward") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    with Tracking(tmp_path, resumed_at=2, recipe={"name": "G2RPO"}) as run:
        run.log(3, {"reward": 0.9})
    assert scalars(tmp_path, "reward") == [(1, 0.1), (2, 0.2), (3, 0.9)]
    assert {path.is_file() for path in (tmp_path / "tensorboard").iterdir()} == {True}


def test_an_unknown_tracker_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown tracker 'tensorbord'; known: aim, .* did you mean 'tensorboard'\?"):
        Tracking(tmp_path, trackers=("tensorbord",))


def test_a_missing_package_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"'comet_ml' is not installed; install it with: pip install 'comet-ml'"):
        Tracking(tmp_path, trackers=("comet_ml",))


def test_the_known_trackers_are_accelerates() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert set(tracking.TRACKER_PACKAGES) == set(LOGGER_TYPE_TO_CLASS)


def test_a_resumed_run_keeps_its_name_at_the_service(tmp_path: Path) -> None:
    first = tracking._tracker_run(tmp_path, None)
    assert tracking._tracker_run(tmp_path, 5) == first
    assert tracking._tracker_run(tmp_path, None) != first


def test_importing_it_is_light() -> None:
    import subprocess

    code = "import sys, flowrl.tracking; sys.exit(any(name in sys.modules for name in ('torch', 'accelerate', 'rich')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class RecordingTracker:
    """Stands in for a service's tracker and keeps what it was given."""

    requires_logging_directory = False
    made: ClassVar[list["RecordingTracker"]] = []

    def __init__(self, project: str, **options: Any) -> None:
        self.project, self.options, self.finished = project, options, False
        self.logged: list[tuple[int, dict]] = []
        self.made.append(self)

    def start(self) -> None: ...

    def store_init_configuration(self, values: dict) -> None:
        self.settings = values

    def log(self, values: dict, step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_a_service_gets_settings_and_numbers_and_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", RecordingTracker)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    for resumed_at in (None, 1):
        with Tracking(tmp_path, resumed_at=resumed_at, trackers=("wandb",), recipe={"loss": {"clip": 0.1}}) as run:
            run.log(1, {"reward": 0.5, "note": "text", "nothing": None})
    first, second = RecordingTracker.made
    assert first.project == "flowrl"
    assert first.settings == {"loss.clip": 0.1}
    assert first.logged == [(1, {"reward": 0.5})]
    assert first.finished
    assert second.options == first.options
    assert first.options["resume"] == "allow"
