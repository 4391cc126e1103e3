"""Everything in torch that a translation of ``torch.cuda`` could replace, to be compared by identity."""

import sys
from types import ModuleType

#: Bookkeeping of torch's launcher, which it changes itself.
_OF_THE_LAUNCHER = ("torch.distributed.elastic", "torch.distributed.launcher", "torch.distributed.run")


def take() -> dict[str, object]:
    """Full name -> value of every attribute of torch's modules, and of the classes they define."""
    found: dict[str, object] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != "torch" or name.startswith(_OF_THE_LAUNCHER) or not isinstance(module, ModuleType):
            continue
        for attribute, value in list(vars(module).items()):
            found[f"{name}.{attribute}"] = value
            if isinstance(value, type) and str(value.__module__).partition(".")[0] == "torch":
                found.update({f"{name}.{attribute}.{own}": entry for own, entry in list(vars(value).items())})
    return found


def changed(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Names of ``before`` that are gone or mean another object."""
    return sorted(name for name, value in before.items() if after.get(name, before) is not value)
