"""The shape of a model and its tensors are those of transformers, whose config.json is read and written."""

import json

import pytest
import safetensors
import torch
import transformers

from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.shape import ModelShape

MIXTRAL = ModelShape(2, 48, 40, 6, 2, 10, 37, 3, 2, rotary_base=12345.0, norm_epsilon=3e-6, sliding_window=7)
MISTRAL = ModelShape(3, 48, 40, 6, 3, 10, 37, rotary_base=1e4, max_position_embeddings=77, tied=True)


@pytest.mark.parametrize("shape", [MIXTRAL, MISTRAL], ids=["mixtral", "mistral"])
def test_transformers_saves_these_tensors_and_this_config(shape, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(shape.to_hf(torch.bfloat16)))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.dtype == torch.bfloat16
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "saved")
    with safetensors.safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert found == shape.tensors()
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert ModelShape.from_hf(saved) == shape


def test_config_of_transformers_4():
    """As the published models have it."""
    config = {
        "architectures": ["MixtralForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mixtral",
        "num_attention_heads": 32,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    }
    shape = ModelShape.from_hf(config)
    assert shape == ModelShape(32, 4096, 14336, 32, 8, 128, 32000, 8, 2)
    assert sum(torch.Size(size).numel() for size in shape.tensors().values()) == 46_702_792_704


def test_a_key_that_is_left_out_means_what_it_means_to_transformers():
    config = MISTRAL.to_hf(torch.float32)
    del config["sliding_window"], config["tie_word_embeddings"], config["max_position_embeddings"]
    theirs = transformers.MistralConfig.from_dict(config)
    ours = ModelShape.from_hf(config)
    assert (ours.sliding_window, ours.tied) == (theirs.sliding_window, theirs.tie_word_embeddings)
    assert ours.max_position_embeddings == theirs.max_position_embeddings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "describes LlamaForCausalLM .*'llama'"),
        ({"architectures": None, "model_type": "qwen3"}, "describes qwen3"),
        ({"architectures": ["MixtralForSequenceClassification"]}, "describes MixtralForSequenceClassification"),
        ({"model_type": "mistral"}, "describes MixtralForCausalLM .*'mistral'"),
        ({"num_key_value_heads": None}, "lacks num_key_value_heads"),
        ({"num_local_experts": None}, "lacks num_local_experts"),
        ({"rope_theta": None}, "neither rope_parameters nor rope_theta"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "of type 'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6}}, "of type 'llama3'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"num_key_value_heads": 4}, "6 attention heads cannot share 4"),
        ({"num_experts_per_tok": 4}, "4 of 3 experts"),
        ({"hidden_size": 0}, "hidden_size is 0, but must be a whole number, 1 or more"),
        ({"num_hidden_layers": 2.5}, "num_layers is 2.5"),
        ({"vocab_size": "37"}, "vocab_size is '37'"),
        ({"num_attention_heads": 0, "head_dim": None}, "there/config.json: "),
        ({"sliding_window": 0}, "sliding_window is 0"),
    ],
)
def test_other_models_are_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        ModelShape.from_hf({**MIXTRAL.to_hf(torch.float32), **change}, "there/config.json")
