import json
import os
from pathlib import Path

import pytest

from flowrl import atomic


def test_a_file_is_replaced_whole_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    atomic.write_json(path, {"a": 1})
    atomic.write_json(path, {"a": [1.5, "ü"]})
    assert json.loads(path.read_text()) == {"a": [1.5, "ü"]}
    assert os.listdir(tmp_path) == ["value.json"]


def test_a_failing_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "text"
    atomic.write_text(path, "old")

    def fail_midway() -> None:
        with atomic.replacing(path) as temporary:
            temporary.write_text("half of the ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["text"]


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        atomic.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not os.listdir(tmp_path)


def test_a_file_keeps_the_permissions_of_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    atomic.write_text(tmp_path / "atomic", "x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_replaces_the_older_one_with_its_content(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with atomic.new_folder(path) as temporary:
        (temporary / "old").write_text("1")
    with atomic.new_folder(path) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "new").write_text("2")
        assert (path / "old").exists()
    assert sorted(p.name for p in path.rglob("*")) == ["deep", "new"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_that_fails_to_fill_does_not_appear(tmp_path: Path) -> None:
    def fail_midway() -> None:
        with atomic.new_folder(tmp_path / "folder") as temporary:
            (temporary / "half").write_text("1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    assert not os.listdir(tmp_path)


def test_leftovers_are_removed_and_the_rest_stays(tmp_path: Path) -> None:
    (tmp_path / f"{atomic.LEFTOVER}1-file").write_text("x")
    (tmp_path / f"{atomic.LEFTOVER}2-folder").mkdir()
    (tmp_path / f"{atomic.LEFTOVER}2-folder" / "x").write_text("x")
    (tmp_path / "kept").write_text("x")
    atomic.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["kept"]
