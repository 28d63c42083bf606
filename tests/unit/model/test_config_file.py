import json
from pathlib import Path
from typing import Any

import pytest

from model.config_file import load_config, parse_config
from model.errors import ConfigError
from tests.conftest import GOLDEN


@pytest.fixture
def real() -> dict[str, Any]:
    """The real checkpoint's config, distillation off."""
    fields: dict[str, Any] = json.loads((GOLDEN / "real_config_distil.json").read_text())
    return {k: v for k, v in fields.items() if k not in ("cfg_distilled", "use_meanflow")}


def test_the_real_config_is_read_with_its_per_layer_lists(real: dict[str, Any]) -> None:
    config = parse_config(real)
    assert (config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim) == (
        4096,
        32,
        8,
        128,
    )
    assert len(config.layers) == 32
    assert {(m.num_experts, m.experts_per_token, m.expert_width) for m in config.layers} == {
        (64, 8, 3072)
    }
    assert (config.image_base_size, config.patch_hidden_size) == (1024, 1024)


def test_plain_numbers_stand_for_all_layers(real: dict[str, Any]) -> None:
    plain = {**real, "moe_topk": 8, "moe_intermediate_size": 3072, "num_shared_expert": 1}
    assert parse_config(plain) == parse_config(real)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "gelu"),
        ("norm_type", "layer"),
        ("routed_scaling_factor", 2.5),
        ("n_group", 8),
        ("use_mla", True),
        ("tie_word_embeddings", True),
        ("patch_size", 2),
        ("rope_scaling", {"type": "custom", "alpha": 1000.0}),
        ("a_field_from_the_future", 3),
        ("num_attention_heads", 30),
        ("moe_topk", 65),
        ("moe_topk", [8, 8]),
        ("vocab_size", "many"),
        ("vae", None),
        ("vae_downsample_factor", [8, 8]),
    ],
)
def test_a_field_that_changes_the_mathematics_is_refused_by_name(
    real: dict[str, Any], field: str, value: object
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({**real, field: value})
    named = {"num_attention_heads": "heads", "vae": "vae"}.get(field, field)
    assert named in str(caught.value)


def test_a_vae_field_from_the_future_is_refused(real: dict[str, Any]) -> None:
    vae = {**real["vae"], "causal": True}
    with pytest.raises(ConfigError, match="causal"):
        parse_config({**real, "vae": vae})


@pytest.mark.parametrize("value", [None, False, 0, "", []])
def test_an_unknown_field_that_is_not_set_changes_nothing(
    real: dict[str, Any], value: object
) -> None:
    assert parse_config({**real, "a_field_from_the_future": value}) == parse_config(real)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\ud800"])
def test_an_unreadable_config_is_one_sentence_naming_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_config(tmp_path)


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path)
