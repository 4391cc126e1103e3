"""The real text of `make train`, in Mixtral's own tokens, as the arguments of a training job."""

import fcntl
from functools import cache

from tests.system_tests.launcher import ROOT
from tools.train.corpus import prepare_dataset, prepare_tokenizer

DATA = ROOT / "data"
VOCABULARY = 32000


@cache
def flags() -> dict[str, object]:
    """For :func:`mixtral.tiny`; the text is fetched on first use."""
    DATA.mkdir(exist_ok=True)
    with (DATA / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker of pytest may be preparing it
        prefix, tokenizer = prepare_dataset(DATA).prefix, prepare_tokenizer(DATA)
    return {
        "mock_data": False,
        "data_path": prefix,
        "split": "98,1,1",
        "num_workers": 0,
        "vocab_size": False,
        "tokenizer_type": "HuggingFaceTokenizer",
        "tokenizer_model": tokenizer,
        "make_vocab_size_divisible_by": 1,
    }
