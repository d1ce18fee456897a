"""Runs of two processes, by DDP and FSDP: what one process would have done, in step whatever happens to one of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from policies.tiny_flux import build_pipeline
from policies.tiny_sd3 import build_pipeline as build_sd3
from ranks import Case, results, run_cases
from runs import final_parameters, run, write_recipe

from flowrl import checkpoint, parallel
from flowrl.errors import UserError
from flowrl.recipe import load_recipe
from flowrl.shards import is_cut
from flowrl.tracking import read_rows

LR = 1e-3
FSDP = ("run.parallel=fsdp",)
AUTO = ("run.microbatch=auto", "model.gradient_checkpointing=auto")
UNEVEN = {"1": ("rollout.max_batch=3",)}
"""Rank 1 needs several times as many forwards for its rollout."""
PROMPTS = 3
"""Of an iteration; two processes take two each, the last of which counts for nothing."""

SETTINGS = {
    "rollout": {"prompts": PROMPTS},
    "run": {"iterations": 4, "checkpoint_every": 1},
    "data": {"test": None},
    "evaluation": {"scorers": {}},
}
SMALL = SETTINGS | {
    "rollout": {"prompts": PROMPTS, "group": 2},
    "run": {"iterations": 3, "checkpoint_every": 1},
    "grid": {"num_steps": 4},
}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of a small net, with and without a reference, with a reward that fails for one prompt; and of a small FLUX."""
    root = tmp_path_factory.mktemp("recipes")
    flux = {
        "kind": "flux",
        "source": str(build_pipeline(root / "pipeline")),
        "cache_dir": str(root / "cache"),
        "gradient_checkpointing": True,
    }
    lora = {"rank": 2, "alpha": 4, "targets": ["attn.to_q", "attn.to_out.0"]}
    broken = {"a": {"kind": "tiny", "broken_at": [5]}}
    beta = {"kind": "ppo_clip", "clip": 1e-2, "beta": 0.5}
    return {
        "net": write_recipe(root / "net", **SETTINGS),
        "reference": write_recipe(root / "reference", loss=beta, **SETTINGS),
        "broken": write_recipe(root / "broken", rewards=broken, **SETTINGS),
        "flux": write_recipe(root / "flux", model=flux, **SMALL),
        "lora": write_recipe(root / "lora", model=flux | {"lora": lora}, **SMALL),
    }


@pytest.fixture(scope="module")
def alone(recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs by one process."""
    root = tmp_path_factory.mktemp("alone")
    for name in ("net", "reference", "flux", "lora"):
        run(recipes[name], root / name, stop_after=3)
    run(recipes["broken"], root / "broken", "run.non_finite=skip_group", stop_after=3)
    run(recipes["flux"], root / "bf16", "run.precision=bf16", stop_after=1)
    run(recipes["net"], root / "began", stop_after=1)
    return root


@pytest.fixture(scope="module")
def two(recipes: dict[str, Path], alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of two processes."""
    root = tmp_path_factory.mktemp("two")
    net, skip = str(recipes["net"]), "run.non_finite=skip_group"
    shutil.copytree(alone / "began", root / "one_to_two")
    run_cases(
        root,
        [
            Case("ddp", net, by_rank=UNEVEN),
            Case("fsdp", net, FSDP, by_rank=UNEVEN),
            Case("reference", str(recipes["reference"]), FSDP, by_rank=UNEVEN),
            Case("flux", str(recipes["flux"]), FSDP, by_rank=UNEVEN),
            Case("lora", str(recipes["lora"]), FSDP, by_rank=UNEVEN),
            Case("bf16", str(recipes["flux"]), (*FSDP, *AUTO, "run.precision=bf16"), by_rank=UNEVEN),
            Case("one_to_two", net, FSDP, options={"resume": True, "stop_after": 3}),
            Case("to_one", net, FSDP, options={"stop_after": 2}),
            Case("to_ddp", net, FSDP, options={"stop_after": 1}),
            Case("then_ddp", net, (), "to_ddp", options={"resume": True, "stop_after": 3}),
            Case("fsdp_disk_full", net, FSDP, full_disk=2),
            *(
                case
                for kind, how in (("ddp", ()), ("fsdp", FSDP))
                for case in (
                    Case(f"{kind}_skips", str(recipes["broken"]), (*how, skip)),
                    Case(f"{kind}_reward_fails", str(recipes["broken"]), how),
                    Case(f"{kind}_loss_fails", net, how, poison=2),
                    Case(f"{kind}_loss_skipped", net, (*how, skip), poison=2),
                )
            ),
        ],
        processes=2,
    )
    return root


def assert_same(one: Path, other: Path, within: float = 0.05 * LR) -> None:
    a, b = final_parameters(one), final_parameters(other)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=within)


