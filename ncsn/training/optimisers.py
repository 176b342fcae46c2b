"""Muon for matrices, with Adam for the other parameters."""

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from ncsn.noise.checks import expect

__all__ = ["MuonAdam", "skip_step"]

# Five steps of X <- a X + b (X X^T) X + c (X X^T)^2 X bring all singular values near 1.
NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315
# The RMS of an update in learning rates, close to that of Adam (Liu et al., 2025).
RMS = 0.2


class MuonAdam(Optimizer):
    """Muon (Jordan et al., 2024) for matrices and convolutions, Adam for vectors.

    Muon's update is its momentum with all singular values set to about 1. A convolution
    is a matrix (out, in * height * width). The singular values are set in bfloat16 if
    the device has instructions for it.

    Args:
        params: the parameters.
        lr: the learning rate of both, as for Adam or somewhat higher.
        momentum: of Muon, in [0, 1).
        betas: of Adam.

    Raises:
        ValueError: if momentum is not in [0, 1), or `params` are groups or no matrices.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        expect("0 <= momentum < 1", 0 <= momentum < 1, self, momentum=momentum)
        every = list(params)
        if not all(isinstance(p, Tensor) for p in every):
            raise ValueError(
                "MuonAdam takes parameters, and neither groups of them nor their names"
            )
        matrices = [p for p in every if p.ndim > 1]
        if not matrices:
            raise ValueError("MuonAdam: no matrix among the parameters; use torch.optim.Adam")
        vectors = {"params": [p for p in every if p.ndim < 2]}
        self.found_inf: Tensor | None = None
        self._adam = Adam([vectors], lr=lr, betas=betas, fused=True)
        muon = {"params": matrices, "momentum": momentum}
        super().__init__([*self._adam.param_groups, muon], {"lr": lr})

    def __getstate__(self) -> dict[str, Any]:  # copies need `_adam`, which torch leaves out
        return {**super().__getstate__(), "_adam": self._adam, "found_inf": self.found_inf}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take a step; return the loss of `closure`, which computes the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        vectors, matrices = self.param_groups
        # `load_state_dict` replaces both objects.
        self._adam.param_groups, self._adam.state = [vectors], self.state
        skip_step(self._adam, self.found_inf)
        self._adam.step()
        updates: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        moved = [p for p in matrices["params"] if p.grad is not None]
        for p, towards in zip(moved, self._towards(moved, matrices["momentum"]), strict=True):
            update = towards.flatten(1)
            updates.setdefault(update.shape, []).append((p, update))
        for shape, found in updates.items():
            rate = matrices["lr"] * RMS * math.sqrt(max(shape))
            stacked = torch.stack([update for _, update in found])
            if stacked.dtype == torch.float32 and has_bfloat16(stacked.device):
                stacked = stacked.bfloat16()
            turned = orthogonal(stacked)
            if self.found_inf is not None:
                turned = torch.where(self.found_inf, 0, turned)
            for (p, _), update in zip(found, turned, strict=True):
                p.add_(update.view_as(p), alpha=-rate)
        return loss

    def _towards(self, parameters: list[Tensor], momentum: float) -> tuple[Tensor, ...]:
        """Return the Nesterov momentum of each parameter after its newest gradient."""
        if not parameters:
            return ()
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum"] for p in parameters]
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.found_inf is not None:
            pairs = zip(momenta, grads, strict=True)
            grads = [torch.where(self.found_inf, kept, grad) for kept, grad in pairs]
        torch._foreach_lerp_(momenta, grads, 1 - momentum)
        return torch._foreach_lerp(grads, momenta, momentum)


def skip_step(optimizer: Optimizer, skipped: Tensor | None) -> None:
    """Let the next step of `optimizer` change nothing if `skipped` (), a bool, is true.

    `MuonAdam` and fused optimisers of torch read it on the device, as `found_inf`. For any
    other, it is read here, which makes a GPU wait, and the gradients are removed.
    """
    if isinstance(optimizer, MuonAdam):
        optimizer.found_inf = skipped
    elif all(group.get("fused") for group in optimizer.param_groups):
        found_inf = None if skipped is None else skipped.float()
        optimizer.found_inf = found_inf  # type: ignore[attr-defined]
    elif skipped:
        optimizer.zero_grad(set_to_none=True)


@cache
def has_bfloat16(device: torch.device) -> bool:
    """Return True if `device` has instructions for bfloat16; others may emulate it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def orthogonal(matrices: Tensor) -> Tensor:
    """Set the singular values of `matrices` (B, M, N) to about 0.7 to 1.2."""
    a, b, c = NEWTON_SCHULZ
    *_, rows, columns = matrices.shape
    x = matrices if rows <= columns else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    # Computing the powers of X X^T first would take fewer operations, but in TF32 or
    # bfloat16 rounding errors would grow in directions of small singular values.
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if rows <= columns else x.mT
