"""The names under which Megatron-LM's two checkpoint formats keep the parameters of `partition.py`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.partition import FUSED_INPUT_NORM, FUSED_MLP_NORM, Parameter
from ascend_patch.checkpoint.shape import ModelShape

TRANSFORMER_IMPLS = ("transformer_engine", "local")

_PLAIN = {FUSED_INPUT_NORM: "input_layernorm.weight", FUSED_MLP_NORM: "pre_mlp_layernorm.weight"}

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_SEQUENTIAL = re.compile(r"mlp\.experts\.local_experts\.(\d+)\.(linear_fc[12]\.weight)")
_GROUPED = re.compile(r"mlp\.experts\.(linear_fc[12]\.weight)(\d+)")

_LAYERS = re.compile(r"decoder\.layers\.(?:(\d+)\.)?(.+)")
_EXPERTS = "mlp.experts.experts."


@dataclass(frozen=True)
class Build:
    """How a model is built, as far as its state dict shows it."""

    transformer_impl: str = "transformer_engine"
    """transformer_engine: a norm is kept with the linear layer after it. local: by itself."""
    moe_grouped_gemm: bool = True
    """The experts of a rank are in one module."""

    def __post_init__(self) -> None:
        if self.transformer_impl not in TRANSFORMER_IMPLS:
            raise CheckpointError(
                f"--transformer-impl is {self.transformer_impl!r}; it must be {' or '.join(TRANSFORMER_IMPLS)}."
            )


@dataclass(frozen=True)
class Key:
    """Which parameter a name means."""

    name: str
    layer: int | None = None
    expert: int | None = None

    @classmethod
    def of(cls, parameter: Parameter) -> "Key":
        return cls(parameter.name, parameter.layer, parameter.expert)


def state_dict_key(parameter: Parameter, build: Build, *, first_layer: int, first_expert: int) -> str:
    """A parameter's name in the state dict of a model chunk whose layers and experts begin with these numbers."""
    name = parameter.name
    if parameter.layer is None:
        return name
    if parameter.expert is not None:
        number = parameter.expert - first_expert
        name = f"mlp.experts.{name}{number}" if build.moe_grouped_gemm else f"mlp.experts.local_experts.{number}.{name}"
    elif parameter.fused and build.transformer_impl == "transformer_engine":
        name = parameter.fused
    return f"decoder.layers.{parameter.layer - first_layer}.{name}"


def parse_state_dict_key(key: str, *, first_layer: int, first_expert: int) -> Key:
    """The parameter that a name in such a state dict means, whatever the model's build; the inverse of the above."""
    if not (found := _LAYER.fullmatch(key)):
        return Key(key)
    layer, name = int(found[1]) + first_layer, found[2]
    if expert := _SEQUENTIAL.fullmatch(name):
        return Key(expert[2], layer, int(expert[1]) + first_expert)
    if expert := _GROUPED.fullmatch(name):
        return Key(expert[1], layer, int(expert[2]) + first_expert)
    return Key(_PLAIN.get(name, name), layer)


def global_keys(parameter: Parameter) -> tuple[str, ...]:
    """The keys under which format `torch_dist` keeps a parameter, with all layers and all experts in one tensor.

    The norm before the experts has another key for each `--transformer-impl`; with both, either model loads it.
    """
    if parameter.layer is None:
        return (parameter.name,)
    if parameter.expert is not None:
        return (f"decoder.layers.{_EXPERTS}{parameter.name}",)
    names = [parameter.fused or parameter.name]
    if parameter.name == _PLAIN[FUSED_MLP_NORM] and not parameter.fused:
        names.append(FUSED_MLP_NORM)
    return tuple(f"decoder.layers.{name}" for name in names)


@dataclass(frozen=True)
class GlobalKey:
    """Which parameters a key of format `torch_dist` means: those of all layers or of one, of all experts or of none."""

    name: str
    layer: int | None = None
    of_all_layers: bool = False
    of_all_experts: bool = False

    def axes(self, shape: ModelShape) -> tuple[int, ...]:
        """The axes of its tensor before those of the parameter: layers and experts."""
        return (shape.num_layers,) * self.of_all_layers + (shape.num_experts,) * self.of_all_experts

    def key(self, index: Sequence[int]) -> Key:
        """The parameter at an index into these axes."""
        layer = index[0] if self.of_all_layers else self.layer
        return Key(self.name, layer, index[-1] if self.of_all_experts else None)


def parse_global_key(key: str) -> GlobalKey:
    """The parameters that a key means. Layers that may differ (`--moe-layer-freq` with a list) have a key each."""
    if not (found := _LAYERS.fullmatch(key)):
        return GlobalKey(key)
    layer, name = int(found[1]) if found[1] else None, found[2]
    if name.startswith(_EXPERTS):
        return GlobalKey(name.removeprefix(_EXPERTS), layer, layer is None, True)
    return GlobalKey(_PLAIN.get(name, name), layer, layer is None)