def rows_of(output: Path) -> list[dict]:
    return [row for row in read_rows(output) if "reward" in row]


@pytest.mark.parametrize(
    ("name", "same"), [("ddp", "net"), ("fsdp", "net"), ("reference", "reference"), ("flux", "flux"), ("lora", "lora")]
)
def test_two_processes_are_one(two: Path, alone: Path, name: str, same: str) -> None:
    ranks = results(two, name, 2)
    assert [rank["error"] for rank in ranks] == [None, None]
    assert [rank["sharded"] for rank in ranks] == [name != "ddp"] * 2
    assert ranks[1]["batches"][0] > 2 * ranks[0]["batches"][0], "no collective waits for the other's rollout"
    assert_same(alone / same, two / name)
    for x, y in zip(rows_of(alone / same), rows_of(two / name), strict=True):
        assert y["reward"] == pytest.approx(x["reward"], rel=1e-5)
        assert y["grad_norm"] == pytest.approx(x["grad_norm"], rel=1e-3)
        assert y["kl"] == pytest.approx(x["kl"], rel=1e-3, abs=1e-9)
    if name == "reference":
        assert rows_of(two / name)[-1]["kl"] > 0


def test_bf16_forwards_start_at_ratio_one(two: Path, alone: Path) -> None:
    """The self-check passes, and the gradient is that of one process under autocast, up to bfloat16."""
    assert [rank["error"] for rank in results(two, "bf16", 2)] == [None, None]
    one, two_ = rows_of(alone / "bf16")[0], rows_of(two / "bf16")[0]
    assert two_["self_check"] < 5e-2
    assert two_["reward"] == pytest.approx(one["reward"], rel=1e-2)
    assert two_["grad_norm"] == pytest.approx(one["grad_norm"], rel=5e-2)
    assert all(value.dtype == torch.float32 for value in final_parameters(two / "bf16").values())


def test_a_run_goes_on_by_other_numbers_of_processes(
    two: Path, alone: Path, recipes: dict[str, Path], tmp_path: Path
) -> None:
    """One to two, two to one, and from FSDP to DDP: parameters, average and moments are all taken over."""
    for name in ("one_to_two", "to_one", "to_ddp", "then_ddp"):
        assert [rank["error"] for rank in results(two, name, 2)] == [None, None]
    shutil.copytree(two / "to_one", tmp_path / "to_one")
    run(recipes["net"], tmp_path / "to_one", resume=True, stop_after=3)
    for output in (two / "one_to_two", tmp_path / "to_one", two / "to_ddp"):
        assert_same(alone / "net", output)
        one, other = (
            checkpoint.load(checkpoint.newest(folder / "checkpoints").path) for folder in (alone / "net", output)
        )
        for name in one.ema:
            torch.testing.assert_close(one.ema[name], other.ema[name], rtol=0, atol=0.05 * LR)
        for index, moments in one.optimizer["state"].items():
            assert moments["step"] == other.optimizer["state"][index]["step"] == 6
            theirs = other.optimizer["state"][index]["exp_avg"]
            torch.testing.assert_close(theirs, moments["exp_avg"], rtol=1e-3, atol=1e-5)


def test_a_sharded_checkpoint_is_of_all_processes_and_damage_is_named(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two / "fsdp" / "checkpoints", tmp_path / "checkpoints")
    path = checkpoint.newest(tmp_path / "checkpoints").path
    names = [
        f"{stem}-0000{rank}-of-00002.safetensors" for stem in ("ema", "optimizer", "parameters") for rank in (1, 2)
    ]
    assert sorted(checkpoint.read_manifest(path)["files"]) == sorted([*names, "optimizer.pt"])
    (path / names[3]).unlink()
    found = checkpoint.newest(tmp_path / "checkpoints")
    assert f"{path.name}: {names[3]} is missing" in found.skipped
    assert found.path.name == "iteration_000002"


