import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from flowrl import atomic, checkpoint
from flowrl.checkpoint import Damaged, State

FILES = [checkpoint.MANIFEST, checkpoint.PARAMETERS, checkpoint.EMA, checkpoint.MOMENTS, checkpoint.OPTIMIZER]


def make_state(iteration: int = 10, with_ema: bool = True) -> State:
    """The state of a small module after one step of AdamW under a schedule."""
    torch.manual_seed(iteration)
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    return State(
        iteration=iteration,
        seed=42,
        parameters=dict(module.named_parameters()),
        ema={name: 0.5 * value.detach() for name, value in module.named_parameters()} if with_ema else None,
        optimizer=optimizer.state_dict(),
        scheduler=scheduler.state_dict(),
        recipe={"name": "G2RPO", "lr": 2e-6, "strides": [1, 2, 3], "clip": None},
        digest="abc123",
    )


def saved(folder: Path, *iterations: int) -> list[Path]:
    return [checkpoint.save(folder, make_state(iteration), keep=100) for iteration in iterations]


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = make_state()
    path = checkpoint.save(tmp_path / "checkpoints", state, keep=1)
    assert path.name == "iteration_000010"
    loaded = checkpoint.load(path)
    for name in ("iteration", "seed", "recipe", "digest", "scheduler"):
        assert getattr(loaded, name) == getattr(state, name)
    assert loaded.ema is not None
    assert state.ema is not None
    for mine, theirs in ((state.parameters, loaded.parameters), (state.ema, loaded.ema)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert loaded.optimizer["param_groups"] == state.optimizer["param_groups"]
    for index, moments in state.optimizer["state"].items():
        assert all(torch.equal(moments[name], loaded.optimizer["state"][index][name]) for name in moments)


def test_without_ema_there_is_no_file_of_it(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, make_state(with_ema=False), keep=1)
    assert not (path / checkpoint.EMA).exists()
    assert checkpoint.newest(tmp_path).path == path
    assert checkpoint.load(path).ema is None


def test_views_bfloat16_and_transposed_parameters_are_saved(tmp_path: Path) -> None:
    flat = torch.arange(12.0)
    parameters = {
        "first": flat[:6].view(2, 3),
        "second": flat[6:],
        "half": torch.ones(3, dtype=torch.bfloat16),
        "transposed": torch.arange(6.0).view(2, 3).T,
        "scalar": torch.tensor(2.0),
    }
    path = checkpoint.save(tmp_path, replace(make_state(), parameters=parameters), keep=1)
    loaded = checkpoint.load(path).parameters
    assert all(
        torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype for name, value in parameters.items()
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10),
        lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 4]),
        lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer),
                torch.optim.lr_scheduler.ConstantLR(optimizer),
            ],
            milestones=[3],
        ),
    ],
    ids=["cosine", "multistep", "sequential"],
)
def test_schedules_come_back(tmp_path: Path, make: Callable) -> None:
    optimizer = torch.optim.AdamW(nn.Linear(1, 1).parameters(), lr=1e-3)
    scheduler = make(optimizer)
    state = replace(make_state(), optimizer=optimizer.state_dict(), scheduler=scheduler.state_dict())
    loaded = checkpoint.load(checkpoint.save(tmp_path, state, keep=1))
    scheduler.load_state_dict(dict(loaded.scheduler))


def test_keys_that_json_turns_into_strings_do_not_break_the_checksum(tmp_path: Path) -> None:
    state = replace(make_state(), recipe={"fanout": {2: 1, 10: 1}, "strides": (1, 2)})
    path = checkpoint.save(tmp_path, state, keep=1)
    assert checkpoint.newest(tmp_path).path == path
    assert checkpoint.load(path).recipe == {"fanout": {"2": 1, "10": 1}, "strides": [1, 2]}


def test_an_empty_or_missing_folder_holds_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) == checkpoint.Found(None)
    assert checkpoint.newest(tmp_path / "missing") == checkpoint.Found(None)


def test_newest_goes_by_number_and_not_by_time_or_spelling(tmp_path: Path) -> None:
    saved(tmp_path, 999_999, 1_000_000, 20)
    assert checkpoint.newest(tmp_path) == checkpoint.Found(tmp_path / "iteration_1000000")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named_and_the_one_before_used(tmp_path: Path, name: str, part: float) -> None:
    older, newer = saved(tmp_path, 5, 10)
    whole = (newer / name).read_bytes()
    (newer / name).write_bytes(whole[: int(part * len(whole))])
    found = checkpoint.newest(tmp_path)
    assert found.path == older
    assert len(found.skipped) == 1
    assert found.skipped[0].startswith(f"iteration_000010: {name} is ")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0.01, 0.3, 0.6, 0.9])
