"""An Adam that resumes, and gradients of weights accumulated in place."""

from collections.abc import Callable
from functools import partial, wraps
from itertools import chain
from types import SimpleNamespace

from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import without_fused_optimizer, without_transformer_engine

TRUE, FALSE = True, False
_PART_OF_NORM = 2**16


def _accumulate(total_input, grad_output, main_grad) -> None:
    """``main_grad += grad_output.T @ total_input``; ``[n, in]``, ``[n, out]`` and ``[out, in]``."""
    from ascend_patch.ops.grouped_gemm import add_weight_gradient

    add_weight_gradient(total_input, grad_output, main_grad)


def local_multi_tensor_scale(chunk_size, noop_flag, tensor_lists, scale) -> None:
    """Apex's ``multi_tensor_scale``: ``target = source * scale`` for the pairs of the two ``tensor_lists``.

    Without a temporary, and on a device in one launch where all is in place (clipping); otherwise one for each pair.
    """
    import torch

    sources, targets = tensor_lists
    if len(sources) == len(targets) and all(source is target for source, target in zip(sources, targets, strict=True)):
        if targets:
            torch._foreach_mul_(targets, scale)
        return
    for source, target in zip(sources, targets, strict=True):
        torch.mul(source, scale, out=target)


def local_multi_tensor_l2_norm(chunk_size, noop_flag, tensor_lists, per_tensor, *args):
    """Apex's ``multi_tensor_l2norm`` without norms of single tensors: ``(float32 [1], None)``, left on the device.

    The host adds squares one after the other: of 30 million numbers the norm was off by 1.6e-3, in parts by 2e-7.
    """
    import torch

    tensors = [t for tensors in tensor_lists for t in tensors]
    if not tensors:
        return torch.zeros(1, dtype=torch.float32, device=torch.cuda.current_device()), None
    if tensors[0].device.type == "cpu":
        tensors = [part for t in tensors for part in t.reshape(-1).split(_PART_OF_NORM)]
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(tensors)])
    return torch.linalg.vector_norm(norms).reshape(1), None


def copy_main_params_to_model_params(original: Callable) -> Callable:
    """``DistributedOptimizer._copy_main_params_to_model_params``, one copy for neighbours on both sides.

    Those are most of them once :func:`ascend_patch.modules.adam.lay_out_side_by_side` has been at work.
    """

    @wraps(original)
    def copy_joined(self) -> None:
        if (
            self.is_stub_optimizer
            or self.ddp_config.use_megatron_fsdp
            or self.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
        ):
            return original(self)
        from ascend_patch.ops.neighbours import joined

        pairs = []
        for main_groups, model_groups in (
            (self.shard_fp32_from_float16_groups, self.model_float16_groups),
            (self.shard_fp32_groups, self.model_fp32_groups),
        ):
            for main, model in zip(chain(*main_groups), chain(*model_groups), strict=True):
                within = self._get_model_param_range_map(model)["gbuf_world_in_bucket"]
                buffer, _, bucket = self.model_param_gbuf_map[model]
                params = self.buffers[buffer].buckets[bucket].param_data.view(-1)
                pairs.append((main.detach(), params[within.start : within.end]))
        for main, model in joined(pairs):
            model.copy_(main)

    return copy_joined


#: What upstream calls of Apex's extension of that name, whatever the dtype of ``main_grad``.
fused_weight_gradient_mlp_cuda = SimpleNamespace(wgrad_gemm_accum_fp32=_accumulate, wgrad_gemm_accum_fp16=_accumulate)

_adam = partial(
    Patch,
    id="optimizer.adam",
    mode="replace",
    upstream=">=0.16.1,<0.20",
    reason=(
        "Without Apex or TransformerEngine a run with the distributed optimizer cannot be resumed from torch_dist "
        "(`assert len(steps) == 1`): torch's Adam keeps `step` for each parameter, the checkpoint for each group."
    ),
    remove_when="upstream's distributed optimizer resumes with torch.optim.AdamW.",
    when=without_fused_optimizer,
)
_fusion = partial(
    Patch,
    id="optimizer.gradient_accumulation_fusion",
    mode="replace",
    upstream=">=0.16.1,<0.20",
    reason="The default gradient_accumulation_fusion is a RuntimeError without Apex's CUDA extension.",
    remove_when="upstream turns the fusion off by itself where the extension is missing.",
    when=without_fused_optimizer,
    consumers=("megatron.core.tensor_parallel.layers:LinearWithGradAccumulationAndAsyncCommunication.backward",),
)
_OPTIMIZER = "megatron.core.optimizer"
_LAYERS = "megatron.core.tensor_parallel.layers"
_HERE = "ascend_patch.features.optimizer"

PATCHES = (
    _adam(target=f"{_OPTIMIZER}:Adam", impl="ascend_patch.modules.adam:FusedAdam"),
    _adam(target=f"{_OPTIMIZER}.distrib_optimizer:Adam", impl="ascend_patch.modules.adam:FusedAdam"),
    _adam(target=f"{_OPTIMIZER}:USING_PYTORCH_OPTIMIZER", impl=f"{_HERE}:FALSE"),
    _adam(target=f"{_OPTIMIZER}.distrib_optimizer:HAVE_APEX_OR_TE", impl=f"{_HERE}:TRUE"),
    _adam(target=f"{_OPTIMIZER}.distrib_optimizer:USING_APEX_OPTIMIZER", impl=f"{_HERE}:TRUE"),
    _fusion(target=f"{_LAYERS}:fused_weight_gradient_mlp_cuda", impl=f"{_HERE}:fused_weight_gradient_mlp_cuda"),
    _fusion(target=f"{_LAYERS}:_grad_accum_fusion_available", impl=f"{_HERE}:TRUE"),
    Patch(
        id="optimizer.multi_tensor_scale",
        target="megatron.core.utils:local_multi_tensor_scale",
        impl=f"{_HERE}:local_multi_tensor_scale",
        mode="replace",
        upstream=">=0.16.1,<0.20",
        reason=(
            "Gradient clipping scales into a new tensor and copies that back: float32 memory of the largest "
            "parameter, and three passes instead of one; two launches for each parameter instead of one for all."
        ),
        remove_when="upstream scales in place where Apex and TransformerEngine are missing.",
        when=without_fused_optimizer,
        consumers=("megatron.core.optimizer.clip_grads:clip_grad_by_total_norm_fp32",),
    ),
    Patch(
        id="optimizer.multi_tensor_norm",
        target="megatron.core.utils:local_multi_tensor_l2_norm",
        impl=f"{_HERE}:local_multi_tensor_l2_norm",
        mode="replace",
        upstream=">=0.16.1,<0.20",
        reason="The norm of each gradient is copied to the host, which waits for as many kernels as there are weights.",
        remove_when="upstream reduces the norms on the device where Apex and TransformerEngine are missing.",
        when=without_fused_optimizer,
        consumers=("megatron.core.optimizer.clip_grads:get_grad_norm_fp32",),
    ),
    Patch(
        id="optimizer.copy_to_model",
        target=f"{_OPTIMIZER}.distrib_optimizer:DistributedOptimizer._copy_main_params_to_model_params",
        impl=f"{_HERE}:copy_main_params_to_model_params",
        mode="wrap",
        upstream=">=0.16.1,<0.20",
        reason="After each step every parameter is copied from its float32 original by itself: as many launches.",
        remove_when="upstream lays its main parameters out like its parameter buffer and copies that at once.",
        when=without_transformer_engine,
    ),
)
