"""The structure of the embedded pipeline, with random weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flowrl.worlds.shapes.parts import Sizes, assemble, build_pipeline
from flowrl.worlds.shapes.tokenizers import clip_tokenizer, t5_tokenizer

WORDS = ["A", "a", "an", "red", "circle", "circus", "left", "of", "the", "letters", "banana", "bananas"]

PLAIN_USE = """
import sys, json
from diffusers import FluxPipeline
pipe = FluxPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
image = pipe("a red circle", height=64, width=64, num_inference_steps=2, guidance_scale=3.5, max_sequence_length=32,
             output_type="pt").images
assert not any(name.split(".")[0] == "flowrl" for name in sys.modules)
print(json.dumps({"shape": list(image.shape), "sample_size": pipe.vae.config.sample_size}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assemble(tmp_path_factory.mktemp("pipeline"), WORDS)


@pytest.mark.parametrize("word", WORDS)
def test_each_word_is_one_token_in_both_tokenizers(word: str) -> None:
    assert len(t5_tokenizer(WORDS, 32)(word).input_ids) == 2  # the word and </s>
    assert len(clip_tokenizer(WORDS, 32)(word).input_ids) == 3  # start, the word, end


def test_text_outside_the_vocabulary_is_spelled_and_never_unknown() -> None:
    for tokenizer in (t5_tokenizer(WORDS, 32), clip_tokenizer(WORDS, 32)):
        ids = tokenizer('zebra, "XY"; 42!').input_ids
        assert tokenizer.unk_token_id not in ids[:-1]


def test_tokens_survive_saving(folder: Path) -> None:
    from transformers import CLIPTokenizer, T5TokenizerFast

    text = 'A red circus, left of "XY".'
    for name, tokenizer_class, built in (
        ("tokenizer", CLIPTokenizer, clip_tokenizer(WORDS, 32)),
        ("tokenizer_2", T5TokenizerFast, t5_tokenizer(WORDS, 32)),
    ):
        loaded = tokenizer_class.from_pretrained(folder / name)
        assert loaded.model_max_length == 32
        assert loaded(text).input_ids == built(text).input_ids


def test_plain_diffusers_loads_and_draws_without_this_package(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN_USE, str(folder)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"shape": [1, 3, 64, 64], "sample_size": 64}


def test_sizes_keep_their_promises(folder: Path) -> None:
    pipeline = build_pipeline(Sizes(), WORDS)
    count = {name: sum(p.numel() for p in getattr(pipeline, name).parameters()) for name in ("transformer", "vae")}
    assert 2e6 <= count["transformer"] <= 3e6
    assert count["vae"] <= 3e5
    assert (Sizes().latent_size // 2) ** 2 == 64  # image tokens
    assert sum(file.stat().st_size for file in folder.rglob("*.safetensors")) <= 12e6


def test_random_weights_depend_on_the_seed_alone() -> None:
    def weight(seed: int) -> float:
        return next(build_pipeline(Sizes(), WORDS, seed=seed).transformer.parameters()).double().sum().item()

    assert weight(1) == weight(1) != weight(2)
