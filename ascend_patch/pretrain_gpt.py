"""The bundled entry: pretrain a GPT-style model with upstream's training loop from the ``megatron-core`` wheel.

The wheel carries ``megatron.training`` (from 0.17 on) but no script. This one takes the same arguments as
upstream's ``pretrain_gpt.py`` and does what Mixtral and Mistral need, instruction data included; a Megatron-LM
checkout has the rest (FIM, multi-token prediction, distillation). Run it with ``python -m ascend_patch.run`` or
torchrun's ``-m ascend_patch.run``.

Every rank reads its own copy of each micro batch, so that no release-dependent broadcast is needed.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
from megatron.training import get_args
from megatron.training.datasets.sft_dataset import SFTDataset
from megatron.training.utils import get_blend_and_blend_per_split

from ascend_patch.compat.context_parallel import part_of_batch
from ascend_patch.compat.packing import packed_seq_params
from ascend_patch.compat.training import pretrain
from ascend_patch.context_parallel.batch import part_of_packed_batch
from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.model_provider import model_provider
from ascend_patch.ops.derived import host_list


def train_valid_test_datasets_provider(num_samples: list[int], vp_stage: int | None = None) -> tuple:
    """Train, validation and test datasets of ``num_samples`` each."""
    args = get_args()
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    config = GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=blend,
        blend_per_split=blend_per_split,
        split=args.split,
        path_to_cache=args.data_cache_path,
        mmap_bin_files=args.mmap_bin_files,
        tokenizer=build_tokenizer(args),
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=args.reset_attention_mask,
        eod_mask_loss=args.eod_mask_loss,
        create_attention_mask=args.create_attention_mask_in_dataloader,
        num_dataset_builder_threads=args.num_dataset_builder_threads,
        mid_level_dataset_surplus=args.mid_level_dataset_surplus,
        context_parallel_size=args.context_parallel_size,
    )
    dataset = SFTDataset if args.sft else MockGPTDataset if args.mock_data else GPTDataset
    return BlendedMegatronDatasetBuilder(dataset, num_samples, lambda: True, config).build()


# Upstream asks for this attribute: the datasets are built on every rank, see the module's docstring.
vars(train_valid_test_datasets_provider)["is_distributed"] = True


def loss_func(loss_mask: torch.Tensor, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Sum of the unmasked token losses, their number, and both for the log."""
    mask = loss_mask.view(-1).float()
    loss = torch.sum(losses.view(-1).float() * mask)
    num_tokens = mask.sum().detach().to(torch.int)
    return loss, num_tokens, {"lm loss": torch.cat([loss.detach().view(1), num_tokens.view(1)])}


def forward_step(data_iterator: Iterator, model: torch.nn.Module, return_schedule_plan: bool = False) -> tuple:
    """Forward one micro batch; returns per-token losses and what turns them into a loss.

    Args:
        return_schedule_plan: in place of the losses return the plan by which upstream computes them in parts
            (``--overlap-moe-expert-parallel-comm``).
    """
    batch = {name: tensor.cuda(non_blocking=True) for name, tensor in next(data_iterator).items()}
    packing = packed_seq_params(batch)
    if packing is None:
        batch = part_of_batch(batch)
    else:
        group = parallel_state.get_context_parallel_group()
        batch = part_of_packed_batch(batch, host_list(packing.cu_seqlens_q), group.size(), group.rank())
    compute: Any = model.build_schedule_plan if return_schedule_plan else model
    losses = compute(
        batch["tokens"],
        batch["position_ids"],
        batch.get("attention_mask"),
        labels=batch["labels"],
        packed_seq_params=packing,
    )
    return losses, partial(loss_func, batch["loss_mask"])


def check_arguments(args) -> None:
    """Raise :class:`AscendPatchError` for what only upstream's own script does."""
    found = [
        flag
        for flag, is_used in {
            "--mtp-num-layers": args.mtp_num_layers,
            "--spec": args.spec,
            "--fim-data": args.fim_data,
        }.items()
        if is_used
    ]
    if found:
        raise AscendPatchError(
            f"The bundled entry does not do {', '.join(found)}. Run pretrain_gpt.py of a Megatron-LM checkout instead: "
            "python -m ascend_patch.run CHECKOUT/pretrain_gpt.py …"
        )


if __name__ == "__main__":
    pretrain(train_valid_test_datasets_provider, model_provider, forward_step, check_arguments)
