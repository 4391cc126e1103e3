"""Conversion of Mixtral and Mistral weights between Hugging Face's and Megatron-LM's checkpoints.

Everything is rectangles of bytes at known offsets in files (`stored.py`): no tensor is ever whole in memory and no
model is built. The command is `tools/checkpoint/util.py`. Importing this package imports nothing else.
"""
