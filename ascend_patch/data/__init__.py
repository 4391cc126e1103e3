"""Data preparation: records of text, instructions or conversations in, Megatron's indexed datasets out.

``tools/preprocess_data.py`` is its command line. Records are read by :mod:`~ascend_patch.data.records`, turned into
token ids by a handler of :mod:`~ascend_patch.data.handlers` in worker processes, and written by
:mod:`~ascend_patch.data.writer`. Importing the package imports neither torch, nor transformers, nor Megatron-LM.
"""
