"""activate(): the whole story of one process on one page.

1. ``activate()`` registers one hook: *before ``megatron.core`` executes*. Nothing else happens, so a process
   that never imports Megatron (torchrun's agent, a data-loading script) stays exactly as it was.
2. When the hook fires: find out which Megatron this is, choose the device and make ``torch.cuda`` mean it,
   choose operator variants, and register every patch of :mod:`ascend_patch.features` with the engine.
3. Each patch is applied at the end of its target module's own import, before anybody can bind the original.
4. Rank 0 prints one line; the table is ``ascend-patch status``, the record is ``ASCEND_PATCH_REPORT``.
"""

import atexit
import os
import sys
from importlib.machinery import ModuleSpec

from ascend_patch import __version__
from ascend_patch.config import Config
from ascend_patch.engine.apply import Engine
from ascend_patch.engine.contract import Contract
from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.engine.importer import ImportHooks
from ascend_patch.engine.patch import Environment
from ascend_patch.engine.report import summary_line, write_json

_ROOT = "megatron.core"
_LAST = "megatron.training.training"  # when this module is there, what a training run needs has been imported

_active: "Activation | None" = None


class Activation:
    """What :func:`activate` set up; ``engine`` and ``device`` are None until Megatron is imported."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.hooks = ImportHooks()
        self.engine: Engine | None = None
        self.device = None
        self.megatron = None

    def install(self) -> None:
        imported = [name for name in sys.modules if name == _ROOT or name.startswith(_ROOT + ".")]
        if imported:
            raise AscendPatchError(
                f"Megatron was imported before ascend_patch could patch it ({len(imported)} modules of "
                f"{_ROOT} are loaded). Set ASCEND_PATCH=1 in the environment, or put "
                "`import ascend_patch.adaptor` above the first import of megatron."
            )
        self.hooks.before(_ROOT, self._prepare)
        self.hooks.install()

    def _prepare(self, spec: ModuleSpec | None = None) -> None:
        from ascend_patch.compat import upstream
        from ascend_patch.devices import choose
        from ascend_patch.features import PATCHES
        from ascend_patch.ops import registry

        self.megatron = upstream.locate()
        if not self.config.allow_drift:
            upstream.require_supported(self.megatron)
        self.device = choose(self.config.device or None)
        self.device.install()
        registry.select(self.device.name, self.config.ops)
        self.engine = Engine(
            PATCHES,
            Environment(device=self.device.name, upstream=self.megatron.version),
            Contract.load(),
            disabled=self.config.disabled,
            allow_drift=self.config.allow_drift,
            hooks=self.hooks,
        )
        self.engine.install()
        if os.environ.get("RANK", "0") == "0":
            self.hooks.after(_LAST, lambda module: self._announce())
            atexit.register(self._record)

    def _announce(self) -> None:
        if not self.config.quiet:
            print(self._summary(), file=sys.stderr, flush=True)

    def _record(self) -> None:
        if self.config.report is not None and self.engine is not None:
            write_json(self.config.report, self.engine.outcomes(), **self._facts())

    def _summary(self) -> str:
        return summary_line(self.engine.outcomes(), **self._facts())

    def _facts(self) -> dict:
        return {
            "version": __version__,
            "device": self.device.describe(),
            "upstream": f"{self.megatron.version} ({self.megatron.path})",
        }

    def revert(self) -> None:
        """Undo everything: patches, device translation, import hooks."""
        if self.engine is not None:
            self.engine.revert()
        if self.device is not None:
            self.device.revert()
        self.hooks.uninstall()
        atexit.unregister(self._record)


def activate(config: Config | None = None) -> Activation:
    """Activate ascend_patch in this process; a second call changes nothing.

    Raises:
        AscendPatchError: Megatron is already imported, or a setting cannot be read. Everything that depends
            on the device or on Megatron is raised later, by the import of ``megatron.core``.
    """
    global _active
    if _active is None:
        activation = Activation(config or Config.from_environment())
        activation.install()
        _active = activation
    return _active
