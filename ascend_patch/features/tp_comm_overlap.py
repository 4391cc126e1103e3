"""``--tp-comm-overlap``: tensor parallel communication during the matrix products that need it."""

import logging
from collections.abc import Callable
from functools import partial, wraps

from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import without_transformer_engine

logger = logging.getLogger(__name__)


def column_parallel_linear(original: Callable) -> Callable:
    """``ColumnParallelLinear._forward_impl``: all-gather and product as one operation."""

    @wraps(original)
    def forward_impl(self, input, weight, *args, **kwargs):
        from ascend_patch.modules.parallel_linear import column_parallel, overlaps

        if (
            kwargs["sequence_parallel"]
            and self.config.tp_comm_overlap_ag
            and kwargs["grad_output_buffer"] is None
            and overlaps(self, weight)
        ):
            return column_parallel(self, input, weight, kwargs["bias"])
        return original(self, input, weight, *args, **kwargs)

    return forward_impl


def row_parallel_linear(original: Callable) -> Callable:
    """``RowParallelLinear.forward``: product and reduce-scatter as one operation."""

    @wraps(original)
    def forward(self, input_):
        from ascend_patch.modules.parallel_linear import overlaps, row_parallel

        if (
            self.sequence_parallel
            and self.config.tp_comm_overlap_rs
            and self.input_is_parallel
            and not self.explicit_expert_comm
            and overlaps(self, self.weight)
        ):
            return row_parallel(self, input_)
        return original(self, input_)

    return forward


def initialize_tp_communicators() -> None:
    """Nothing: there are no user buffers to make. Says that their configuration is without effect."""
    from megatron.training.global_vars import get_args

    args = get_args()
    if args.tp_comm_overlap_cfg is not None and args.rank == 0:
        logger.warning(
            "--tp-comm-overlap-cfg %s is ignored: it lays out TransformerEngine's user buffers, and there are none.",
            args.tp_comm_overlap_cfg,
        )


_HERE = "ascend_patch.features.tp_comm_overlap"
_LAYERS = "megatron.core.tensor_parallel.layers"
_linear = partial(
    Patch,
    id="tp_comm_overlap.linear",
    mode="wrap",
    upstream=">=0.16.1,<0.20",
    reason=(
        "Upstream overlaps in TransformerEngine's layers alone: its own wait for the collective before or after each "
        "product of the forward pass."
    ),
    remove_when="upstream's own parallel layers overlap.",
    when=without_transformer_engine,
)

PATCHES = (
    _linear(target=f"{_LAYERS}:ColumnParallelLinear._forward_impl", impl=f"{_HERE}:column_parallel_linear"),
    _linear(target=f"{_LAYERS}:RowParallelLinear.forward", impl=f"{_HERE}:row_parallel_linear"),
    Patch(
        id="tp_comm_overlap.initialize",
        target="megatron.training.initialize:_initialize_tp_communicators",
        impl=f"{_HERE}:initialize_tp_communicators",
        mode="replace",
        upstream=">=0.17,<0.20",
        reason="Upstream refuses --tp-comm-overlap where TransformerEngine is missing.",
        remove_when="upstream makes user buffers only for layers that use them.",
        when=without_transformer_engine,
    ),
)
