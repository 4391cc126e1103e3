"""Bytes of a device's memory in a step of bfloat16 training.

Weights are bfloat16, gradients float32 in buffers of upstream's DistributedDataParallel; the optimizer keeps a float32
copy and two moments of each weight, and of its own part alone with the distributed optimizer: 6 + 12 / ranks bytes a
weight, as upstream's ``megatron/training/theoretical_memory_usage.py`` has it.

Activations are what the backward pass needs of the forward pass, tensor by tensor as the modules of ascend_patch keep
them on an NPU, after the manner of Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models"
(2022), with sequence parallelism. Each expert is taken to get as many tokens as every other. How many micro batches are
under way in a pipeline is the 1F1B schedule's, plain or interleaved (Narayanan et al., 2021).
"""

from dataclasses import astuple, dataclass

from ascend_patch.planning.layout import Layout, Training
from ascend_patch.planning.models import Model

_BF16, _FP32 = 2, 4
_STATE = 3 * _FP32
_MASK = 2048 * 2048
"""``npu_fusion_attention`` takes a causal mask of this many bytes, one for all layers."""
_STATISTICS = 2 * 8 * _FP32
"""Maximum and sum of a softmax, of a head and token: eight float32 each."""


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        temporary: what the loss, or the backward pass of one layer, needs besides.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    temporary: int

    @property
    def total(self) -> int:
        return sum(astuple(self))


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights on a device: those of experts have data parallel groups of their own."""

    dense: int
    experts: int
    replicated: int
    """Those of ``dense`` that every tensor parallel rank has: norms and routers."""

    @property
    def all(self) -> int:
        return self.dense + self.experts


def parameters(model: Model, layout: Layout, stage: int) -> Parameters:
    """Of a device of pipeline rank ``stage``."""
    layers = model.layers // layout.pp
    vocabulary = _split_vocabulary(model, layout)
    ends = (stage == 0) + (stage == layout.pp - 1)
    replicated = layers * model.replicated_parameters + (model.hidden if stage == layout.pp - 1 else 0)
    split = layers * model.attention_parameters // layout.tp + ends * vocabulary * model.hidden
    mlp = layers * model.mlp_parameters
    if not model.experts:
        return Parameters(replicated + split + mlp // layout.tp, 0, replicated)
    return Parameters(replicated + split, mlp * model.experts // (layout.ep * layout.etp), replicated)


def layer_activations(training: Training, layout: Layout) -> int:
    """Bytes that one layer keeps of one micro batch."""
    model = training.model
    tokens = layout.micro * training.sequence // layout.cp
    own = tokens // layout.tp  # of the sequence parallel rank
    norm = own * (2 * _BF16 * model.hidden + _FP32)  # input, 1 / rms, and output for the layer after it
    heads = 2 * (model.heads + model.groups) * model.head_dim  # queries, keys, values and the result
    statistics = _STATISTICS if layout.cp == 1 else _FP32
    attention = tokens * (_BF16 * heads + statistics * model.heads) // layout.tp
    if not model.experts:
        return 2 * norm + attention + tokens * _BF16 * 3 * model.ffn // layout.tp
    routing = own * (model.experts * (2 * _FP32 + 1) + 4 * model.topk)  # scores, map, places
    rows = own * model.topk * layout.etp
    experts = rows * _BF16 * (model.hidden + 1 + 3 * model.ffn // layout.etp)  # input, weight, fc1 and SwiGLU
    return 2 * norm + attention + routing + experts


def end_activations(training: Training, layout: Layout, stage: int) -> int:
    """Bytes that embedding, final norm, output layer and loss of one micro batch keep."""
    model = training.model
    tokens = layout.micro * training.sequence // layout.cp
    kept = 8 * tokens if stage == 0 else 0
    if stage == layout.pp - 1:
        kept += tokens // layout.tp * (2 * _BF16 * model.hidden + _FP32) + 8 * tokens
        kept += tokens * _FP32 * _split_vocabulary(model, layout)
    return kept


def activations(training: Training, layout: Layout, stage: int) -> int:
    """Bytes at most, of all micro batches that are under way in pipeline rank ``stage``."""
    own = layout.micro * training.sequence // layout.cp // layout.tp
    layer = _BF16 * own * training.model.hidden if layout.recompute else layer_activations(training, layout)
    layers = training.model.layers // (layout.pp * layout.vpp)
    chunks = under_way(training, layout, stage)
    return chunks * layers * layer + end_activations(training, layout, stage) + _MASK


def under_way(training: Training, layout: Layout, stage: int) -> int:
    """Model chunks whose forward pass is done, and whose backward pass is not, at most."""
    ahead = layout.pp - stage - 1
    if layout.vpp > 1:
        ahead = 2 * ahead + (layout.vpp - 1) * layout.pp
    return min(ahead + 1, layout.micro_batches(training) * layout.vpp)


def temporary(training: Training, layout: Layout, stage: int) -> int:
    """Bytes beside the activations where there is least left: in the loss, or in the backward pass of a layer.

    The loss has the logits in bfloat16 and twice in float32, one of which is kept. In the last stage, what is kept for
    the loss is gone when the backward pass of the layers begins.
    """
    model = training.model
    tokens = layout.micro * training.sequence // layout.cp
    split = layout.etp if model.experts else layout.tp
    rows = tokens // layout.tp * max(model.topk, 1) * split
    layer = rows * _BF16 * (model.hidden + 3 * model.ffn // split)  # gradients of the input, of fc1's and of SwiGLU's
    if layout.recompute:
        layer += layer_activations(training, layout)
    if stage < layout.pp - 1:
        return layer
    logits = tokens * (_BF16 + _FP32) * _split_vocabulary(model, layout)
    return max(logits, layer - end_activations(training, layout, stage))


def memory(training: Training, layout: Layout, stage: int) -> Memory:
    """Of a device of pipeline rank ``stage``."""
    found = parameters(training.model, layout, stage)
    ranks, expert_ranks = (layout.dp * layout.cp, layout.edp) if layout.distributed_optimizer else (1, 1)
    return Memory(
        _BF16 * found.all,
        _FP32 * found.all,
        _STATE * found.dense // ranks + _STATE * found.experts // expert_ranks,
        activations(training, layout, stage),
        temporary(training, layout, stage),
    )


def _split_vocabulary(model: Model, layout: Layout) -> int:
    """Rows, with padding."""
    return -(-model.vocab // layout.tp)
