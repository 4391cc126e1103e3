"""Routing: each token's best experts and their softmax probabilities, and what a balancing loss looks at."""

from torch import Tensor

from ascend_patch.ops.registry import run
from ascend_patch.ops.routing_map import set_experts_per_token


def topk_softmax(logits: Tensor, topk: int, pre_softmax: bool = False) -> tuple[Tensor, Tensor]:
    """Softmax over the ``topk`` largest logits of each token, or the ``topk`` largest of the softmax over
    all.

    The same as Megatron's ``topk_routing_with_score_function`` with ``score_function="softmax"`` and neither
    groups nor scaling.

    Args:
        logits: ``[T, E]``, floating point.
        topk: how many experts a token gets, at most ``E``.
        pre_softmax: take the softmax over all experts before choosing; the probabilities then add up to less
            than 1.

    Returns:
        ``(routing_probs [T, E] in the dtype of logits, routing_map [T, E] bool)``, zero and False for the
        experts that were not chosen. Which of two equal logits wins is the variant's choice. The map carries
        the promise of :mod:`ascend_patch.ops.routing_map`.

    The gradient flows from ``routing_probs`` to ``logits`` and is deterministic. Softmax runs in float32
    (float64 for float64); the relative error stays below 1e-6 (float32) and 1e-2 (bfloat16).

    Raises:
        ValueError: ``logits`` is not two-dimensional, or ``topk`` is not between 1 and ``E``.
    """
    _check("topk_softmax", logits, topk)
    routing_probs, routing_map = run("topk_softmax", "topk_softmax", logits, topk, pre_softmax)
    set_experts_per_token(routing_map, topk)
    return routing_probs, routing_map


def balancing_scores(logits: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Softmax over all experts, and which are the ``topk`` largest of it.

    The same as Megatron's ``compute_routing_scores_for_aux_loss`` with ``score_function="softmax"`` and no
    padding.

    Args:
        logits: ``[T, E]``, floating point.
        topk: how many experts a token gets, at most ``E``.

    Returns:
        ``(routing_map [T, E] bool, scores [T, E])``, the scores in float32 (float64 for float64). Which of two
        equal logits wins is the variant's choice.

    The gradient flows from ``scores`` to ``logits`` and is deterministic; tolerances as :func:`topk_softmax`.

    Raises:
        ValueError: ``logits`` is not two-dimensional, or ``topk`` is not between 1 and ``E``.
    """
    _check("balancing_scores", logits, topk)
    return run("topk_softmax", "balancing_scores", logits, topk)


def _check(function: str, logits: Tensor, topk: int) -> None:
    if logits.dim() != 2 or not 1 <= topk <= logits.shape[1]:
        raise ValueError(
            f"{function}: topk is {topk}, logits has shape {tuple(logits.shape)}; "
            "logits must be [T, E] and topk between 1 and E."
        )
