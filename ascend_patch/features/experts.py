"""``--moe-grouped-gemm``: one grouped GEMM for all local experts instead of a loop over them."""

from collections.abc import Callable
from functools import partial, wraps

from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import without_transformer_engine


def grouped_mlp_modules(original: Callable) -> Callable:
    """``LocalSpecProvider.grouped_mlp_modules`` that takes its argument seriously."""

    @wraps(original)
    def choose(self, moe_use_grouped_gemm: bool):
        if not moe_use_grouped_gemm:
            return original(self, moe_use_grouped_gemm)
        from megatron.core.transformer.moe.experts import GroupedMLPSubmodules, TEGroupedMLP

        from ascend_patch.modules.grouped_linear import ColumnParallelGroupedLinear, RowParallelGroupedLinear

        return partial(
            TEGroupedMLP,
            submodules=GroupedMLPSubmodules(
                linear_fc1=ColumnParallelGroupedLinear,
                linear_fc2=RowParallelGroupedLinear,
                activation_func=self.activation_func(),
            ),
        )

    return choose


def grouped_mlp_modules_0_16(original: Callable) -> Callable:
    """The same for 0.16, whose providers return a class and its submodules."""

    @wraps(original)
    def choose(self, moe_use_grouped_gemm: bool, moe_use_legacy_grouped_gemm: bool):
        if not moe_use_grouped_gemm:
            return original(self, moe_use_grouped_gemm, moe_use_legacy_grouped_gemm)
        from megatron.core.transformer.mlp import MLPSubmodules
        from megatron.core.transformer.moe.experts import TEGroupedMLP

        from ascend_patch.modules.grouped_linear import ColumnParallelGroupedLinear, RowParallelGroupedLinear

        return TEGroupedMLP, MLPSubmodules(linear_fc1=ColumnParallelGroupedLinear, linear_fc2=RowParallelGroupedLinear)

    return choose


_patch = partial(
    Patch,
    id="moe.grouped_gemm",
    target="megatron.core.models.backends:LocalSpecProvider.grouped_mlp_modules",
    mode="wrap",
    reason=(
        "Upstream's local provider ignores --moe-grouped-gemm (from 0.17 on) or needs an external package (0.16): "
        "without TransformerEngine the experts run one after the other, and nothing says so."
    ),
    remove_when="upstream's local path has a grouped GEMM on torch._grouped_mm.",
    when=without_transformer_engine,
)

PATCHES = (
    _patch(
        impl="ascend_patch.features.experts:grouped_mlp_modules",
        upstream=">=0.17,<0.20",
        consumers=("megatron.core.transformer.moe.experts:TEGroupedMLP",),
    ),
    _patch(
        impl="ascend_patch.features.experts:grouped_mlp_modules_0_16",
        upstream=">=0.16.1,<0.17",
        consumers=("megatron.core.transformer.moe.experts:TEGroupedMLP",),
    ),
)
