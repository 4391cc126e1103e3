"""Megatron modules built on :mod:`ascend_patch.ops`: what the patches put in the place of TransformerEngine's.

The only package that subclasses Megatron's classes. It is imported when a patch fires, never before, so that
importing :mod:`ascend_patch` needs no Megatron.
"""
