"""The error of everything that reads, writes or converts a checkpoint."""

from ascend_patch.engine.errors import AscendPatchError


class CheckpointError(AscendPatchError):
    """A checkpoint is missing, damaged, unsafe or not what was asked for. Names the file and the tensor."""
