"""The commands of docs/finetune.md, one after the other as they stand there."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch

from tests.system_tests.launcher import ROOT, environment, run

SECTIONS = ("Full fine-tuning", "One script, 26 arguments")
NEEDED = ("tools", "examples", "docs")


def commands(section: str) -> str:
    """The block of commands in that section."""
    text = (ROOT / "docs" / "finetune.md").read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return block


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_full_fine_tuning(tmp_path: Path) -> None:
    # Not in the repository: the commands make folders where they run.
    script = ["set -e", *(f"ln -s {ROOT}/{name} ." for name in NEEDED), "mkdir model_from_hf ckpt"]
    script += [*(commands(section) for section in SECTIONS), f"mv model_from_hf ckpt {tmp_path}"]
    settings = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    job = run(["bash", "-c", "\n".join(script)], environment(**settings), timeout=1700).succeeded()
    assert "all 127 tensors are what conversion.json says" in job.output
    assert re.search("^18  AC +full +--recompute-granularity full", job.output, re.MULTILINE)
    found = [
        float(loss) for loss in re.findall(r"validation loss at iteration 20 on validation set .*?: (\S+)", job.output)
    ]
    assert len(found) == 2 and max(found) < 9  # of the two tunings; untrained it is ln(32000) = 10.4
    assert (tmp_path / "ckpt" / "positional" / "checkpoint" / "latest_checkpointed_iteration.txt").read_text() == "20"

    from transformers import AutoModelForCausalLM

    before, after = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "model_from_hf" / folder)
        for folder in ("Mixtral-tiny", "Mixtral-tiny/mg2hg")
    )
    assert not torch.equal(before.model.embed_tokens.weight, after.model.embed_tokens.weight)
