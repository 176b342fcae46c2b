"""An optimiser that gets more out of each picture than Adam does: Muon, and Adam where it does not apply."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

__all__ = ["MuonAdam"]

NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315
"""a, b, c of X <- a X + b (X X^T) X + c (X X^T)^2 X, which takes all singular values near to 1 in five steps."""
RMS = 0.2
"""Of the numbers in an update, in learning rates: about as Adam's, so that one rate serves both (Liu et al., 2025)."""


class MuonAdam(Optimizer):
    """Muon (Jordan et al., 2024) for matrices and convolutions; for biases and scales, Adam.

    Muon's step is its momentum with all singular values set to about 1: it goes as far in the directions that gradients
    seldom have as in those that they always have. A convolution is the matrix (out, in * height * width).

    Args:
        params: the parameters.
        lr: the learning rate of both, as one would give it to Adam, or somewhat higher.
        momentum: the weight of the past in Muon's momentum.
        betas: the weights of the past in Adam's means, of gradients and of their squares.

    Raises:
        ValueError: where a number is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"MuonAdam: momentum is {momentum}, and must be from 0 to below 1")
        every = list(params)
        self._adam = Adam([{"params": [p for p in every if p.ndim < 2]}], lr=lr, betas=betas, fused=True)
        matrices = {"params": [p for p in every if p.ndim > 1], "momentum": momentum}
        super().__init__([*self._adam.param_groups, matrices], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take a step, with the gradients that `closure`, if there is one, leaves; its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        vectors, matrices = self.param_groups
        # Both are other objects once a state has been loaded.
        self._adam.param_groups, self._adam.state = [vectors], self.state
        self._adam.step()
        updates: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for p in matrices["params"]:
            if p.grad is not None:
                update = self._towards(p, p.grad, matrices["momentum"]).flatten(1)
                updates.setdefault(update.shape, []).append((p, update))
        for shape, found in updates.items():
            rate = matrices["lr"] * RMS * math.sqrt(max(shape))
            turned = orthogonal(torch.stack([update for _, update in found]))
            for (p, _), update in zip(found, turned, strict=True):
                p.add_(update.view_as(p), alpha=-rate)
        return loss

    def _towards(self, p: Tensor, grad: Tensor, momentum: float) -> Tensor:
        """Nesterov's momentum of a parameter, with its newest gradient taken in."""
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(grad, 1 - momentum)
        return torch.lerp(grad, state["momentum"], momentum)


def orthogonal(matrices: Tensor) -> Tensor:
    """`matrices` (B, M, N) with their singular vectors as they were, and values of 0.7 to 1.2, or less where tiny."""
    *_, rows, columns = matrices.shape
    wide = matrices if rows <= columns else matrices.mT
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    # X_5 = P_5 ... P_1 X_0, where P = a + b X X^T + c (X X^T)^2: all products but the first and the last are of small
    # square matrices, which are polynomials of one, and so go in any order.
    gram = wide @ wide.mT
    product = factor = polynomial(gram)
    for _ in range(4):
        gram = factor @ gram @ factor
        factor = polynomial(gram)
        product = factor @ product
    out: Tensor = product @ wide
    return out if rows <= columns else out.mT


def polynomial(gram: Tensor) -> Tensor:
    """The factors P (B, M, M) by which one step of the iteration multiplies X, of X X^T (B, M, M)."""
    a, b, c = NEWTON_SCHULZ
    factor: Tensor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor
