"""What a training layout needs, by formula: memory of a device, bytes that it sends in a step. Numbers alone: neither
torch nor Megatron-LM is imported."""
