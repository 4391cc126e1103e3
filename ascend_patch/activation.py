"""activate(): the whole story of one process on one page.

1. ``activate()`` registers one hook: *before ``megatron.core`` executes*. Nothing else happens, so a process
   that never imports Megatron (torchrun's agent, a data-loading script) stays exactly as it was.
2. When the hook fires: find out which Megatron this is, choose the device and make ``torch.cuda`` mean it,
   choose operator variants, and register every patch of :mod:`ascend_patch.features` with the engine.
3. Each patch is applied at the end of its target module's own import, before anybody can bind the original.
4. Rank 0 prints one line; the table is ``ascend-patch status``, the record is ``ASCEND_PATCH_REPORT``.
"""

import atexit
import multiprocessing
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ascend_patch import __version__, determinism, failure, manifest
from ascend_patch.config import Config, rank
from ascend_patch.engine.apply import Engine
from ascend_patch.engine.contract import Contract
from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.engine.importer import ImportHooks
from ascend_patch.engine.patch import Environment
from ascend_patch.engine.report import summary_line, write_json

if TYPE_CHECKING:  # imported in _prepare: `import torch` alone must not pay for them
    from ascend_patch.compat.upstream import Upstream
    from ascend_patch.devices import Device

_ROOT = "megatron.core"
_LAST = "megatron.training.training"  # when this module is there, what a training run needs has been imported

_active: "Activation | None" = None


@dataclass(frozen=True)
class Prepared:
    """What was found and set up when Megatron was imported."""

    megatron: "Upstream"
    device: "Device"
    engine: Engine

    def facts(self) -> dict[str, str]:
        """What the summary line and the report say beside the patches."""
        return {
            "version": __version__,
            "device": self.device.describe(),
            "upstream": f"{self.megatron.version} ({self.megatron.path})",
        }


class Activation:
    """What :func:`activate` set up; ``prepared`` is None until Megatron is imported."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.hooks = ImportHooks()
        self.prepared: Prepared | None = None

    def install(self) -> None:
        """Register the hook.

        Raises:
            AscendPatchError: Megatron has been imported already, or the environment contradicts
                ASCEND_PATCH_DETERMINISTIC.
        """
        imported = [name for name in sys.modules if name == _ROOT or name.startswith(_ROOT + ".")]
        if imported:
            raise AscendPatchError(
                f"Megatron was imported before ascend_patch could patch it ({len(imported)} modules of "
                f"{_ROOT} are loaded). Set ASCEND_PATCH=1 in the environment, or put "
                "`import ascend_patch.adaptor` above the first import of megatron."
            )
        if self.config.deterministic:  # before a device, a process group or another process starts
            determinism.prepare()
        self.hooks.before(_ROOT, lambda spec: self._prepare())
        self.hooks.install()

    def revert(self) -> None:
        """Undo everything: patches, device translation, import hooks."""
        if self.prepared is not None:
            self.prepared.engine.revert()
            self.prepared.device.revert()
            atexit.unregister(self._record)
        self.hooks.uninstall()
        failure.uninstall()
        global _active
        if _active is self:
            _active = None

    def _prepare(self) -> None:
        from ascend_patch.compat import upstream
        from ascend_patch.devices import choose
        from ascend_patch.features import PATCHES
        from ascend_patch.ops import registry

        megatron = upstream.locate()
        if not self.config.allow_drift:
            upstream.require_supported(megatron)
        device = choose(self.config.device or None)
        engine = Engine(
            PATCHES,
            Environment(device=device.name, upstream=megatron.version),
            Contract.load(),
            disabled=self.config.disabled,
            allow_drift=self.config.allow_drift,
            hooks=self.hooks,
        )
        try:
            registry.select(device.name, self.config.ops)
        except ValueError as error:
            raise AscendPatchError(f"ASCEND_PATCH_OPS: {error}") from error
        device.install()
        engine.install()
        self.prepared = Prepared(megatron, device, engine)
        manifest.contribute("ascend_patch", self.prepared.facts)
        manifest.contribute("patches", lambda: _patches(engine))
        manifest.contribute("operators", registry.selected)
        # A process that a rank spawns (to write a checkpoint, to load data) imports everything once more.
        if rank() == 0 and multiprocessing.parent_process() is None:
            if not self.config.quiet:
                self.hooks.after(_LAST, lambda module: self._announce())
            if self.config.report is not None:
                atexit.register(self._record)

    def _announce(self) -> None:
        if self.prepared is not None:
            print(summary_line(self.prepared.engine.outcomes(), **self.prepared.facts()), file=sys.stderr, flush=True)

    def _record(self) -> None:
        if self.prepared is not None and self.config.report is not None:
            from ascend_patch.ops import registry

            outcomes = self.prepared.engine.outcomes()
            write_json(self.config.report, outcomes, operators=registry.report(), **self.prepared.facts())


def _patches(engine: Engine) -> dict[str, list[str]]:
    """The ids of what has been applied, and of what could not be (with ASCEND_PATCH_ALLOW_DRIFT)."""
    outcomes = engine.outcomes()
    return {status: sorted({o.id for o in outcomes if o.status == status}) for status in ("applied", "failed")}


def activate(config: Config | None = None) -> Activation:
    """Activate ascend_patch in this process; a second call changes nothing.

    Raises:
        AscendPatchError: Megatron is already imported, or a setting cannot be read. Everything that depends
            on the device or on Megatron is raised later, by the import of ``megatron.core``.
    """
    global _active
    failure.install()
    if _active is None:
        activation = Activation(config or Config.from_environment())
        activation.install()
        _active = activation
    return _active