@pytest.mark.parametrize("name", ["flux", "bf16", "lora"])
def test_what_is_exported_is_whole_and_loads_in_diffusers(two: Path, recipes: dict[str, Path], name: str) -> None:
    from diffusers import FluxPipeline, FluxTransformer2DModel

    state = checkpoint.load(checkpoint.newest(two / name / "checkpoints").path)
    for weights, expected in (("weights", state.parameters), ("weights_ema", state.ema)):
        folder = two / name / weights
        if name == "lora":
            pipeline = FluxPipeline.from_pretrained(recipes["lora"].parent.parent / "pipeline")
            pipeline.load_lora_weights(folder)
            found = dict(pipeline.transformer.named_parameters())
            found = {key.replace("default_0", "default"): value for key, value in found.items()}
        else:
            assert '"FluxTransformer2DModel"' in (folder / "transformer" / "config.json").read_text()
            found = dict(FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer").named_parameters())
        for key, value in expected.items():
            assert torch.equal(found[key].float(), value)


# ---- in step


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_group_that_one_process_skips_is_skipped_by_all(two: Path, alone: Path, kind: str) -> None:
    assert [rank["error"] for rank in results(two, f"{kind}_skips", 2)] == [None, None]
    assert_same(alone / "broken", two / f"{kind}_skips")
    skipped = [[row["skipped_groups"] for row in rows_of(out)] for out in (alone / "broken", two / f"{kind}_skips")]
    assert skipped[0] == skipped[1]
    assert sum(skipped[0]) > 0


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_reward_that_fails_on_one_process_stops_all_alike(two: Path, kind: str) -> None:
    first, second = (rank["error"] for rank in results(two, f"{kind}_reward_fails", 2))
    assert first.startswith("RunFailed: iteration ")
    assert "has no valid value" in first
    assert first == second


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_loss_that_is_nan_on_one_process_stops_all_alike(two: Path, kind: str) -> None:
    first, second = (rank["error"] for rank in results(two, f"{kind}_loss_fails", 2))
    assert first.startswith("RunFailed: iteration 2: the loss is nan")
    assert first == second
    assert "State after iteration 1 is kept" in first
    assert checkpoint.newest(two / f"{kind}_loss_fails" / "checkpoints").path.name == "iteration_000001"


def test_a_disk_that_is_full_for_one_process_stops_all_alike(two: Path) -> None:
    first, second = (rank["error"] for rank in results(two, "fsdp_disk_full", 2))
    assert first.startswith("RunFailed: the state after iteration 2 cannot be written: process 1: ")
    assert first == second
    assert [path.name for path in (two / "fsdp_disk_full" / "checkpoints").iterdir()] == ["iteration_000001"]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_loss_that_is_nan_on_one_process_is_skipped_by_all(two: Path, kind: str) -> None:
    assert [rank["error"] for rank in results(two, f"{kind}_loss_skipped", 2)] == [None, None]
    assert [row["skipped_updates"] for row in rows_of(two / f"{kind}_loss_skipped")] == [0, 2, 0]
    final = final_parameters(two / f"{kind}_loss_skipped")
    assert all(value.isfinite().all() for value in final.values())


@pytest.mark.slow
def test_three_processes_are_one(alone: Path, recipes: dict[str, Path], tmp_path: Path) -> None:
    """Weights of which some process has no row, prompts that no number divides, two forwards a velocity."""
    model = {"kind": "sd3", "source": str(build_sd3(tmp_path / "pipeline")), "cache_dir": str(tmp_path / "cache")}
    sd3 = write_recipe(tmp_path / "sd3_recipe", model=model, **SMALL)
    five = ("rollout.prompts=5",)
    run(recipes["net"], tmp_path / "alone", *five, stop_after=3)
    run_cases(
        tmp_path,
        [
            Case("three", str(recipes["net"]), (*FSDP, *five), by_rank={"2": ("rollout.max_batch=3",)}),
            Case("ddp", str(recipes["net"]), five),
            Case("flux", str(recipes["flux"]), FSDP),
            Case("sd3", str(sd3), FSDP),
        ],
        processes=3,
    )
    run(sd3, tmp_path / "alone_sd3")
    same_as = {"three": tmp_path / "alone", "ddp": tmp_path / "alone", "flux": alone / "flux"}
    for name, same in (same_as | {"sd3": tmp_path / "alone_sd3"}).items():
        assert [rank["error"] for rank in results(tmp_path, name, 3)] == [None] * 3
        assert_same(same, tmp_path / name)


@pytest.mark.slow
def test_replicas_of_shards_are_one(alone: Path, recipes: dict[str, Path], tmp_path: Path) -> None:
    """Two replicas of two shards each: gradients are averaged over both, and one of the two is stored."""
    hybrid = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_USE_PARALLELISM_CONFIG": "true"}
    hybrid |= {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"}
    one_site = ("run.microbatch=1",)
    run_cases(tmp_path, [Case("four", str(recipes["net"]), one_site)], processes=4, environment=hybrid)
    assert [rank["error"] for rank in results(tmp_path, "four", 4)] == [None] * 4
    assert all(rank["sharded"] for rank in results(tmp_path, "four", 4))
    assert_same(alone / "net", tmp_path / "four")
    files = checkpoint.read_manifest(checkpoint.newest(tmp_path / "four" / "checkpoints").path)["files"]
    assert [name for name in files if name.startswith("parameters")] == [
        f"parameters-0000{rank}-of-00004.safetensors" for rank in (1, 2)
    ]


# ---- what is asked for


def environment(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def test_of_a_lora_the_factors_alone_are_collected(recipes: dict[str, Path], tmp_path: Path) -> None:
    """The base, 24 GB of FLUX.1-dev, is not saved: it stays where it is."""
    from safetensors.torch import load_file

    policy = load_recipe(recipes["lora"]).model.load(torch.device("cpu"))
    policy.save_pretrained(tmp_path / "before")
    main = SimpleNamespace(device=torch.device("cpu"), num_processes=1, mixed_precision="no", is_main_process=True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        layout = parallel.Sharded(policy, main, parallel.Sharding(), needs_reference=False)
        with layout.whole():
            for name, value in policy.module.state_dict().items():
                assert is_cut(value) == ("lora" not in name)
            policy.save_pretrained(tmp_path / "sharded")
    finally:
        dist.destroy_process_group()
    before, sharded = (load_file(path) for path in sorted(tmp_path.rglob("pytorch_lora_weights.safetensors")))
    assert before.keys() == sharded.keys()
    assert all(torch.equal(value, sharded[name]) for name, value in before.items())


def test_auto_is_what_accelerate_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parallel.sharding("auto") is None
    assert parallel.sharding("auto", large=True) == parallel.sharding("fsdp")
    assert parallel.sharding("ddp", large=True) is None
    assert parallel.sharding("fsdp").reshard_after_forward is True
    environment(monkeypatch, ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_RESHARD_AFTER_FORWARD="false")
    assert parallel.sharding("auto").reshard_after_forward is False
    assert parallel.sharding("fsdp").reshard_after_forward is False
    with pytest.raises(UserError, match="leave one of the two out"):
        parallel.sharding("ddp")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"FSDP_VERSION": "1"}, "set fsdp_version: 2"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params: true is not supported"),
        ({"FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "model.gradient_checkpointing: true"),
        ({"FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, "set TRANSFORMER_BASED_WRAP"),
    ],
)
def test_what_is_not_supported_is_said(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], said: str) -> None:
    environment(monkeypatch, ACCELERATE_USE_FSDP="true", **settings)
    with pytest.raises(UserError, match=said):
        parallel.sharding("auto")


def test_other_engines_and_too_few_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        environment(patch, ACCELERATE_USE_DEEPSPEED="true")
        with pytest.raises(UserError, match="DDP or FSDP2"):
            parallel._check_environment()
    environment(monkeypatch, LOCAL_WORLD_SIZE="4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="4 processes on this machine, which has 2 GPUs"):
        parallel._check_environment()
