"""Configurations that would run code of the checkpoint's own are refused before a library reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowrl.errors import UserError
from flowrl.foreign_code import refuse_auto_map, refuse_foreign_components, refuse_kernels


def written(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    "values",
    [
        {"attn_implementation": "someone/kernel"},
        {"text_config": {"_attn_implementation": "paged|someone/kernel@v1"}},
        {"layers": [{"experts_implementation": "someone/kernel"}]},
    ],
)
def test_kernels_out_of_a_repository(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: .*_implementation '.*someone/kernel.*' would run code"):
        refuse_kernels(written(tmp_path, values))


def test_what_a_configuration_may_say(tmp_path: Path) -> None:
    values = {"attn_implementation": "sdpa", "_name_or_path": "a/b", "auto_map": {"AutoModel": "evil.Model"}}
    assert refuse_kernels(written(tmp_path, values)) == values
    with pytest.raises(UserError, match=r"config\.json: auto_map names code"):
        refuse_auto_map(written(tmp_path, values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"_class_name": ["evil", "Pipeline"]}, "_class_name .* names code of the checkpoint's own"),
        ({"_class_name": "FluxPipeline", "vae": ["evil", "Vae"]}, "vae is a class of 'evil'"),
    ],
)
def test_components_of_a_pipeline(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        refuse_foreign_components(written(tmp_path, values))
    usual = {"_class_name": "FluxPipeline", "vae": ["diffusers", "AutoencoderKL"], "image_encoder": [None, None]}
    refuse_foreign_components(written(tmp_path, usual))
