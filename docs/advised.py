"""Annealed Langevin on the levels and steps that are advised for a folder of pictures, along their exact score.

    python docs/advised.py PICTURES SIGMA_MAX LEVELS STEPS advised.png

What `ncsn advise` prints is tried without a network: the score is that of the Parzen density of 5,000
of the pictures, whose samples are those pictures, if the walk comes from noise to data as it should.
"""

import sys
from pathlib import Path

import torch

from ncsn.data import ImageFolder, to_unit
from ncsn.evaluation.grids import save_grid
from ncsn.noise import GeometricSchedule
from ncsn.noise.streams import Streams, normal, uniform
from ncsn.samplers import AnnealedLangevin
from ncsn.score.densities import ParzenWindow

root, sigma_max, levels, steps, out = sys.argv[1:]
data = ImageFolder(root, size=32)
data.setup()
order = torch.randperm(len(data.splits["train"]), generator=torch.Generator().manual_seed(0))
pictures = to_unit(data.splits["train"][order[:5000].tolist()][0])
sigmas = GeometricSchedule(float(sigma_max), 0.01, int(levels)).sigmas()
with Streams(0, range(36), pictures.device):
    start = uniform(pictures[:36])
    start = start + sigmas[0] * normal(start)
    *_, x = AnnealedLangevin("auto", int(steps))(ParzenWindow(pictures).score, start, sigmas)
distance, index = torch.cdist(x.flatten(1), pictures.flatten(1)).min(1)
print(
    f"{len(index.unique())} of 36 are different pictures, {distance.mean():.4f} from them on average"
)
save_grid(x, Path(out))
