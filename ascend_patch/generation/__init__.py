"""Text from a model that Megatron-LM trained: sampling, chat, a server, and log-likelihoods, on upstream's engine."""
