"""Packaging of what pyproject.toml cannot say: the package list, with patches/ shipped as ascend_patch/patches.

The contract with upstream lies at the top of the repository, where a reviewer looks first; an installed package
carries it inside, as data. Everything else (metadata, entry points, tools) is in pyproject.toml.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ascend_patch*", "ascend_sim*"]), "ascend_patch.patches"],
    package_dir={"ascend_patch": "ascend_patch", "ascend_patch.patches": "patches", "ascend_sim": "ascend_sim"},
    package_data={"ascend_patch.patches": ["*.toml", "*.md", "torch_npu/*.toml"], "ascend_sim": ["csrc/*"]},
)
