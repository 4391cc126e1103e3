"""The model as lm-eval knows models: any of its tasks runs on it.

Texts become tokens as lm-eval's own ``hf`` model does it, so that results compare.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from ascend_patch.evaluation.errors import EvaluationError
from ascend_patch.evaluation.journal import Journal, keys
from ascend_patch.generation.sampling import SamplingOptions

if TYPE_CHECKING:  # its import is Megatron-LM's
    from ascend_patch.generation.scoring import Pair, Score

MAX_NEW_TOKENS = 256
"""Where a task does not say."""

_SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")


class Model(Protocol):
    """What computes; see :class:`ascend_patch.evaluation.workers.Workers`."""

    @property
    def max_length(self) -> int:
        """Tokens of an input."""

    def score(self, pairs: "Sequence[Pair]", on_scores: "Callable[[list[tuple[int, Score]]], object]") -> None:
        """Scores go to ``on_scores``, with their places in ``pairs``."""

    def generate(self, prompts: Sequence[Any], on_texts: Callable[[list[tuple[int, str]]], object]) -> None:
        """Completions go to ``on_texts``, with their places in ``prompts``."""


class MegatronLM(TemplateLM):
    """lm-eval's view of a model.

    Args:
        model: computes log-likelihoods and completions of token ids.
        tokenizer: of transformers.
        journal: what it has is not computed again, and what is computed goes there.
    """

    def __init__(self, model: Model, tokenizer: Any, journal: Journal) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._model = model
        self._journal = journal

    @property
    def max_length(self) -> int:
        """Tokens of an input."""
        return self._model.max_length

    @property
    def eot_token_id(self) -> int:
        """Ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """Comes before a text that has no context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's caches."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; by default with the special tokens that the tokenizer adds, unless they are there already."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See lm-eval's; without its bar, which shows the encoding only."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, window by window."""
        windows = [self._windows(request.args[0]) for request in requests]
        scores = iter(self._scores([window for text in windows for window in text]))
        return [sum(next(scores)[0] for _ in text) for text in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Completions, to the first of a request's stop texts."""
        asked = [request.args for request in requests]
        found = keys("generate_until", asked)
        prompts = [self._prompt(context, options, key) for (context, options), key in zip(asked, found, strict=True)]
        return self._resumed(found, prompts, self._model.generate)

    def _loglikelihood_tokens(self, requests: list[tuple], **_: Any) -> list[tuple[float, bool]]:
        return self._scores([(context, continuation) for _, context, continuation in requests])

    def _scores(self, pairs: "list[Pair]") -> list[tuple[float, bool]]:
        found = self._resumed(keys("loglikelihood", pairs), pairs, self._model.score)
        return [(logprob, greedy) for logprob, greedy in found]

    def _windows(self, text: str) -> "list[Pair]":
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [make_disjoint_window(window) for window in windows]

    def _prompt(self, context: str, options: Mapping[str, Any], key: str) -> tuple[list[int], SamplingOptions]:
        found = dict(normalize_gen_kwargs(dict(options), MAX_NEW_TOKENS))
        stop = tuple(text for text in found.pop("until") if text)
        new = found.pop("max_gen_toks")
        sampled = found.pop("do_sample")
        chosen = {name: found.pop(name) for name in _SAMPLING if name in found}
        if not sampled:
            chosen = {name: value for name, value in chosen.items() if name == "repetition_penalty"}
        if found:
            raise EvaluationError(
                f"The task wants {', '.join(sorted(found))} for generation, allowed: do_sample, max_gen_toks, until, "
                f"{', '.join(_SAMPLING)}. Take another task."
            )
        room = self.max_length - new
        if room < 1:
            raise EvaluationError(
                f"The task wants {new} new tokens, and prompt and completion together may have {self.max_length}. "
                "Allow more (--seq-length)."
            )
        # Drawn alike after an interruption, when others are asked for beside it.
        seed = int(key[:8], 16) if sampled else 0
        return self.tok_encode(context)[-room:], SamplingOptions(max_new_tokens=new, stop=stop, seed=seed, **chosen)

    def _resumed(self, keys: list[str], requests: list[Any], compute: Callable) -> list[Any]:
        """The results of ``requests``: from the journal, or computed, and then in the journal."""
        missing = [place for place, key in enumerate(keys) if key not in self._journal.results]
        with tqdm(
            total=len(keys), initial=len(keys) - len(missing), unit="request", file=sys.stderr, dynamic_ncols=True
        ) as bar:

            def keep(found: list[tuple[int, Any]]) -> None:
                for place, result in found:
                    self._journal.add(keys[missing[place]], result)
                bar.update(len(found))

            compute([requests[place] for place in missing], keep)
        return [self._journal.results[key] for key in keys]
