"""Another objective, with a weight for each noise level."""

import math
from dataclasses import dataclass

from torch import Tensor

from ncsn.noise.checks import expect
from ncsn.objectives.objective import Objective
from ncsn.score import Score, ScoreModel

__all__ = ["Weighted"]


@dataclass(frozen=True)
class Weighted(Objective):
    """sigma^power times an objective, the lambda(sigma) of Song & Ermon (2019, equation 6).

    A score has size 1/sigma, and its squared loss 1/sigma^2: with power 2 every level counts
    alike. `DenoisingScoreMatching` contains that weight.

    Args:
        objective: the objective.
        power: the power of sigma.
    """

    objective: Objective
    power: float = 2.0

    def __post_init__(self) -> None:
        expect("a finite power", math.isfinite(self.power), self, power=self.power)
        for name in ("gaussian_noise", "binary_data"):
            object.__setattr__(self, name, getattr(self.objective, name))

    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        weight: Tensor = sigma.reshape(-1) ** self.power
        return weight * self.objective(score, x, sigma)

    def of(self, model: ScoreModel, label: Tensor | None = None) -> Score:
        return self.objective.of(model, label)
