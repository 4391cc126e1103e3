"""Applying declared patches at the right moment, and taking them back.

The engine registers one callback per target module. When such a module has executed, and before anybody can
bind a name from it, its patches are applied: replacements first, then wraps in the order of declaration.
"""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

from ascend_patch.engine import sources
from ascend_patch.engine.contract import Contract
from ascend_patch.engine.drift import examine
from ascend_patch.engine.errors import AscendPatchError, DeclarationError, PatchError
from ascend_patch.engine.fingerprint import SourceTree
from ascend_patch.engine.importer import ImportHooks
from ascend_patch.engine.patch import Environment, Outcome, Patch
from ascend_patch.engine.substitution import Substitution, find_owner, is_bound, rebind_copies, substitute

logger = logging.getLogger(__name__)


class Engine:
    """All patches of one process.

    Args:
        patches: the declarations, in the order in which wraps of one target stack.
        environment: device and upstream version.
        contract: fingerprints of the supported releases; None applies patches unchecked.
        disabled: ids of patches to leave out.
        allow_drift: apply where upstream has changed; what cannot be applied at all is recorded as failed.
        hooks: import hooks to share; by default the engine has its own and installs it.

    Raises:
        DeclarationError: two rows replace one target in overlapping version ranges.
        AscendPatchError: `disabled` names an id that does not exist.
    """

    def __init__(
        self,
        patches: Iterable[Patch],
        environment: Environment,
        contract: Contract | None = None,
        *,
        disabled: Iterable[str] = frozenset(),
        allow_drift: bool = False,
        hooks: ImportHooks | None = None,
    ) -> None:
        self._patches = tuple(patches)
        self._environment = environment
        self._contract = contract
        self._allow_drift = allow_drift
        self._owns_hooks = hooks is None
        self._hooks = hooks or ImportHooks()
        self._lock = threading.Lock()
        self._tree = SourceTree(sources.installed)
        self._callbacks: dict[str, Callable[[ModuleType], None]] = {}
        self._substitutions: dict[str, list[Substitution]] = {}
        disabled = frozenset(disabled)
        check_ids(disabled, self._patches)
        check_conflicts(self._patches)
        self._outcomes = [self._first_outcome(patch, disabled) for patch in self._patches]
        self._unchecked = {n for n, outcome in enumerate(self._outcomes) if outcome.status == "pending"}

    def install(self) -> None:
        """Check every patch whose upstream package is there, and register the callbacks. Idempotent.

        Raises:
            PatchError: a target's module was imported too early, or upstream has drifted; nothing is
                registered then.
        """
        if self._callbacks:
            return
        wanted = {n: patch for n, patch in enumerate(self._patches) if self._outcomes[n].status != "skipped"}
        modules = tuple(dict.fromkeys(patch.module for patch in wanted.values()))
        late = [module for module in modules if not self._hooks.in_time(module)]
        if late:
            raise PatchError(_too_early(late))
        self._check([n for n, patch in wanted.items() if self._tree.covers(patch.module)])
        for module in modules:
            self._callbacks[module] = partial(self._apply_to, module)
            self._hooks.after(module, self._callbacks[module])
        if self._owns_hooks:
            self._hooks.install()

    def revert(self) -> None:
        """Put every original back, by identity, and drop the callbacks. A later `install()` starts anew."""
        for name, callback in self._callbacks.items():
            self._hooks.discard(name, callback)
        self._callbacks.clear()
        if self._owns_hooks:
            self._hooks.uninstall()
        for name in reversed(list(self._substitutions)):
            self._restore(name)
        for n, outcome in enumerate(self._outcomes):
            if outcome.status == "applied":
                self._outcomes[n] = replace(outcome, status="pending", notices=())

    def outcomes(self) -> tuple[Outcome, ...]:
        """What became of every row so far, in the order of declaration."""
        return tuple(self._outcomes)

    def _first_outcome(self, patch: Patch, disabled: frozenset[str]) -> Outcome:
        reason = skip_reason(patch, self._environment, disabled)
        return Outcome(patch.id, patch.target, "pending" if reason is None else "skipped", reason or "")

    def _check(self, rows: Sequence[int]) -> None:
        """Compare upstream's source with the contract, until it holds; all drift is raised as one error."""
        if self._contract is None:
            return
        problems = []
        with self._lock:
            for n in [n for n in rows if n in self._unchecked]:
                findings = examine(self._patches[n], self._contract, self._tree, self._environment.upstream)
                errors = [str(finding) for finding in findings if finding.is_error]
                notices = tuple(str(f) for f in findings if not f.is_error or self._allow_drift)
                self._outcomes[n] = replace(self._outcomes[n], notices=notices)
                if not errors or self._allow_drift:
                    self._unchecked.discard(n)
                    continue
                text = "; ".join(errors)
                self._outcomes[n] = replace(self._outcomes[n], status="failed", detail=text)
                problems.append(f"{self._patches[n].id} ({self._patches[n].upstream}): {text}")
        if problems:
            raise PatchError(_drifted(problems, self._environment, self._patches, self._outcomes))

    def _apply_to(self, name: str, module: ModuleType) -> None:
        """The callback of module `name`: apply its rows, all or none."""
        rows = [n for n, p in enumerate(self._patches) if p.module == name and self._outcomes[n].status != "skipped"]
        self._check(rows)
        self._restore(name)  # after importlib.reload
        done = self._substitutions[name] = []
        for n in sorted(rows, key=lambda n: self._patches[n].mode == "wrap"):
            try:
                done.append(self._apply(self._patches[n], module))
            except AscendPatchError as error:
                self._outcomes[n] = replace(self._outcomes[n], status="failed", detail=str(error))
                if self._allow_drift and isinstance(error.__cause__, LookupError):
                    continue
                self._restore(name)
                raise
            rebound = [f"also rebound in {m.__name__}, which had bound it in an import cycle" for m, _ in done[-1].also]
            notices = (*self._outcomes[n].notices, *rebound)
            self._outcomes[n] = replace(self._outcomes[n], status="applied", detail="", notices=notices)

    def _apply(self, patch: Patch, module: ModuleType) -> Substitution:
        try:
            owner, attribute = find_owner(module, patch.qualname)
            if not is_bound(owner, attribute) and not self._may_be_unbound(patch):
                raise LookupError(f"{patch.module} has no {patch.qualname}")
        except LookupError as error:
            raise PatchError(_cannot(patch, self._environment, f"{error.args[0]}.")) from error
        impl = self._load(patch)
        try:
            done = substitute(owner, attribute, impl if patch.mode == "wrap" else lambda original: impl)
        except Exception as error:
            text = f"{patch.impl} raised {type(error).__name__}: {error}"
            raise PatchError(_cannot(patch, self._environment, text)) from error
        rebind_copies(done)
        return done

    def _may_be_unbound(self, patch: Patch) -> bool:
        """Whether the source binds the name, only not on this machine (`try: import an_extension`)."""
        return patch.mode == "replace" and self._tree.fingerprint(patch.target) is not None

    def _load(self, patch: Patch) -> Any:
        module, _, qualname = patch.impl.partition(":")
        try:
            impl: Any = importlib.import_module(module)
            for part in qualname.split("."):
                impl = getattr(impl, part)
            return impl
        except Exception as error:
            text = f"its implementation {patch.impl} could not be imported: {type(error).__name__}: {error}"
            raise PatchError(_cannot(patch, self._environment, text)) from error

    def _restore(self, name: str) -> None:
        for substitution in reversed(self._substitutions.pop(name, [])):
            if not substitution.restore() and self._callbacks.get(name) is None:
                logger.warning(
                    "%s.%s was set again after ascend_patch had patched it; it stays as it is.",
                    name,
                    substitution.name,
                )


