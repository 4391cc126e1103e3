"""Stock Megatron-LM trains as transformers does: the same weights, text, optimizer and schedule, the same losses."""

from pathlib import Path

import pytest
import torch

from ascend_patch.checkpoint.convert import Options, convert
from ascend_patch.checkpoint.dtypes import dtype_name
from tests.system_tests import bits, hugging_face, real_text, recorded, reference
from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import tiny
from tests.system_tests.report import Compared

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("logits")]  # that of the server

SMALL = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": real_text.VOCABULARY}
SHAPES = {"mixtral": hugging_face.MIXTRAL | SMALL, "mistral": hugging_face.MISTRAL_V01 | SMALL}
LIMITS = {torch.float32: (1e-5, 1e-3), torch.bfloat16: (1e-2, 1e-2)}
"""Relative differences of the loss that are allowed in the first iteration, and in any."""


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("mixtral", torch.float32),
        pytest.param("mixtral", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("mistral", torch.float32, marks=pytest.mark.slow),
        pytest.param("mistral", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_transformers_trains_the_same(
    server: Server, tmp_path: Path, compared: Compared, name: str, dtype: torch.dtype
) -> None:
    shape, training = SHAPES[name], reference.Training()
    hugging_face.untrained_model(**shape).save_pretrained(tmp_path / "hf")
    convert(Options(tmp_path / "hf", tmp_path / "megatron", ckpt_format="torch", make_vocab_size_divisible_by=1))
    own = {"load": tmp_path / "megatron", "finetune": True, "bf16": dtype == torch.bfloat16}
    events = {"tensorboard_dir": tmp_path / "events", "tensorboard_log_interval": 1, "data_cache_path": tmp_path}
    same = training.flags("num_local_experts" in shape)
    flags = hugging_face.megatron_arguments(shape) | real_text.flags() | same | own | events
    server.run(Path(recorded.__file__), [tmp_path / "samples", *tiny(**flags)]).succeeded()

    samples = torch.load(tmp_path / "samples")[: training.iterations * training.global_batch]
    expected = list(reference.train(tmp_path / "hf", samples, training, dtype))
    logged = bits.numbers(tmp_path / "events", "lm loss")
    assert sorted(logged) == list(range(1, training.iterations + 1))
    found = [logged[i] for i in sorted(logged)]
    assert found[-1] < found[0] - 1  # it learns
    compared.losses(
        f"Megatron-LM and transformers, {name.title()}, {dtype_name(dtype)}, {training.iterations} iterations",
        ("Megatron-LM", found),
        ("transformers", expected),
        *LIMITS[dtype],
    )
