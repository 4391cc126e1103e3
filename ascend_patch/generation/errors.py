"""What a request or a model is refused with."""

from ascend_patch.engine.errors import AscendPatchError


class GenerationError(AscendPatchError):
    """A request that cannot be served, or a model that cannot serve: what was found, what is allowed."""
