"""The files of docs/launch: accelerate's own loader and launcher read them; they ask for what their names say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import final_parameters, run, write_recipe

from flowrl import parallel
from flowrl.parallel import Sharding

LAUNCH = Path(__file__).parents[1] / "docs" / "launch"
CONFIGS = sorted((LAUNCH / "accelerate").glob("*.yaml"))
EXPECTED = {
    "gpu_1": (1, 1, None),
    "ddp_4": (4, 1, None),
    "ddp_8": (8, 1, None),
    "ddp_2x8": (16, 2, None),
    "fsdp_4": (4, 1, Sharding()),
    "fsdp_8": (8, 1, Sharding()),
    "fsdp_2x8": (16, 2, Sharding(replicas=2)),
}
"""Processes, machines, and how the model is sharded."""


def test_there_is_a_file_for_each() -> None:
    assert {path.stem for path in CONFIGS} == EXPECTED.keys()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_them_and_flowrl_does_as_they_say(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    processes, machines, sharding = EXPECTED[path.stem]
    config = load_config_from_file(str(path))
    assert (config.num_processes, config.num_machines) == (processes, machines)
    where = ["--machine_rank", "0", "--main_process_ip", "node0", "--main_process_port", "29500"]
    arguments = ["--config_file", str(path), *(where if machines > 1 else []), "-m", "flowrl", "train", "g2rpo"]
    parsed, *_ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    parsed.num_processes = processes  # it has looked at the GPUs that there are here
    for name, value in prepare_multi_gpu_env(parsed).items():
        if name.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_")):
            monkeypatch.setenv(name, value)
    assert parallel.sharding("auto") == sharding


SRUN = """#!{python}
import os, subprocess, sys
command = sys.argv[sys.argv.index("bash"):]
tasks = [
    subprocess.Popen(command, env=os.environ | {{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}})
    for rank in range(int(os.environ["SLURM_NTASKS"]))
]
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.mark.slow
def test_the_slurm_script_runs_and_goes_on(tmp_path: Path) -> None:
    """With stand-ins for Slurm's commands, on two processes, submitted twice."""
    tools = tmp_path / "bin"
    tools.mkdir()
    programs = {
        "srun": SRUN.format(python=sys.executable),
        "scontrol": "#!/bin/sh\necho localhost\n",
        "flowrl": f'#!/bin/sh\nexec {sys.executable} -m flowrl "$@"\n',
    }
    for name, text in programs.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "here", "SLURM_NNODES": "1", "SLURM_NTASKS": "2"}
    env = os.environ | slurm | {"PATH": f"{tools}:{os.environ['PATH']}", "MODEL": "", "OMP_NUM_THREADS": "1"}
    recipe = write_recipe(tmp_path / "recipe")
    command = [str(LAUNCH / "slurm.sh"), str(recipe), str(tmp_path / "out"), "run.iterations=2"]
    for _ in range(2):
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
        command[-1] = "run.iterations=3"
    files = os.listdir(tmp_path / "out" / "checkpoints" / "iteration_000003")
    assert "parameters-00002-of-00002.safetensors" in files
    run(recipe, tmp_path / "alone", "run.iterations=3")
    one, two = final_parameters(tmp_path / "alone"), final_parameters(tmp_path / "out")
    assert all((one[name] - two[name]).abs().max() < 0.05 * 1e-3 for name in one)


@pytest.mark.slow
def test_torchrun_starts_it_too(tmp_path: Path) -> None:
    """As accelerate launch does on GPUs, whose variables are set here by hand: without GPUs it starts no several."""
    recipe = write_recipe(tmp_path / "recipe")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "flowrl", "train"]
    env = os.environ | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "OMP_NUM_THREADS": "1"}
    command += [str(recipe), "--output", str(tmp_path / "out"), "--stop-after", "1"]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    files = os.listdir(tmp_path / "out" / "checkpoints" / "iteration_000001")
    assert "parameters-00002-of-00002.safetensors" in files
