"""The entry point of group ``torch.backends``: torch calls it at the end of ``import torch``.

Inert unless ``ASCEND_PATCH=1``. It only registers an import hook: neither Megatron nor torch_npu is imported,
and nothing of torch is changed, until the process imports ``megatron.core``.
"""

import os


def autoload() -> None:
    """Activate if the environment asks for it."""
    if "ASCEND_PATCH" not in os.environ:  # keep everybody else's `import torch` free of our imports
        return
    from ascend_patch import failure
    from ascend_patch.config import Config

    failure.install()  # torch turns an error of an entry point into one of its own
    config = Config.from_environment()
    if config.enabled:
        from ascend_patch.activation import activate

        activate(config)
