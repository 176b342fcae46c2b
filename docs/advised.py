"""Sample a folder of images by annealed Langevin dynamics with the advised settings.

    python docs/advised.py IMAGES SIGMA_MAX LEVELS STEPS advised.png

This tests the settings that `ncsn advise` prints, without a network. The score is that of
the Parzen density of 5,000 images, so each sample must be one of these images.
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
images = to_unit(data.splits["train"][order[:5000].tolist()][0])
sigmas = GeometricSchedule(float(sigma_max), 0.01, int(levels)).sigmas()
with Streams(0, range(36), images.device):
    start = uniform(images[:36])
    start = start + sigmas[0] * normal(start)
    *_, x = AnnealedLangevin("auto", int(steps))(ParzenWindow(images).score, start, sigmas)
distance, index = torch.cdist(x.flatten(1), images.flatten(1)).min(1)
print(
    f"36 samples of {len(index.unique())} different images, at a mean distance of {distance.mean():.4f}"
)
save_grid(x, Path(out))
