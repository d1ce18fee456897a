"""Where a model's files are looked for, and what is said where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowrl.errors import UserError
from flowrl.hub import in_worlds, locate_files, sha256


def test_a_folder_with_all_files_is_the_answer(tmp_path: Path) -> None:
    (tmp_path / "a.pt").touch()
    assert locate_files(str(tmp_path), ["a.pt"], what="reward x", world_folder="scorers/x") == tmp_path


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{folder}", r"reward x: .* lacks a\.pt"),
        ("nobody/nothing", r"lacks a\.pt; fetch them with\n  hf download nobody/nothing a\.pt"),
        ("{folder}s", "neither an embedded world .* nor a folder, nor a hub id .*did you mean '{folder}'"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, source: str, said: str) -> None:
    with pytest.raises(UserError, match=said.format(folder=tmp_path)):
        locate_files(source.format(folder=tmp_path), ["a.pt"], what="reward x", world_folder="scorers/x")


def test_worlds_are_found_by_what_they_hold() -> None:
    assert in_worlds("pipeline/model_index.json")["shapes"].is_file()
    assert not in_worlds("no such thing")


def test_sha256_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
