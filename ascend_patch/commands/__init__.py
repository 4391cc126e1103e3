"""What `ascend-patch` does, one module a command. Each works without importing torch or Megatron.

A command module has `add_arguments(parser)` and `run(arguments) -> exit status`.
"""
