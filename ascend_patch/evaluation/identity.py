"""Which model it is: what the results of an evaluation depend on, without reading all weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ascend_patch.checkpoint import megatron
from ascend_patch.data.tokenize import fingerprint
from ascend_patch.generation.model import weights_arguments

_ARGUMENTS = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels"),
    *(
        "num_experts",
        "moe_router_topk",
        "layernorm_epsilon",
        "rotary_base",
        "window_size",
        "params_dtype",
        "seq_length",
    ),
)


def identity(args: Any) -> dict[str, Any]:
    """The model of Megatron-LM's arguments, after its weights are loaded.

    The files of the checkpoint count with their names, sizes and times of change. The layout of the job does not
    count: an evaluation may go on in another.
    """
    iterations = [megatron.find(Path(getattr(args, name))) for name in weights_arguments(args)]
    files = [
        (str(file.relative_to(iteration)), stat.st_size, stat.st_mtime_ns)
        for iteration in iterations
        for file in sorted(iteration.rglob("*"))
        if file.is_file()
        for stat in [file.stat()]
    ]
    return {
        "checkpoint": " ".join(map(str, iterations)),
        "files": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        "tokenizer": fingerprint(Path(args.tokenizer_model)),
        **{name: _plain(getattr(args, name, None)) for name in _ARGUMENTS},
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else str(value)
