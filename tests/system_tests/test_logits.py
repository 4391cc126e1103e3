"""The script that writes logits, on checkpoints that upstream wrote itself, so that its verdict on others counts.

The logits of a checkpoint do not depend on the layout that loads it, and a parameter that no checkpoint filled shows.
"""

from pathlib import Path

import pytest
import torch

from ascend_patch.run import BUNDLED
from tests.system_tests import hugging_face
from tests.system_tests.logits import compute
from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import EP2, PP2, TP2_PP2_EP2, tiny

pytestmark = pytest.mark.xdist_group("logits")

VOCABULARY = hugging_face.VOCABULARY
FLAGS = hugging_face.megatron_arguments(hugging_face.MIXTRAL)


@pytest.fixture(scope="module", params=["torch", "torch_dist"])
def saved(request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Flags that load a checkpoint of one training step."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    save = {"save": folder, "save_interval": 1, "train_iters": 1, "ckpt_format": request.param}
    server.run(BUNDLED, tiny(**FLAGS | save)).succeeded()
    return FLAGS | {"load": folder, "finetune": True, "ckpt_format": request.param}


def logits(server: Server, tokens: torch.Tensor, flags: dict, processes: int = 1) -> torch.Tensor:
    return compute(server, tokens, flags, processes)[..., :VOCABULARY]  # the padding depends on the layout


def test_logits_do_not_depend_on_the_layout(saved: dict, server: Server) -> None:
    tokens = hugging_face.random_tokens(VOCABULARY)
    reference = logits(server, tokens, saved)
    assert reference.isfinite().all() and reference.std() > 1e-3
    layouts = [(TP2_PP2_EP2, 8), (PP2 | {"num_layers_per_virtual_pipeline_stage": 1}, 2), (EP2, 2)]
    for changes, processes in layouts if saved["ckpt_format"] == "torch_dist" else [({}, 1)]:
        torch.testing.assert_close(logits(server, tokens, saved | changes, processes), reference, rtol=0, atol=1e-5)
    assert not torch.allclose(logits(server, tokens.roll(1), saved), reference, rtol=0, atol=1e-3)


@pytest.mark.parametrize("saved", ["torch"], indirect=True)
def test_what_a_checkpoint_lacks_is_nan(saved: dict, server: Server) -> None:
    """Here the norms, which have other names: upstream prints a line and goes on."""
    tokens = hugging_face.random_tokens(VOCABULARY)
    assert logits(server, tokens, saved | {"transformer_impl": "local"}).isnan().all()
