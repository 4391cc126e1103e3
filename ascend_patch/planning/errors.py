"""What a plan is refused with."""

from ascend_patch.engine.errors import AscendPatchError


class PlanningError(AscendPatchError):
    """Nothing can be planned: what was found, what is allowed."""
