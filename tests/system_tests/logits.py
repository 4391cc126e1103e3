"""The logits of a checkpoint that stock upstream loads, in any layout.

Run as a script, this is a Megatron job that loads a checkpoint as training does, and writes logits instead of training.

``logits.py TOKENS FOLDER ARGUMENTS…``: the arguments are those of a training job with ``--load``. Everything up to the
first iteration is upstream's own; in its place the token ids in the file ``TOKENS`` [sequences, length] go through the
model, pipeline stages and virtual stages included. Each data parallel rank of the last stage writes
``FOLDER/RANK.pt``, float32 [sequences, length, padded vocabulary].

Parameters are filled with NaN when the model is built: upstream only prints a line when a checkpoint lacks some of
them.
"""

import sys
import tempfile
from pathlib import Path

import torch

from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import tiny


def compute(server: Server, tokens: torch.Tensor, flags: dict, processes: int = 1) -> torch.Tensor:
    """Run the job; every data parallel rank must have computed the same.

    Args:
        tokens: ids ``[sequences, length]``.
        flags: for :func:`mixtral.tiny`, ``load`` among them.

    Returns:
        float32 ``[sequences, length, padded vocabulary]``.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(tokens, folder / "tokens")
        arguments = tiny(**flags)
        server.run(Path(__file__), [folder / "tokens", folder, *arguments], processes).succeeded()
        first, *others = [torch.load(file) for file in sorted(folder.glob("*.pt"))]
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0, equal_nan=True)
    return first


def unloaded(model: torch.nn.Module) -> torch.nn.Module:
    """``model``, of no use until a checkpoint has been loaded into all of it."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    return model


def forward_only(tokens: torch.Tensor, folder: Path, model: list[torch.nn.Module]) -> None:
    """Put ``tokens`` through the model, one sequence a micro batch, and write what the last stage returns."""
    from megatron.core import mpu
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    for chunk in model:
        chunk.eval()
    data = [iter(tokens.unsqueeze(1)) for _ in model]
    with torch.no_grad():
        batches = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=data if len(model) > 1 else data[0],
            model=model if len(model) > 1 else model[0],
            num_microbatches=len(tokens),
            seq_length=tokens.shape[1],
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
        if mpu.is_pipeline_last_stage():
            logits = gather_from_tensor_model_parallel_region(torch.cat(batches)).float()
            if mpu.get_tensor_model_parallel_rank() == 0:
                torch.save(logits.clone(), folder / f"{mpu.get_data_parallel_rank()}.pt")


def forward_step(tokens: object, model: torch.nn.Module) -> tuple:
    """Logits of the next sequence, and what takes them as they are."""
    ids = next(tokens)
    positions = torch.arange(ids.shape[1]).unsqueeze(0)
    mask = torch.ones(1, 1, ids.shape[1], ids.shape[1]).triu(1).bool()
    return model(ids, positions, mask), lambda logits, non_loss_data: logits


def main() -> None:
    """The job; see the module's docstring."""
    from megatron.training import training

    from ascend_patch import pretrain_gpt
    from ascend_patch.compat.training import pretrain

    tokens, folder = torch.load(sys.argv.pop(1)), Path(sys.argv.pop(1))
    set_up = training.setup_model_and_optimizer

    def set_up_and_write(*args, **kwargs) -> None:
        model, *_ = set_up(*args, **kwargs)
        forward_only(tokens, folder, model)
        torch.distributed.barrier()
        sys.exit(0)

    training.setup_model_and_optimizer = set_up_and_write
    pretrain(
        pretrain_gpt.train_valid_test_datasets_provider,
        lambda *args, **kwargs: unloaded(pretrain_gpt.model_provider(*args, **kwargs)),
        pretrain_gpt.forward_step,
        lambda args: None,
    )


if __name__ == "__main__":
    main()
