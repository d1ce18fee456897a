"""`flowrl eval` and `flowrl compare` as they are typed."""

from __future__ import annotations

from typer.testing import CliRunner, Result
from workplace import Workplace

from flowrl.cli import app


def run(*argv: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in argv])


def test_two_evaluations_and_their_comparison(work: Workplace) -> None:
    options = ["--metrics", work.folder / "metrics.yaml", "--prompts", work.folder / "prompts.txt", "--steps", "2"]
    for name, seed in (("a", 0), ("b", 1)):
        output = work.folder / name
        done = run("eval", work.pipeline, *options, "--seed", seed, "--images-per-prompt", 2, "--output", output)
        assert done.exit_code == 0, done.output
        assert "| brightness " in done.stdout
    done = run("eval", "--stage", "table", "--output", work.folder / "a")
    assert done.exit_code == 0, done.output
    done = run("compare", work.folder / "a", work.folder / "b", "--output", work.folder / "a_b")
    assert done.exit_code == 0, done.output
    assert "| brightness " in done.stdout
    assert (work.folder / "a_b.md").is_file()
    assert (work.folder / "a_b.json").is_file()


def test_a_mistake_is_one_message(work: Workplace) -> None:
    for argv in (
        ["eval", "shape", "--output", work.output],
        ["eval", work.pipeline, "--metrics", "clap", "--output", work.output],
        ["eval", "--stage", "score", "--output", work.output],
        ["compare", work.folder, work.folder],
    ):
        done = run(*argv)
        assert done.exit_code == 2
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.output
    assert not work.output.exists()
