"""How good a model is at questions: lm-eval's tasks on a model that Megatron-LM trained."""
