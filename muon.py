"""Muon, the optimiser of the convolutions' weights: Jordan et al., 2024, kellerjordan.github.io/posts/muon."""

import torch
from torch import Tensor
from torch.optim import Optimizer


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring the singular values of each matrix (..., rows, columns) near 1, so that no direction dominates it.

    Newton and Schulz's iteration needs only products of matrices. With Jordan's factors five steps bring what was
    above a hundredth of the largest value to between about 0.7 and 1.2; a matrix of zeros stays zero.
    """
    # the Frobenius norm is no less than the largest singular value, and the iteration starts from values up to 1
    result = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = result @ result.mT
        result = 3.4445 * result + (2.0315 * square @ square - 4.775 * square) @ result
    return result


class Muon(Optimizer):
    """Gradient descent with momentum, in which each step is orthogonalised.

    Each weight (out, ...) counts as a matrix (out, rest): its gradients are averaged, the average is orthogonalised,
    and the weight moves a step against it. Muon's authors advise it for hidden layers; here it trains the first
    convolution and the head too, for simplicity. A weight without a gradient, such as a frozen one, is left as it is.
    PyTorch's own Muon takes matrices only, no convolutions.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Move the weights by their gradients."""
        for group in self.param_groups:
            weights = group["params"]
            gradients = stack([torch.zeros_like(w) if w.grad is None else w.grad for w in weights])
            state = self.state[weights[0]]  # one buffer for the group
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradients)
            buffer = state["momentum_buffer"]
            buffer.lerp_(gradients, 1 - group["momentum"])
            updates = orthogonalize(gradients.lerp(buffer, group["momentum"]))  # Nesterov's look ahead
            for weight, update in zip(weights, updates, strict=True):
                if weight.grad is not None:
                    rows, columns = weight.flatten(1).shape
                    scale = max(1, rows / columns) ** 0.5  # so that outputs move as much whatever the shape
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update[:rows, :columns].view_as(weight), alpha=-group["lr"] * scale)


def stack(tensors: list[Tensor]) -> Tensor:
    """Tensors (out, ...) as matrices (out, rest) of one size, so that all are orthogonalised at once, which is faster.

    Smaller ones are filled up with zeros, which change nothing in the rest of an orthogonalised matrix.
    """
    matrices = [tensor.flatten(1) for tensor in tensors]
    rows = max(len(matrix) for matrix in matrices)
    columns = max(matrix.shape[1] for matrix in matrices)
    stacked = tensors[0].new_zeros(len(matrices), rows, columns)
    for matrix, place in zip(matrices, stacked, strict=True):
        place[:len(matrix), :matrix.shape[1]] = matrix
    return stacked
