"""The patching machine: declarations, import hooks, fingerprints, apply and revert, reports.

It knows neither torch nor Megatron nor the rest of ascend_patch, and importing it changes nothing.
"""
