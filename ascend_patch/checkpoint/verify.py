"""Reads a converted checkpoint back, through the reader of its format, and compares it with its conversion.json."""

from pathlib import Path

from ascend_patch.checkpoint import huggingface, megatron
from ascend_patch.checkpoint.blocks import matrices
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.manifest import NAME, Manifest
from ascend_patch.checkpoint.progress import Progress, Silent
from ascend_patch.checkpoint.stored import Checkpoint
from ascend_patch.checkpoint.transfer import checksums

SHOWN = 10


def verify(folder: Path, workers: int = 2, progress: Progress | None = None) -> None:
    """Compare every tensor of ``folder``, and the padding of its vocabulary, with what was written.

    Raises:
        CheckpointError: the folder does not hold what conversion.json says; names the tensors.
    """
    progress = progress or Silent()
    manifest = Manifest.read(folder)
    wanted = matrices(manifest.shape, manifest.dtype)
    found = _open(folder, manifest)
    if found.shape.tensors() != manifest.shape.tensors():
        raise CheckpointError(f"{folder} holds another model than {NAME} says.")
    with progress.bar("Verifying", sum(matrix.nbytes for matrix in wanted.values())) as advance:
        results = dict(checksums(found, wanted, workers, advance))
    wrong = [
        str(result) if isinstance(result, CheckpointError) else f"{name}: its bytes are not those that were written."
        for name, result in results.items()
        if result != manifest.sha256.get(name)
    ]
    if wrong:
        more = [f"and {len(wrong) - SHOWN} more."] if len(wrong) > SHOWN else []
        raise CheckpointError(
            "\n  ".join([f"{folder} is damaged in {len(wrong)} of {len(wanted)} tensors:", *wrong[:SHOWN], *more])
            + "\nRemove it and convert again."
        )
    progress.say(f"{folder}: all {len(wanted)} tensors are what {NAME} says.")


def _open(folder: Path, manifest: Manifest) -> Checkpoint:
    if manifest.target["type"] == "huggingface":
        return huggingface.open(folder)
    return megatron.open(folder / megatron.RELEASE, vocab_size=manifest.shape.vocab_size)
