"""Text from a model that Megatron-LM trained: sampling, chat, a server, and log-likelihoods, on upstream's engines."""

from ascend_patch.compat.upstream import locate, require_generation

# Before an import of upstream fails for a reason that nobody understands.
require_generation(locate())
