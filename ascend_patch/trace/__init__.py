"""Digests of what every module computes, in a run and beside another run.

``recorder``, ``digest`` and ``names`` run inside of a training job; they need torch and Megatron-LM. ``store`` and
``compare`` read what such a job has written, with the standard library alone.
"""
