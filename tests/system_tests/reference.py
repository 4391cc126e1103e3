"""The training that Megatron's is compared with: a model of transformers in a plain loop, with PyTorch's AdamW.

What Megatron does and the loop therefore does too:

- Weights, their gradients over micro-batches and the optimizer's state are float32, whatever the model computes in.
- Vectors (the scales of RMSNorm) have no weight decay.
- Experts are balanced by a loss of each layer and micro-batch, ``E * sum_e f_e P_e``, with ``f_e`` the fraction of the
  tokens' choices, which add up to 1. ``load_balancing_loss_func`` of transformers counts tokens instead, which add up
  to ``top_k``, and takes the means over all layers before it multiplies. Called for one layer at a time and divided by
  ``top_k`` it gives Megatron's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Training:
    """What both trainings share.

    Attributes:
        warm_up: iterations in which the learning rate rises from 0; it then falls as a cosine.
    """

    iterations: int = 50
    global_batch: int = 8
    micro_batch: int = 2
    learning_rate: float = 1e-3
    least_learning_rate: float = 1e-4
    warm_up: int = 5
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    balance: float = 1e-2

    def flags(self, has_experts: bool) -> dict[str, object]:
        """The same for Megatron, for :func:`mixtral.tiny`."""
        return {
            "train_iters": self.iterations,
            "global_batch_size": self.global_batch,
            "micro_batch_size": self.micro_batch,
            "lr": self.learning_rate,
            "min_lr": self.least_learning_rate,
            "lr_decay_style": "cosine",
            "lr_warmup_iters": self.warm_up,
            "weight_decay": self.weight_decay,
            "adam_beta1": self.betas[0],
            "adam_beta2": self.betas[1],
            "clip_grad": self.clip,
            **({"moe_aux_loss_coeff": self.balance} if has_experts else {}),
        }


def train(folder: Path, samples: Tensor, training: Training, dtype: torch.dtype) -> Iterator[float]:
    """The loss of each iteration, without that of the router.

    Args:
        folder: of the model.
        samples: token ids ``[iterations * global batch, length + 1]``, in order.
        dtype: what the model computes in.
    """
    torch.set_num_threads(1)  # the tests beside this one have the other processors
    from transformers import AutoModelForCausalLM, get_cosine_with_min_lr_schedule_with_warmup

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.to(dtype)  # first: Megatron's float32 weights come from those that it computes with
    parameters = [nn.Parameter(parameter.detach().float().clone()) for parameter in model.parameters()]
    decayed = {
        "params": [parameter for parameter in parameters if parameter.dim() > 1],
        "weight_decay": training.weight_decay,
    }
    others = {"params": [parameter for parameter in parameters if parameter.dim() == 1], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([decayed, others], lr=training.learning_rate, betas=training.betas)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, training.warm_up, training.iterations, min_lr=training.least_learning_rate
    )
    for batch in samples.split(training.global_batch):
        batches = batch.split(training.micro_batch)
        losses = []
        for each in batches:
            loss, router_loss = _losses(model, each)
            losses.append(loss.item())
            ((loss + training.balance * router_loss) / len(batches)).backward()
            _move_gradients(model, parameters)
        nn.utils.clip_grad_norm_(parameters, training.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for parameter, trained in zip(model.parameters(), parameters, strict=True):
                parameter.copy_(trained)
        yield sum(losses) / len(losses)


def _losses(model: nn.Module, samples: Tensor) -> tuple[Tensor, Tensor]:
    """The mean loss of a token, and the sum of the layers' balancing losses."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = model.config
    experts = getattr(config, "num_local_experts", 0)
    found = model(samples[:, :-1], use_cache=False, **({"output_router_logits": True} if experts else {}))
    loss = nn.functional.cross_entropy(found.logits.float().flatten(0, 1), samples[:, 1:].flatten())
    of_layers = [
        load_balancing_loss_func((logits.float(),), experts, config.num_experts_per_tok) / config.num_experts_per_tok
        for logits in (found.router_logits if experts else ())
    ]
    return loss, torch.stack(of_layers).sum() if of_layers else torch.zeros(())


def _move_gradients(model: nn.Module, parameters: list[nn.Parameter]) -> None:
    """Add the model's gradients to those of the float32 parameters."""
    for parameter, trained in zip(model.parameters(), parameters, strict=True):
        gradient, parameter.grad = parameter.grad.float(), None
        trained.grad = gradient if trained.grad is None else trained.grad + gradient
