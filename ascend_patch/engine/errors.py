"""The errors a user of ascend_patch may see.

Every message is one paragraph that names what was found, what is supported and what to do next.
None of them derives from `ImportError`: upstream guards optional dependencies with
`try: import ... except ImportError`, and such a guard must never swallow a failed patch.
"""


class AscendPatchError(RuntimeError):
    """Base of every error raised by ascend_patch on purpose."""


class DeclarationError(AscendPatchError):
    """A `Patch` row, or a set of rows, contradicts itself: a mistake in ascend_patch, not of its user."""


class PatchError(AscendPatchError):
    """A declared patch cannot be applied to the upstream that was found."""


class ContractError(AscendPatchError):
    """A file below `patches/` is missing, unreadable or stale."""