def skip_reason(patch: Patch, environment: Environment, disabled: frozenset[str] = frozenset()) -> str | None:
    """Why `patch` is left out in `environment`, or None when it is wanted."""
    if patch.id in disabled:
        return "disabled by id"
    if not patch.supports(environment.upstream):
        return f"not for Megatron-LM {environment.upstream} ({patch.upstream})"
    return patch.when(environment)


def check_ids(ids: Iterable[str], patches: Sequence[Patch]) -> None:
    """Raise `AscendPatchError`, with close matches, if one of `ids` is no patch's id."""
    known = sorted({patch.id for patch in patches})
    unknown = sorted(set(ids) - set(known))
    if not unknown:
        return
    import difflib  # only for the error text

    close = [match for name in unknown for match in difflib.get_close_matches(name, known)]
    hint = f"Did you mean {', '.join(close)}?" if close else f"The ids are {', '.join(known)}."
    raise AscendPatchError(f"No patch has the id {', '.join(unknown)}. {hint} `ascend-patch status` lists them all.")


def check_conflicts(patches: Sequence[Patch]) -> None:
    """Raise `DeclarationError` if two rows replace one target in overlapping version ranges."""
    first: dict[str, list[Patch]] = {}
    for patch in patches:
        if patch.mode != "replace":
            continue
        for other in first.setdefault(patch.target, []):
            if _overlap(patch, other):
                raise DeclarationError(
                    f"patches {other.id} ({other.upstream}) and {patch.id} ({patch.upstream}) both replace "
                    f"{patch.target}. Make their ranges disjoint, or turn one into a wrap."
                )
        first[patch.target].append(patch)


