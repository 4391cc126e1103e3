"""`tools/preprocess_data.py` beside the script of unmodified checkouts. `make test-checkouts` runs these."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests import upstream
from tests.unit_tests.tools.conftest import sentencepiece_model, tokenizer_folder

pytestmark = pytest.mark.checkouts
__all__ = ["sentencepiece_model", "tokenizer_folder"]

PIECES = ["To be, or not to be", "  two  spaces", "\n\n", "你好 𓀀", "<s> is text </s>", "'tis", "é", "\t0123", " "]


def run(script: Path, environment: dict[str, str], *options: str) -> None:
    command = [sys.executable, str(script), *options, "--workers", "2"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("kind", ["HuggingFaceTokenizer", "Llama2Tokenizer"])
@pytest.mark.parametrize("end", [[], ["--append-eod"]], ids=["plain", "append_eod"])
def test_the_bytes_are_those_of_the_script(checkout, tokenizer_folder, tmp_path, kind, end):
    if checkout is None or not (checkout / "tools" / "preprocess_data.py").is_file():
        pytest.fail(f"{checkout} is no Megatron-LM checkout; name some with --megatron-path", pytrace=False)
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    print(f"seed {seed}")

    def text() -> str:
        return "".join(draw.choices(PIECES, k=draw.choice([0, 1, 9, 300])))

    records = [{"text": text(), "parts": [text() for _ in range(draw.randrange(3))]} for _ in range(100)]
    source = tmp_path / "my.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    model = tokenizer_folder if kind == "HuggingFaceTokenizer" else tokenizer_folder / "tokenizer.model"
    options = ["--input", str(source), "--tokenizer-type", kind, "--tokenizer-model", str(model), *end]
    options += ["--json-keys", "text", "parts"]
    theirs = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run(checkout / "tools" / "preprocess_data.py", theirs, *options, "--output-prefix", str(tmp_path / "theirs"))
    ours = upstream.environment(upstream.INSTALLED)
    run(upstream.ROOT / "tools" / "preprocess_data.py", ours, *options, "--output-prefix", str(tmp_path / "ours"))
    for name in ("text_document.bin", "text_document.idx", "parts_document.bin", "parts_document.idx"):
        assert (tmp_path / f"ours_{name}").read_bytes() == (tmp_path / f"theirs_{name}").read_bytes(), name
