"""The table of reference kernels, and how they get under torch's dispatcher.

A kernel is a plain function of CPU tensors whose parameters are named like the operator's schema. The registry does
the rest for a call that arrives with npu tensors: it binds the arguments, refuses what the kernel does not model,
hands over aliases of the device's memory, moves the results to the device and counts one launch.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch

from ascend_sim.dispatch import HOST_ONLY
from ascend_sim.errors import ConstraintError, KernelError, NotModelled

KernelFunction = Callable[..., Any]


@dataclass(frozen=True)
class Kernel:
    """A reference kernel and where its semantics come from.

    Attributes:
        name: ``namespace::operator`` or ``namespace::operator.overload``.
        function: Takes CPU tensors by the schema's argument names; returns new CPU tensors, or for an operator that
            writes in place the very tensors that it was given.
        source: Public document or test that defines the operator.
        assumes: What the source leaves open, as sentences for whoever has a device.
        ignores: Arguments without any effect on the result.
        reads: From the arguments to the tensors that are read, where those are not all of them.
        shapes: From the arguments to results of the right shapes and types whose values mean nothing, where computing
            them can be left out (``ascend-sim run --shapes-only``).
    """

    name: str
    function: KernelFunction
    source: str
    assumes: tuple[str, ...] = ()
    ignores: frozenset[str] = frozenset()
    reads: Callable[[dict[str, Any]], Iterable[Any]] = dict.values
    shapes: Callable[[dict[str, Any]], Any] | None = None

    @functools.cached_property
    def accepts(self) -> frozenset[str]:
        """Names of the arguments that the function models."""
        return frozenset(signature(self.function).parameters)


KERNELS: dict[str, Kernel] = {}


def kernel(
    *names: str,
    source: str,
    assumes: Iterable[str] = (),
    ignores: Iterable[str] = (),
    reads: Callable[[dict[str, Any]], Iterable[Any]] = dict.values,
    shapes: Callable[[dict[str, Any]], Any] | None = None,
) -> Callable[[KernelFunction], KernelFunction]:
    """Enter the decorated function in :data:`KERNELS` under each of `names` (namespace ``npu`` unless given).

    The function comes back wrapped only so that errors raised in it carry the operator's name.
    """
    full_names = tuple(name if "::" in name else f"npu::{name}" for name in names)

    def enter(function: KernelFunction) -> KernelFunction:
        @functools.wraps(function)
        def named(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except KernelError as error:
                error.operator = error.operator or full_names[0]
                raise

        for name in full_names:
            if name in KERNELS:
                raise ValueError(f"{name} has two kernels: {KERNELS[name].function.__module__}, {function.__module__}")
            KERNELS[name] = Kernel(name, named, source, tuple(assumes), frozenset(ignores), reads, shapes)
        return named

    return enter


def bind(entry: Kernel, schema: torch.FunctionSchema, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments by name, defaults filled in, without those that the kernel may ignore.

    Raises:
        NotModelled: An argument that the kernel does not take is given a value other than the schema's default.
    """
    names = [argument.name for argument in schema.arguments]
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    given = dict(zip(names, args, strict=False)) | kwargs
    for name, value in given.items():
        if name in entry.accepts or name in entry.ignores:
            continue
        if name not in defaults or not _equal(value, defaults[name]):
            raise NotModelled(f"argument {name}={_brief(value)} is not modelled by the simulator", entry.name)
    return {name: value for name, value in (defaults | given).items() if name in entry.accepts}


def register(
    host_alias: Callable[[torch.Tensor], torch.Tensor] | None = None,
    count_launch: Callable[[str, int, int], None] | None = None,
    shapes_only: bool = False,
) -> list[str]:
    """Bind every kernel that the installed torch_npu has an operator for to the device; returns their names.

    Args:
        host_alias: From an npu tensor to a CPU tensor over the same memory.
        count_launch: Called with operator, bytes read, bytes written. Both default to the simulator's compiled part.
        shapes_only: Whether kernels with ``shapes`` leave their computation out.
    """
    import ascend_sim.kernels  # noqa: F401  (fills the table)
    from ascend_sim.kernels import decompositions

    launch = _Launcher(
        host_alias or torch.ops.ascend_sim.host_alias,
        count_launch or torch.ops.ascend_sim.count_launch,
        shapes_only,
    )
    bound = []
    for name, entry in KERNELS.items():
        namespace, _, operator = name.partition("::")
        base, _, overload = operator.partition(".")
        if (schema := _schema(namespace, base, overload)) is None:
            continue
        _library(namespace).impl(operator, functools.partial(launch, entry, schema), "PrivateUse1", allow_override=True)
        bound.append(name)
    decompositions.restore(_library("aten"))
    return bound


def missing_operators() -> list[str]:
    """Operators ``npu::…`` that the installed torch_npu runs on the device and that have no kernel here."""
    import ascend_sim.kernels  # noqa: F401  (fills the table)

    registered = torch._C._dispatch_get_registrations_for_dispatch_key("PrivateUse1")
    elsewhere = KERNELS.keys() | {f"npu::{name}" for name in HOST_ONLY}
    return sorted(name for name in registered if name.startswith("npu::") and name not in elsewhere)


