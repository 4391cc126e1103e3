"""``make bench``: what ascend_patch gains, measured side by side on this machine.

One training step of a 1/8-scale Mixtral, by

a. stock Megatron-LM: only ``torch.cuda`` is translated to the device at hand, no patch is applied;
b. Megatron-LM with everything on, with the flags of a script for GPUs;
c. ``MixtralForCausalLM`` of transformers with AdamW of torch in a plain loop;
d. nothing but a matrix product, the limit of the machine.

Each runs in a process of its own and they take turns, so that what else the machine does hits all of them
alike: the ratios mean something even where the rates are noisy. Not part of the tests.
"""
