"""Another objective, with a weight for each noise level."""

import math
from dataclasses import dataclass

from torch import Tensor

from ncsn.noise import positive
from ncsn.objectives.objective import Objective
from ncsn.score import Score, ScoreModel

__all__ = ["Annealed"]


@dataclass(frozen=True)
class Annealed(Objective):
    """lambda(sigma) = sigma^power times an objective (Song & Ermon, 2019, equation 6).

    A score is of size 1/sigma, and its square loss of 1/sigma^2: with a power of 2 every level counts alike.
    `DenoisingScoreMatching` has this weight in it.

    Args:
        objective: what is weighted.
        power: of sigma.

    Raises:
        ValueError: where `power` is not finite; when called, as the objective does, and where a sigma is 0.
    """

    objective: Objective
    power: float = 2.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.power):
            raise ValueError(f"Annealed: power is {self.power}, and must be finite")

    def of(self, model: ScoreModel, label: Tensor | None = None) -> Score:
        return self.objective.of(model, label)

    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = positive(sigma, x)
        weight: Tensor = sigma.reshape(-1) ** self.power
        return weight * self.objective(score, x, sigma)
