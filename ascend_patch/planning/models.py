"""The published models, in the sizes of the scripts in ``examples/mixtral`` (a test holds one against the other)."""

from dataclasses import dataclass

from ascend_patch.planning.errors import PlanningError


@dataclass(frozen=True)
class Model:
    """A decoder with grouped queries, RMSNorm and SwiGLU, and an output layer of its own; no biases.

    Attributes:
        ffn: features of the MLP, or of an expert.
        experts, topk: 0 of a dense model.
    """

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    vocab: int
    experts: int = 0
    topk: int = 0

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def mlp_parameters(self) -> int:
        """Of the MLP of a layer, or of one expert: gate, up and down."""
        return 3 * self.hidden * self.ffn

    @property
    def attention_parameters(self) -> int:
        """Of the projections of a layer."""
        return self.hidden * self.head_dim * 2 * (self.heads + self.groups)

    @property
    def replicated_parameters(self) -> int:
        """Of a layer, on every tensor parallel rank: two norms, and the router."""
        return (2 + self.experts) * self.hidden

    @property
    def active_parameters(self) -> int:
        """That a token is multiplied with; the embedding is looked up."""
        layer = self.attention_parameters + self.replicated_parameters + max(self.topk, 1) * self.mlp_parameters
        return self.layers * layer + self.vocab * self.hidden


MODELS = {
    "7b": Model("Mistral 7B", 32, 4096, 14336, 32, 8, 32000),
    "8x7b": Model("Mixtral 8x7B", 32, 4096, 14336, 32, 8, 32000, 8, 2),
    "8x22b": Model("Mixtral 8x22B", 56, 6144, 16384, 48, 8, 32768, 8, 2),
}


def find(name: str) -> Model:
    """The model of a name as ``8x7b``, ``8x7B`` or ``Mixtral-8x7B``.

    Raises:
        PlanningError: there is none.
    """
    found = MODELS.get(name.lower().removeprefix("mixtral-").removeprefix("mistral-"))
    if found is None:
        raise PlanningError(f"--model {name} is not known; allowed are {', '.join(MODELS)}.")
    return found
