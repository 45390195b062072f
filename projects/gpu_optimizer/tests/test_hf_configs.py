"""A stranger's config.json is reduced to bounded numbers, from which a known model is built."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.model_files.hf_configs import parse_hf_config
from gpu_optimizer.model_files.hf_families import FAMILIES
from gpu_optimizer.models.hugging_face import build_hf_model

SMALL = {
    "llama": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 101},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97, "n_positions": 24},
    "bert": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "vocab_size": 97, "max_position_embeddings": 24},
    "vit": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": 36, "patch_size": 8, "num_labels": 7},
}  # fmt: skip
for _name in ("mistral", "qwen2", "qwen3"):
    SMALL[_name] = SMALL["llama"]

VARIANTS = [
    *((name, {}) for name in SMALL),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {"head_dim": 10, "architectures": ["LlamaModel"]}),
    ("qwen3", {"attention_bias": True, "head_dim": 24}),
    ("qwen2", {"num_key_value_heads": None, "use_sliding_window": True}),
    ("mistral", {"sliding_window": None}),
    ("gpt2", {"n_inner": 40, "tie_word_embeddings": False}),
    ("gpt2", {"architectures": ["GPT2Model"]}),
    ("bert", {"architectures": ["BertModel"]}),
    ("bert", {"architectures": ["BertForSequenceClassification"], "num_labels": 5}),
    ("bert", {"tie_word_embeddings": False}),
    ("vit", {"architectures": ["ViTModel"], "qkv_bias": False}),
]


def config(family: str = "llama", **changes: object) -> bytes:
    return json.dumps({"model_type": family, **SMALL[family], **changes}).encode()


@pytest.mark.parametrize(("model_type", "changes"), VARIANTS)
def test_parameters_in_closed_form_are_those_of_the_built_model(model_type, changes):
    spec = parse_hf_config(config(model_type, **changes), "c")
    with torch.device("meta"):
        built = build_hf_model(spec)
    assert {p.device.type for p in built.parameters()} == {"meta"}
    assert sum(p.numel() for p in built.parameters()) == spec.n_parameters


def test_a_config_keeps_only_its_table_and_names_what_it_dropped():
    spec = parse_hf_config(
        config(
            "qwen2",
            auto_map={"AutoModel": "evil.Model"},
            trust_remote_code=True,
            _name_or_path="../../etc/passwd",
            quantization_config={"quant_method": "evil"},
            architectures=["Evil"],
            torch_dtype="bfloat16",
            rope_theta=1e6,
        ),
        "c",
    )
    assert spec.dropped == (
        "auto_map", "trust_remote_code", "_name_or_path", "quantization_config",
    )  # fmt: skip
    assert (spec.architecture, spec.stored_dtype) == ("Qwen2ForCausalLM", "bfloat16")
    assert spec.notes == ("architecture Evil is read as Qwen2ForCausalLM",)
    assert "rope_theta" not in spec.config.model_dump()


def test_classes_are_counted_from_their_names():
    labels = {str(i): f"class {i}" for i in range(11)}
    text = json.dumps({"model_type": "vit", "id2label": labels}).encode()
    spec = parse_hf_config(text, "c")
    assert spec.config.model_dump()["num_labels"] == 11


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": True},
        {"hidden_size": "64"},
        {"hidden_size": 64.0},
        {"hidden_size": -64},
        {"hidden_size": 0},
        {"hidden_size": [64]},
        {"hidden_size": 10**18},
        {"num_hidden_layers": 10**6},
        {"num_attention_heads": 5},
        {"num_key_value_heads": 3},
        {"head_dim": 7},
        {"hidden_act": "__import__('os')"},
        {"attention_dropout": 1.5},
        {"attention_dropout": True},
        {"model_type": "evil"},
        {"model_type": ["llama"]},
        {"hidden_size": 262_144, "intermediate_size": 4_194_304, "num_hidden_layers": 2_000},
    ],
)
def test_a_config_out_of_bounds_is_refused(changes):
    with pytest.raises(InvalidModelError):
        parse_hf_config(config(**changes), "c")


@pytest.mark.parametrize(
    "text",
    [
        b'{"model_type": "llama", "attention_dropout": NaN}',
        b'{"model_type": "llama", "attention_dropout": 1e999}',
        b'{"model_type": "llama", "hidden_size": 1' + b"0" * 5000 + b"}",
        b'{"model_type": "llama", "model_type": "bert"}',
        b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
        b'{"a":' + b"[" * 200_000,
        b'{"a": "' + b'\\"' * 200_000,
        b"{" + b",".join(b'"%d":0' % i for i in range(200_000)) + b"}",
        b'{"model_type": "\xff"}',
        b"[]",
        b"{",
        b" " * (2 << 20) + b"{}",
    ],
)
def test_json_that_is_not_meant_well_is_refused(text):
    with pytest.raises(InvalidModelError):
        parse_hf_config(text, "c")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.integers(1, 300),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.sampled_from(sorted(FAMILIES)), st.data())
def test_mutated_configs_are_refused_or_bounded(model_type: str, data: st.DataObject):
    names = st.sampled_from(
        [*FAMILIES[model_type].model_fields, "auto_map", "architectures", "id2label", "dtype"]
    )
    changes = data.draw(st.dictionaries(names, VALUES, max_size=4))
    text = json.dumps({"model_type": model_type, **SMALL[model_type], **changes}).encode()
    try:
        spec = parse_hf_config(text, "c")
    except InvalidModelError:
        return
    assert 0 < spec.n_parameters <= 10**12
    assert spec.architecture in FAMILIES[model_type].architectures
