"""What cannot be split is refused by the name of the flag, with what was found and what is allowed."""

from types import SimpleNamespace

import pytest

from ascend_patch.context_parallel import limits
from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.features.context_parallel import check, without_mask

ARGUMENTS = {
    "context_parallel_size": 2,
    "tensor_model_parallel_size": 1,
    "num_layers": 2,
    "num_attention_heads": 8,
    "seq_length": 64,
    "cp_comm_type": ["p2p"],
    "hierarchical_context_parallel_sizes": None,
    "window_size": None,
    "window_attn_skip_freq": None,
    "attention_dropout": 0.0,
    "transformer_impl": "transformer_engine",
    "create_attention_mask_in_dataloader": True,
    "sft": False,
}
HIERARCHY = {"context_parallel_size": 4, "cp_comm_type": ["a2a+p2p"]}


def arguments(**changes):
    return SimpleNamespace(**ARGUMENTS | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"context_parallel_size": 1, "attention_dropout": 0.1, "sft": True, "seq_length": 63},
        {"context_parallel_size": 8, "cp_comm_type": ["a2a"]},
        {"cp_comm_type": ["a2a", "all_gather"], "window_size": (7, 0)},
        {"cp_comm_type": ["a2a", "p2p"], "window_size": (7, 0), "window_attn_skip_freq": [1, 0]},
        HIERARCHY | {"hierarchical_context_parallel_sizes": [2, 2]},
        {"transformer_impl": "local", "create_attention_mask_in_dataloader": False},
        {"num_attention_heads": 5, "context_parallel_size": 4},
        {"sft": True, "cp_comm_type": ["a2a", "all_gather"]},
        {"sft": True, "cp_comm_type": ["allgather"], "dataloader_inter_document_masking": True},
        {"seq_length": None},
        {"num_layers": None},
        {"num_attention_heads": None},
    ],
)
def test_taken(changes):
    check(arguments(**changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seq_length": 66}, "--seq-length 66 with --context-parallel-size 2: .* multiple of 4"),
        ({"cp_comm_type": ["ring"]}, r"--cp-comm-type ring was given; it takes p2p, a2a, allgather, a2a\+p2p"),
        ({"cp_comm_type": ["p2p"] * 3}, "--cp-comm-type names 3 types for --num-layers 2"),
        ({"attention_dropout": 0.1}, "--attention-dropout 0.1 .* Use --attention-dropout 0"),
        ({"sft": True}, "--cp-comm-type p2p takes no packed sequences, which --sft makes. Use .* a2a or allgather"),
        ({"sft": True, "cp_comm_type": ["a2a", "p2p"]}, "--cp-comm-type p2p takes no packed sequences"),
        (
            HIERARCHY | {"hierarchical_context_parallel_sizes": [2, 2], "sft": True},
            r"--cp-comm-type a2a\+p2p takes no packed sequences",
        ),
        ({"dataloader_inter_document_masking": True}, "--dataloader-inter-document-masking was given .* use --sft"),
        ({"transformer_impl": "local"}, "Add --no-create-attention-mask-in-dataloader"),
        ({"window_size": (7, 0)}, "--cp-comm-type p2p cannot slide a window .* a2a or allgather"),
        (
            {"cp_comm_type": ["a2a"], "num_attention_heads": 12, "tensor_model_parallel_size": 4},
            r"between 2 ranks \(--context-parallel-size\), but a tensor parallel rank has 3",
        ),
        (HIERARCHY, "needs --hierarchical-context-parallel-sizes: two numbers"),
        (
            HIERARCHY | {"hierarchical_context_parallel_sizes": [2, 4]},
            "--hierarchical-context-parallel-sizes 2 4 was given with --context-parallel-size 4",
        ),
        (HIERARCHY | {"hierarchical_context_parallel_sizes": [2, 2, 1]}, "takes two numbers"),
        ({"hierarchical_context_parallel_sizes": [3, 2]}, "whose product is that size"),
        (
            HIERARCHY | {"hierarchical_context_parallel_sizes": [4, 1], "num_attention_heads": 6},
            r"between 4 ranks \(--hierarchical-context-parallel-sizes\), but a tensor parallel rank has 6",
        ),
        (
            HIERARCHY | {"hierarchical_context_parallel_sizes": [2, 2], "window_size": (7, 0)},
            r"--cp-comm-type a2a\+p2p cannot slide a window",
        ),
    ],
)
def test_refused(changes, words):
    with pytest.raises(AscendPatchError, match=words):
        without_mask(lambda args: pytest.fail("upstream was asked"))(arguments(**changes))


@pytest.mark.parametrize("ranks", [1, 2])
def test_no_mask_of_a_split_sequence(ranks):
    args = arguments(context_parallel_size=ranks)
    seen = without_mask(lambda args: args.create_attention_mask_in_dataloader)(args)
    assert seen is (ranks == 1)


def test_packed_sequences():
    limits.check_packed("a2a")
    with pytest.raises(AscendPatchError, match="--cp-comm-type p2p takes no packed sequences, .* a2a or allgather"):
        limits.check_packed("p2p")
