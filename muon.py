"""Muon, the optimiser of the convolutions' weights: Jordan et al., 2024, kellerjordan.github.io/posts/muon."""

import torch
from torch import Tensor
from torch.optim import Optimizer


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of each matrix (..., rows, columns) near 1, so that no direction dominates it.

    Newton and Schulz's iteration needs only products of matrices. With Jordan's factors five steps bring what was
    above a hundredth of the largest value to between about 0.7 and 1.2; a matrix of zeros stays zero.
    """
    # the Frobenius norm is no less than the largest singular value, and the iteration starts from values up to 1
    result = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        square = result @ result.mT
        result = 3.4445 * result + (2.0315 * square @ square - 4.775 * square) @ result
    return result


class Muon(Optimizer):
    """Momentum whose update of each weight (out, ...), as a matrix (out, rest), is orthogonalised.

    Its authors advise it for hidden layers only; here it trains the first convolution and the head too, for simplicity.
    PyTorch's own Muon takes the matrices one by one; here those of a parameter group are stacked, which is faster.
    Smaller ones are filled up with zeros, which change nothing in the rest of an orthogonal update. A weight without a
    gradient, such as a frozen one, is left as it is.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Move the weights by their gradients."""
        for group in self.param_groups:
            weights, rate, momentum = group["params"], group["lr"], group["momentum"]
            state = self.state[weights[0]]  # one buffer for the group, as the state of its first weight
            if not state:
                shape = len(weights), max(len(w) for w in weights), max(w[0].numel() for w in weights)
                state["momentum_buffer"] = torch.zeros(shape, device=weights[0].device)
            buffer = state["momentum_buffer"]
            gradient = torch.zeros_like(buffer)
            for weight, part in zip(weights, gradient, strict=True):
                if weight.grad is not None:
                    part[:len(weight), :weight[0].numel()] = weight.grad.flatten(1)
            buffer.lerp_(gradient, 1 - momentum)
            update = orthogonalize(gradient.lerp(buffer, momentum))  # Nesterov's look ahead
            for weight, part in zip(weights, update, strict=True):
                if weight.grad is not None:
                    columns = weight[0].numel()
                    tallness = max(1, len(weight) / columns)  # so that a tall matrix changes its outputs as much
                    weight.mul_(1 - rate * group["weight_decay"])
                    weight.add_(part[:len(weight), :columns].view_as(weight), alpha=-rate * tallness**0.5)
