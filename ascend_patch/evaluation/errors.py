"""What an evaluation is refused with."""

from ascend_patch.engine.errors import AscendPatchError


class EvaluationError(AscendPatchError):
    """A data set, a task or a journal that cannot be used: what was found, what is allowed."""
