"""examples/mixtral/pretrain_mixtral_tiny.sh, smaller still, as a user starts it."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from tests.system_tests import launcher, real_text
from tests.system_tests.launcher import ROOT, Run, environment, single_process

LAST, INTERVAL = 6, 2
"""The iterations of a run, and of those between two checkpoints."""
RESUMED = range(INTERVAL + 1, LAST + 1)
"""What is trained again after a crash that loses the second checkpoint; events before it may not have been written."""
COMMAND = ["bash", str(ROOT / "examples" / "mixtral" / "pretrain_mixtral_tiny.sh")]
SIZES = {
    "NUM_LAYERS": 2,
    "HIDDEN_SIZE": 64,
    "FFN_HIDDEN_SIZE": 96,
    "SEQ_LENGTH": 64,
    "MICRO_BATCH": 1,
    "GLOBAL_BATCH": 4,
    "EVAL_ITERS": 0,
    "NUM_WORKERS": 0,
    "TRAIN_ITERS": LAST,
    "SAVE_INTERVAL": INTERVAL,
}


def train(
    folder: Path,
    *arguments: object,
    watch: Callable[[str, int], object] | None = None,
    before: Sequence[str] = (),
    **changes: object,
) -> Run:
    """Run the script.

    Args:
        folder: for checkpoints and events; it goes on where it saved there.
        arguments: further ones for Megatron.
        watch: see :func:`launcher.run`.
        before: a command that starts the script.
        changes: of the script's variables.
    """
    return launcher.run([*before, *COMMAND, *map(str, arguments)], variables(folder, **changes), 240, watch)


def variables(save: Path, **changes: object) -> dict[str, str]:
    """The script's variables: deterministic computing, checkpoints and events in ``save``, two processes with EP2."""
    text = real_text.flags()
    own = {
        "DATA_PATH": text["data_path"],
        "TOKENIZER_MODEL": text["tokenizer_model"],
        "DATA_CACHE_PATH": save / "cache",
        "CKPT_SAVE_DIR": save,
        "TENSORBOARD_DIR": save / "events",
        "ASCEND_PATCH_DETERMINISTIC": 1,
        "MASTER_PORT": single_process()["MASTER_PORT"],
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": 1,
    }
    return environment(**{name: str(value) for name, value in {**SIZES, **own, **changes}.items()})


def ranks(agent: int) -> dict[int, psutil.Process]:
    """Rank -> process, of those that torchrun, which the script becomes, has started and not lost."""
    found = {}
    for process in psutil.Process(agent).children():
        try:
            rank = process.environ().get("RANK")
        except psutil.Error:
            continue  # it ended meanwhile
        if rank is not None:
            found[int(rank)] = process
    return found
