"""A Hugging Face tokenizer folder from a SentencePiece model, without a hub.

transformers 5 can read a bare tokenizer.model, but loses the scores of its pieces on the way, so that text
with runs of spaces or a leading space gets other ids. Here the merges keep SentencePiece's order, and the ids
are the same.
"""

import json
import os
from pathlib import Path

SPACE = "▁"
# tokenizer.json says how to tokenize; this says which class reads it and what the special tokens are for.
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "clean_up_tokenization_spaces": False,
    "model_max_length": 32768,
}


def write_tokenizer(model: bytes, folder: Path) -> None:
    """Write tokenizer.model, tokenizer.json and tokenizer_config.json into ``folder``, the last of them last.

    Args:
        model: a SentencePiece BPE model with byte fallback and the special tokens of Llama and Mistral.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "tokenizer.model", model)
    write_file(folder / "tokenizer.json", _fast_tokenizer(model).encode())
    write_file(folder / "tokenizer_config.json", json.dumps(CONFIG, indent=2).encode())


def write_file(path: Path, content: bytes) -> None:
    """Write ``path`` so that it is never seen half-written."""
    unfinished = path.with_name(f"{path.name}.unfinished.{os.getpid()}")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


def _fast_tokenizer(model: bytes) -> str:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
    from tokenizers.models import BPE

    pieces = SentencePieceProcessor(model_proto=model)
    vocabulary = {pieces.id_to_piece(index): index for index in range(pieces.get_piece_size())}
    tokenizer = Tokenizer(
        BPE(vocabulary, _merges(pieces, vocabulary), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in ("<unk>", "<s>", "</s>")]
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", pieces.bos_id())]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer.to_str()


def _merges(pieces, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """All pairs that make a piece: highest score first, among equals the longest left part first."""
    ranked = []
    for piece, index in vocabulary.items():
        if pieces.is_control(index) or pieces.is_unknown(index) or pieces.is_byte(index):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append(((-pieces.get_score(index), -len(left), -len(right)), (left, right)))
    ranked.sort(key=lambda entry: entry[0])
    return [pair for _, pair in ranked]
