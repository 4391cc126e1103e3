"""``python -m ascend_patch.run [SCRIPT] ARGUMENTS…``: activate, then run a Megatron script as ``__main__``.

The door for an environment that cannot set ``ASCEND_PATCH=1`` (under torchrun: ``torchrun … -m
ascend_patch.run pretrain_gpt.py …``). Without a script, or where the ``pretrain_gpt.py`` that was named is not
there (the ``megatron-core`` wheel carries none), the entry in :mod:`ascend_patch.pretrain_gpt` runs.
"""

import runpy
import sys
from pathlib import Path

from ascend_patch.activation import activate
from ascend_patch.engine.errors import AscendPatchError

BUNDLED = Path(__file__).with_name("pretrain_gpt.py")


def resolve(arguments: list[str]) -> tuple[Path, list[str]]:
    """Split ``arguments`` into the script to run and the arguments for it."""
    if not arguments or arguments[0].startswith("-"):
        return BUNDLED, arguments
    script = Path(arguments[0])
    if script.is_file():
        return script, arguments[1:]
    if script.name == BUNDLED.name and script.parent == Path():
        return BUNDLED, arguments[1:]
    raise AscendPatchError(
        f"There is no script {script}. Give the path of a Megatron script such as pretrain_gpt.py, or none to run "
        "the bundled entry."
    )


def main() -> None:
    """Run it; see the module's docstring."""
    try:
        script, arguments = resolve(sys.argv[1:])
    except AscendPatchError as error:
        sys.exit(f"ascend_patch: {error}")
    activate()
    sys.argv = [str(script), *arguments]
    if script != BUNDLED:
        sys.path.insert(0, str(script.resolve().parent))  # as `python SCRIPT` does
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