def test_a_flipped_bit_is_found(tmp_path: Path, name: str, part: float) -> None:
    older, newer = saved(tmp_path, 5, 10)
    content = bytearray((newer / name).read_bytes())
    content[int(part * len(content))] ^= 1
    (newer / name).write_bytes(content)
    found = checkpoint.newest(tmp_path)
    assert found.path == older
    assert name in found.skipped[0]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    older, newer = saved(tmp_path, 5, 10)
    (newer / name).unlink()
    found = checkpoint.newest(tmp_path)
    assert found.path == older
    assert f"{name} is missing" in found.skipped[0]


def test_several_damaged_ones_are_named_newest_first(tmp_path: Path) -> None:
    first, second, third = saved(tmp_path, 1, 2, 3)
    (third / checkpoint.MANIFEST).unlink()
    (second / checkpoint.PARAMETERS).unlink()
    found = checkpoint.newest(tmp_path)
    assert found.path == first
    assert [reason.split(":")[0] for reason in found.skipped] == ["iteration_000003", "iteration_000002"]
    (first / checkpoint.OPTIMIZER).unlink()
    assert checkpoint.newest(tmp_path).path is None


def test_a_renamed_checkpoint_is_refused(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 5)
    path.rename(tmp_path / "iteration_000099")
    assert "is of iteration 5" in checkpoint.newest(tmp_path).skipped[0]


def test_a_crash_before_the_rename_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (older,) = saved(tmp_path, 5)

    def crash(*_: object) -> None:
        raise SystemExit

    # A killed process runs no clean-up either, hence the second patch.
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    real_replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: crash() if "iteration" in Path(b).name else real_replace(a, b))
    with pytest.raises(SystemExit):
        checkpoint.save(tmp_path, make_state(10), keep=1)
    monkeypatch.undo()

    assert any(path.name.startswith(atomic.LEFTOVER) for path in tmp_path.iterdir())
    assert checkpoint.newest(tmp_path) == checkpoint.Found(older)
    newer = checkpoint.save(tmp_path, make_state(10), keep=2)
    assert set(tmp_path.iterdir()) == {older, newer}


def test_a_full_disk_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (older,) = saved(tmp_path, 5)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, make_state(10), keep=1)
    assert list(tmp_path.iterdir()) == [older]


def test_keep_deletes_the_oldest_after_the_new_one_is_in_place(tmp_path: Path) -> None:
    for iteration in (1, 2, 3, 4):
        checkpoint.save(tmp_path, make_state(iteration), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iteration_000003", "iteration_000004"]
    with pytest.raises(ValueError, match="at least 1"):
        checkpoint.save(tmp_path, make_state(5), keep=0)


def test_an_interrupted_deletion_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1, 2)

    def crash(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, **kw: crash() if "iteration_000001" in str(path) else None)
        with pytest.raises(SystemExit):
            checkpoint.save(tmp_path, make_state(3), keep=2)
    assert not (tmp_path / "iteration_000001").exists()
    assert checkpoint.newest(tmp_path) == checkpoint.Found(tmp_path / "iteration_000003")
    checkpoint.save(tmp_path, make_state(4), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iteration_000003", "iteration_000004"]


def test_damaged_ones_do_not_count_as_kept(tmp_path: Path) -> None:
    oldest, damaged, future = saved(tmp_path, 1, 2, 9)
    (damaged / checkpoint.PARAMETERS).unlink()
    (future / checkpoint.PARAMETERS).unlink()
    newer = checkpoint.save(tmp_path, make_state(3), keep=2)
    assert set(tmp_path.iterdir()) == {oldest, newer, future}
    assert checkpoint.newest(tmp_path).path == newer


def test_a_damaged_one_is_replaced_when_the_run_reaches_it(tmp_path: Path) -> None:
    _, damaged = saved(tmp_path, 1, 2)
    (damaged / checkpoint.PARAMETERS).write_bytes(b"")
    checkpoint.save(tmp_path, make_state(2), keep=5)
    assert checkpoint.newest(tmp_path) == checkpoint.Found(damaged)


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "iteration_7").mkdir()
    checkpoint.save(tmp_path, make_state(10), keep=1)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "iteration_7", "iteration_000010"}


def test_the_manifest_says_what_it_is_of(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 10)
    manifest = checkpoint.read_manifest(path)
    assert manifest["iteration"] == 10
    assert manifest["recipe"]["strides"] == [1, 2, 3]
    assert set(manifest["files"]) == set(FILES) - {checkpoint.MANIFEST}
    with pytest.raises(Damaged, match="missing"):
        checkpoint.read_manifest(tmp_path / "iteration_000011")


def test_optimizer_state_cannot_run_code(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "executed"),))

    (path,) = saved(tmp_path, 1)
    torch.save({"optimizer": Payload(), "scheduler": {}}, path / checkpoint.OPTIMIZER)
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoint.load(path)
    assert not (tmp_path / "executed").exists()