def assumptions_markdown() -> str:
    """The page ``docs/simulator_assumptions.md``: per operator its source, its assumptions, what it ignores."""
    import ascend_sim.kernels  # noqa: F401  (fills the table)

    lines = [
        "# What the simulated device assumes",
        "",
        "Generated from the kernels in `ascend_sim/kernels`; do not edit. To write it again:",
        "",
        "```",
        "ascend-sim assumptions > docs/simulator_assumptions.md",
        "```",
        "",
        "The kernels compute what the public documents of torch_npu and CANN say. Where those are silent, the list",
        "says what was assumed: that is what someone with a device should check first. Rounding differs as well: a",
        "kernel accumulates in float32 and rounds once, unless something else is stated. An `npu::` operator that is",
        "not listed here raises an error with its name, and so does an argument that its kernel does not model.",
    ]
    groups: dict[KernelFunction, list[Kernel]] = {}
    for entry in KERNELS.values():
        groups.setdefault(entry.function, []).append(entry)
    for module, kernels in _by_module(groups.values()):
        lines += ["", f"## {module}"]
        for entries in kernels:
            first = entries[0]
            lines += ["", "### " + ", ".join(f"`{entry.name}`" for entry in entries), ""]
            lines.append(f"Source: {first.source}")
            if first.assumes:
                lines += ["", "Assumed:", "", *(f"- {sentence}" for sentence in first.assumes)]
            if first.ignores:
                lines += ["", "Without effect here: " + ", ".join(f"`{name}`" for name in sorted(first.ignores)) + "."]
    return "\n".join(lines) + "\n"


class _Launcher:
    """Runs a kernel for a call with npu tensors."""

    def __init__(
        self,
        host_alias: Callable[[torch.Tensor], torch.Tensor],
        count_launch: Callable[[str, int, int], None],
        shapes_only: bool,
    ) -> None:
        self._host_alias = host_alias
        self._count_launch = count_launch
        self._shapes_only = shapes_only

    def __call__(self, entry: Kernel, schema: torch.FunctionSchema, *args: Any, **kwargs: Any) -> Any:
        arguments = bind(entry, schema, args, kwargs)
        device = _device(entry, arguments)
        aliases: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by id of the alias: alias, npu tensor

        def to_host(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.device.type != "npu":
                return tensor
            alias = self._host_alias(tensor)
            aliases[id(alias)] = (alias, tensor)
            return alias

        def to_device(tensor: torch.Tensor) -> torch.Tensor:
            return aliases[id(tensor)][1] if id(tensor) in aliases else self._copy_to_device(tensor, device)

        read = {name: _each_tensor(to_host, value) for name, value in arguments.items()}
        shapes = entry.shapes if self._shapes_only else None
        result = entry.function(**read) if shapes is None else shapes(read)
        written = sum(map(_bytes, _tensors([result])))
        result = _each_tensor(to_device, result)
        self._count_launch(entry.name, sum(map(_bytes, _tensors(entry.reads(read)))), written)
        return result

    def _copy_to_device(self, value: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Through an alias of fresh memory: the device computed it there, nothing crossed the bus."""
        on_device = torch.empty(value.shape, dtype=value.dtype, device=device)
        if value.numel():
            self._host_alias(on_device).copy_(value)
        return on_device


def _device(entry: Kernel, arguments: dict[str, Any]) -> torch.device:
    """The one device of the call's tensors.

    Raises:
        ConstraintError: Tensors on the host (other than the scalars that torch_npu copies itself), or on more than one
            device.
    """
    found: dict[torch.device, str] = {}
    for name, value in arguments.items():
        for tensor in _tensors([value]):
            if tensor.device.type != "cpu" or tensor.dim() > 0:
                found.setdefault(tensor.device, name)
    places = ", ".join(f"{name} on {device}" for device, name in found.items())
    if len(found) != 1 or next(iter(found)).type != "npu":
        raise ConstraintError(f"all tensors must be on one npu device, found: {places or 'none'}", entry.name)
    return next(iter(found))


def _each_tensor(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """``value`` with the function applied to the tensors in it.

    Not a function within its caller: one that calls itself there would keep the caller's tensors until the next
    garbage collection.
    """
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(_each_tensor(function, item) for item in value)
    return value


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _equal(value: Any, default: Any) -> bool:
    return not isinstance(value, torch.Tensor) and type(value) in (type(default), int, float) and value == default


def _brief(value: Any) -> str:
    return f"<tensor {tuple(value.shape)}>" if isinstance(value, torch.Tensor) else repr(value)


def _schema(namespace: str, base: str, overload: str) -> torch.FunctionSchema | None:
    overloads = torch._C._jit_get_operation(f"{namespace}::{base}")[1]
    return torch._C._get_schema(f"{namespace}::{base}", overload) if overloads and overload in overloads else None


@functools.cache
def _library(namespace: str) -> torch.library.Library:
    """Kept for the life of the process: a library that is collected takes its kernels with it."""
    return torch.library.Library(namespace, "IMPL")


def _by_module(groups: Iterable[list[Kernel]]) -> list[tuple[str, list[list[Kernel]]]]:
    modules: dict[str, list[list[Kernel]]] = {}
    for entries in groups:
        modules.setdefault(entries[0].function.__module__.rpartition(".")[2], []).append(entries)
    return sorted(modules.items())
