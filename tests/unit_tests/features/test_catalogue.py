"""The declarations as a whole."""

import importlib
import subprocess
import sys

import pytest

from ascend_patch.features import PATCHES


def test_declarations_import_neither_torch_nor_megatron() -> None:
    code = "import sys, ascend_patch.features; sys.exit(bool({'torch', 'megatron', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.target)
def test_implementation_exists(patch) -> None:
    module, _, name = patch.impl.partition(":")
    impl = getattr(importlib.import_module(module), name)
    assert callable(impl) or patch.mode == "replace"
