"""An Adam that resumes, and gradients of weights accumulated in place."""

from functools import partial
from types import SimpleNamespace

from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import without_fused_optimizer

TRUE, FALSE = True, False


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
    """Apex's ``multi_tensor_l2norm`` without norms of single tensors: ``([1], None)``; nothing leaves the device."""
    import torch

    tensors = [t for tensors in tensor_lists for t in tensors]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors))).reshape(1), None


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
)
