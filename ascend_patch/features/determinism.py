"""``--deterministic-mode`` on every release and device, and ``ASCEND_PATCH_DETERMINISTIC`` in its place.

Upstream's flag knows NCCL and TransformerEngine. Here it also sets what CANN and HCCL read, and before 0.19 it does
what it does from 0.19 on: it fills in ``NCCL_ALGO`` and allows flash attention. Attention of ascend_patch is
deterministic with ``torch.use_deterministic_algorithms``, which the mode switches on.
"""

from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path

from ascend_patch import determinism, manifest
from ascend_patch.config import Config, rank
from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.engine.patch import Patch

#: Parsed arguments that upstream's mode does not go with, and their flags.
_EXCLUDED = {"cross_entropy_loss_fusion": "--cross-entropy-loss-fusion", "tp_comm_overlap": "--tp-comm-overlap"}


def validate_args(original: Callable, with_upstreams_checks: bool = True) -> Callable:
    """Enable deterministic computing where the flag or the variable asks for it, then validate as upstream does.

    Rank 0 of such a run writes a manifest into the folder of ``--save``.

    Args:
        with_upstreams_checks: whether upstream may see the flag while it validates.
    """

    @wraps(original)
    def validate(args, *rest, **kwargs):
        args.deterministic_mode = args.deterministic_mode or Config.from_environment().deterministic
        if not args.deterministic_mode:
            return original(args, *rest, **kwargs)
        excluded = [flag for name, flag in _EXCLUDED.items() if getattr(args, name, False)]
        if excluded:
            raise AscendPatchError(
                f"--deterministic-mode (or ASCEND_PATCH_DETERMINISTIC) was asked for together with "
                f"{' and '.join(excluded)}, whose results are not repeated bit by bit. Leave out one of them."
            )
        determinism.enable()
        args.deterministic_mode = with_upstreams_checks
        validated = original(args, *rest, **kwargs)
        args.deterministic_mode = True
        if rank() == 0 and args.save:
            manifest.write(Path(args.save), vars(args))
        return validated

    return validate


without_upstreams_checks = partial(validate_args, with_upstreams_checks=False)

_patch = partial(
    Patch,
    id="determinism.arguments",
    target="megatron.training.arguments:validate_args",
    mode="wrap",
    reason="Upstream's mode knows nothing of CANN and HCCL. Before 0.19 it refuses --use-flash-attn, and leaves "
    "NCCL_ALGO to the user.",
    remove_when="upstream's mode prepares the environment of Ascend.",
)

PATCHES = (
    _patch(impl="ascend_patch.features.determinism:validate_args", upstream=">=0.19,<0.20"),
    _patch(impl="ascend_patch.features.determinism:without_upstreams_checks", upstream=">=0.17,<0.19"),
)
