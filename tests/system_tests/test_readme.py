"""The README's way from downloaded weights to training and back, command by command as it stands there."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch

from tests.system_tests.launcher import ROOT, environment, run

TITLE = "## From downloaded weights and back"
NEEDED = ("tools", "examples", "docs")


def commands() -> str:
    """The block of commands below :data:`TITLE`."""
    section = (ROOT / "README.md").read_text().partition(TITLE)[2]
    found = re.search(r"^```bash\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"README.md has no block of commands below {TITLE!r}")
    return found[1]


@pytest.mark.timeout(600)
def test_there_and_back(tmp_path: Path) -> None:
    # Not in the repository: the commands make folders where they run.
    script = "\n".join(
        ["set -e", *(f"ln -s {ROOT}/{name} ." for name in NEEDED), commands(), f"mv model_from_hf ckpt {tmp_path}"]
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    job = run(["bash", "-c", script], environment(PATH=path, HF_HUB_OFFLINE="1"), timeout=540).succeeded()
    assert "all 127 tensors are what conversion.json says" in job.output  # 4 layers of 31, embedding, norm and head

    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = AutoModelForCausalLM.from_pretrained(tmp_path / "model_from_hf/Mixtral-tiny")
    folder = tmp_path / "model_from_hf/Mixtral-tiny/mg2hg"
    after, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert after.dtype == torch.bfloat16
    ids = tokenizer((ROOT / "docs" / "operators.md").read_text(), return_tensors="pt").input_ids[:, :128]
    with torch.no_grad():
        losses = [model(ids, labels=ids).loss.item() for model in (before, after)]
    assert losses[1] < losses[0] - 0.5  # ten iterations on this very text
