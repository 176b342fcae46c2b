"""An optimiser that gets more out of each picture than Adam does: Muon, and Adam where it does not apply."""

import math
from collections.abc import Callable, Iterable
from functools import cache
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
    seldom have as in those that they always have. A convolution is the matrix (out, in * height * width). The values
    are set in bfloat16 where a device has instructions for it, whatever the precision of the rest.

    Args:
        params: the parameters.
        lr: the learning rate of both, as one would give it to Adam, or somewhat higher.
        momentum: the weight of the past in Muon's momentum.
        betas: the weights of the past in Adam's means, of gradients and of their squares.

    Raises:
        ValueError: where a number is out of its range, the parameters are in groups, or there is no matrix among them,
            as under FSDP, whose shards are vectors.
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
        if not all(isinstance(p, Tensor) for p in every):
            raise ValueError(
                "MuonAdam: takes parameters, and neither groups of them nor their names"
            )
        matrices = [p for p in every if p.ndim > 1]
        if not matrices:
            raise ValueError(
                "MuonAdam: there is no matrix among the parameters; take torch.optim.Adam"
            )
        self._adam = Adam(
            [{"params": [p for p in every if p.ndim < 2]}], lr=lr, betas=betas, fused=True
        )
        super().__init__(
            [*self._adam.param_groups, {"params": matrices, "momentum": momentum}], {"lr": lr}
        )

    def __getstate__(
        self,
    ) -> dict[str, Any]:  # for copies: torch's leaves out what it does not know
        return {**super().__getstate__(), "_adam": self._adam}

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
            turned = orthogonal(coarse(torch.stack([update for _, update in found])))
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


def coarse(matrices: Tensor) -> Tensor:
    """`matrices` in bfloat16, where they are of float32 and their device multiplies faster in it."""
    return (
        matrices.bfloat16()
        if matrices.dtype == torch.float32 and has_bfloat16(matrices.device)
        else matrices
    )


@cache
def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` is known to have instructions for bfloat16: others may take it, and be slower for it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def orthogonal(matrices: Tensor) -> Tensor:
    """`matrices` (B, M, N) with their singular vectors as they were, and values of 0.7 to 1.2, or less where tiny."""
    a, b, c = NEWTON_SCHULZ
    *_, rows, columns = matrices.shape
    x = matrices if rows <= columns else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    # The powers of X X^T for all steps could be had before X is touched, in fewer operations; but in TF32 or bfloat16
    # what they round off would grow in the directions that X hardly has.
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if rows <= columns else x.mT