def _overlap(one: Patch, other: Patch) -> bool:
    """Whether a version can lie in both ranges: it is enough to try the bounds and their close neighbours."""
    bounds = {spec.version.removesuffix(".*") for patch in (one, other) for spec in patch.range}
    tries = {f"{bound}{suffix}" for bound in bounds for suffix in ("", ".dev0", ".0.1", ".99")} | {"0", "999"}
    return any(one.supports(version) and other.supports(version) for version in tries)


def _cannot(patch: Patch, environment: Environment, why: str) -> str:
    return (
        f"patch {patch.id} cannot be applied to {patch.target} of Megatron-LM "
        f"{environment.upstream or '(unknown version)'} (it is written for {patch.upstream}): {why} "
        f"Set ASCEND_PATCH_DISABLE={patch.id} to run without it, or use a supported release; "
        "`ascend-patch drift` shows which patches hold."
    )


def _drifted(problems: list[str], environment: Environment, patches: Sequence[Patch], outcomes: list[Outcome]) -> str:
    ids = ",".join(dict.fromkeys(outcome.id for outcome in outcomes if outcome.status == "failed"))
    return (
        f"Megatron-LM {environment.upstream or '(unknown version)'} has drifted under {len(problems)} of "
        f"{len(patches)} patches: {' | '.join(problems)}. Use a supported release, set "
        f"ASCEND_PATCH_DISABLE={ids} to run without them, or ASCEND_PATCH_ALLOW_DRIFT=1 to patch regardless. "
        "After reviewing the change, record it with `ascend-patch contract --megatron PATH --write`."
    )


def _too_early(modules: list[str]) -> str:
    shown = ", ".join(modules[:3]) + (f" and {len(modules) - 3} more" if len(modules) > 3 else "")
    importers = importers_of(modules)
    by = f"by {', '.join(importers)} " if importers else ""
    return (
        f"{shown} had been imported {by}before ascend_patch was activated, so copies of the originals may "
        "be in use. Export ASCEND_PATCH=1 before Python starts, or put `import ascend_patch.adaptor` above "
        "the first import of the upstream package."
    )


def importers_of(modules: Sequence[str]) -> list[str]:
    """Up to three modules that hold something of the package of `modules`, so one of them imported it."""
    package = modules[0].partition(".")[0]
    found = []
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in (package, "ascend_patch") or not isinstance(module, ModuleType):
            continue
        for value in list(vars(module).values()):
            home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(home, str) and home.partition(".")[0] == package:
                file = getattr(module, "__file__", None)
                found.append(f"{name} ({file})" if file else name)
                break
    return found[:3]
