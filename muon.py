"""Muon, the optimiser of the convolutions' weights."""

import torch
from torch import Tensor
from torch.optim import Optimizer


class Muon(Optimizer):
    """Momentum whose update of each weight, as a matrix (out, rest), is made orthogonal: no direction dominates it.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, kellerjordan.github.io/posts/muon.
    PyTorch's own Muon takes the matrices one by one. Here they are stacked, so that one operation does for all, which
    is faster; the smaller ones are filled up with zeros, which change nothing in the rest of an orthogonal update.
    """

    def __init__(self, weights: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        shape = len(weights), max(len(w) for w in weights), max(w[0].numel() for w in weights)
        # one buffer for all, as the state of the first weight: what belongs to a weight is loaded to its device
        self.state[weights[0]]["momentum_buffer"] = torch.zeros(shape, device=weights[0].device)

    def views(self, stack: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each weight, with its own part of a stack (weights, rows, columns) in the weight's shape."""
        return [(w, matrix[:len(w), :w[0].numel()].unflatten(1, w.shape[1:]))
                for w, matrix in zip(self.param_groups[0]["params"], stack, strict=True)]

    @torch.no_grad()
    def step(self) -> None:
        """Move the weights by their gradients, which all of them must have."""
        weights, rate, momentum, decay = (self.param_groups[0][name] for name in
                                          ("params", "lr", "momentum", "weight_decay"))
        buffer = self.state[weights[0]]["momentum_buffer"]
        gradient = torch.zeros_like(buffer)
        for weight, part in self.views(gradient):
            part.copy_(weight.grad)
        buffer.lerp_(gradient, 1 - momentum)
        update = gradient.lerp(buffer, momentum)  # Nesterov's look ahead
        # Newton and Schulz's iteration brings singular values from 0 to 1 near 1; the factors are Jordan's
        update /= update.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # the norm is no less than any of them
        for _ in range(5):
            square = update @ update.mT
            update = 3.4445 * update + (2.0315 * square @ square - 4.775 * square) @ update
        for weight, part in self.views(update):
            tallness = max(1, len(weight) / weight[0].numel())  # so that a tall matrix changes its outputs as much
            weight.mul_(1 - rate * decay).add_(part, alpha=-rate * tallness**0.5)
