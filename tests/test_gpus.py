"""Several GPUs, by NCCL: what test_parallel.py shows on CPUs. Run: python -m pytest -m gpu tests/test_gpus.py"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from policies.tiny_flux import build_pipeline
from ranks import Case, results, run_cases
from runs import final_parameters, run, start, write_recipe

from flowrl.tracking import read_rows

LR = 1e-3
FSDP = ("run.parallel=fsdp",)
COMPILED = ("model.compile=blocks", "model.gradient_checkpointing=0.5")
SLOWER = {"1": ("rollout.max_batch=3",)}
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("recipes")
    flux = {"kind": "flux", "source": str(build_pipeline(root / "pipeline")), "cache_dir": str(root / "cache")}
    lora = {"rank": 2, "alpha": 4, "targets": ["attn.to_q", "attn.to_out.0"]}
    settings = {
        "rollout": {"prompts": 3, "group": 2},
        "run": {"iterations": 3, "checkpoint_every": 1},
        "grid": {"num_steps": 4},
        "data": {"test": None},
        "evaluation": {"scorers": {}},
        "loss": {"kind": "ppo_clip", "clip": 1e-2, "beta": 0.5},
    }
    return {
        "flux": write_recipe(root / "flux", model=flux | {"gradient_checkpointing": True}, **settings),
        "lora": write_recipe(root / "lora", model=flux | {"lora": lora}, **settings),
    }


@pytest.fixture(scope="module")
def two(recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    flux, lora, bf16 = str(recipes["flux"]), str(recipes["lora"]), "run.precision=bf16"
    run_cases(
        root,
        [
            Case("ddp", lora, by_rank=SLOWER),
            Case("fsdp", flux, FSDP, by_rank=SLOWER),
            Case("fsdp_lora", lora, FSDP, by_rank=SLOWER),
            Case("ddp_bf16", flux, (bf16,), by_rank=SLOWER),
            Case("fsdp_bf16", flux, (*FSDP, bf16), by_rank=SLOWER),
            Case("fsdp_compiled", flux, (*FSDP, *COMPILED), by_rank=SLOWER),
            Case("fails", flux, FSDP, poison=2),
        ],
        processes=2,
        environment={"NVIDIA_TF32_OVERRIDE": "0"},
    )
    return root


@pytest.mark.parametrize(("name", "same"), [("ddp", "lora"), ("fsdp", "flux"), ("fsdp_lora", "lora")])
def test_two_gpus_are_one(
    two: Path, recipes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, same: str
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # it rounds the VAE's images by the batch's size
    assert [rank["error"] for rank in results(two, name, 2)] == [None, None]
    run(recipes[same], tmp_path / "alone")
    one, other = final_parameters(tmp_path / "alone"), final_parameters(two / name)
    for key in one:
        torch.testing.assert_close(other[key], one[key], rtol=0, atol=0.05 * LR)


def test_compiled_blocks_are_sharded_and_recomputed(two: Path) -> None:
    assert [rank["error"] for rank in results(two, "fsdp_compiled", 2)] == [None, None]
    compiled, plain = (read_rows(two / name)[0] for name in ("fsdp_compiled", "fsdp"))
    assert compiled["self_check"] < 1e-3
    assert compiled["reward"] == pytest.approx(plain["reward"], rel=1e-3)
    assert compiled["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-2)


def test_bf16_is_the_same_whole_and_sharded(two: Path) -> None:
    whole, sharded = (read_rows(two / name)[0] for name in ("ddp_bf16", "fsdp_bf16"))
    assert sharded["self_check"] < 5e-2
    assert sharded["reward"] == pytest.approx(whole["reward"], rel=1e-2)
    assert sharded["grad_norm"] == pytest.approx(whole["grad_norm"], rel=5e-2)


def test_all_fail_alike(two: Path) -> None:
    first, second = (rank["error"] for rank in results(two, "fails", 2))
    assert first == second
    assert "the loss is nan" in first


def test_one_gpu_goes_on_with_what_two_have_saved(two: Path, recipes: dict[str, Path]) -> None:
    assert run(recipes["flux"], two / "fsdp", "run.iterations=4", resume=True).finished


def test_each_process_has_a_gpu_of_its_own(recipes: dict[str, Path], tmp_path: Path) -> None:
    process = start(recipes["flux"], tmp_path / "out", "--processes", "2", "run.parallel=fsdp", "--stop-after", "1")
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    too_many = str(torch.cuda.device_count() + 1)
    process = start(recipes["flux"], tmp_path / "many", "--processes", too_many)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 2
    assert "every process needs one of its own" in printed


def test_accelerate_launch_starts_it(recipes: dict[str, Path], tmp_path: Path) -> None:
    config = Path(__file__).parents[1] / "docs" / "launch" / "accelerate" / "fsdp_4.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
    command += ["-m", "flowrl", "train", str(recipes["flux"]), "--output", str(tmp_path / "out"), "--stop-after", "1"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    files = [path.name for path in (tmp_path / "out" / "checkpoints" / "iteration_000001").iterdir()]
    assert "parameters-00002-of-00002.safetensors" in files
