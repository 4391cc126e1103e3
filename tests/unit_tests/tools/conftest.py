"""A small SentencePiece tokenizer of the Llama kind, trained on the spot."""

import io

import pytest

SENTENCES = [
    "To be, or not to be, that is the question:",
    "Whether 'tis nobler in the mind to suffer",
    "The slings and arrows of outrageous fortune,",
    "Or to take arms against a sea of troubles",
    "    indented  text   with    runs of spaces",
]


@pytest.fixture(scope="session")
def sentencepiece_model() -> bytes:
    """A BPE model with byte fallback, as Mixtral's is."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 50),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def tokenizer_folder(sentencepiece_model, tmp_path_factory):
    """The Hugging Face folder of that model."""
    from tools.train.tokenizer import write_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(sentencepiece_model, folder)
    return folder
