"""What an evaluation is refused with."""

from importlib.util import find_spec

from ascend_patch.engine.errors import AscendPatchError


class EvaluationError(AscendPatchError):
    """A data set, a task or a journal that cannot be used: what was found, what is allowed."""


def check_lm_eval() -> None:
    """Look for lm-eval without importing it, before a model is loaded.

    Raises:
        EvaluationError: it is not installed.
    """
    if find_spec("lm_eval") is None:
        raise EvaluationError("Evaluation needs lm-eval, which is not installed: pip install 'ascend-patch[tasks]'.")
