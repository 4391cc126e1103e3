"""The small tokenizer of tests/unit_tests/tools/conftest.py."""

from tests.unit_tests.tools.conftest import sentencepiece_model, tokenizer_folder

__all__ = ["sentencepiece_model", "tokenizer_folder"]
