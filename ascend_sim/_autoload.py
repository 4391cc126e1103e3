"""The entry point of group ``torch.backends``: torch calls it at the end of ``import torch``.

Inert outside of ``ascend-sim run``.
"""

import os


def autoload() -> None:
    """Load torch_npu and put the simulated device under it."""
    if "ASCEND_SIM_LIBRARIES" not in os.environ:  # keep everybody else's `import torch` free of our imports
        return
    from ascend_sim.settings import Settings

    settings = Settings.from_environment()
    if settings is not None:
        from ascend_sim.install import install

        install(settings)
