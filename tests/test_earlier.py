"""Files of an earlier version (commit 871aba1) load, sample as they did, and are resumed.

`data/samples.safetensors` has its samples of the shipped digits, by every sampler. On one machine they are the same
to the bit; other processors round differently. Its random numbers were those of a torch.Generator for each sample, and
are given to the samplers of today.
"""

from pathlib import Path

import ncsn.model.model
import pytest
import torch
from ncsn import load, samplers
from ncsn.cli.main import main
from ncsn.noise import GeometricSchedule, KarrasSchedule, langevin_step_size
from ncsn.noise.streams import Streams, mixed_seed
from ncsn.samplers import Heun
from ncsn.training.module import ScoreModule
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parent.parent
DATA = REPOSITORY / "tests" / "data"
KARRAS, GEOMETRIC = KarrasSchedule(5, 0.02, 8).sigmas(), GeometricSchedule(5, 0.02, 40).sigmas()
ONE = torch.tensor([0.3])


class EarlierStreams(Streams):
    """The random numbers of the earlier version: ten steps at once, but for the first of a kind."""

    def __init__(self, seed, indices, device="cpu"):
        super().__init__(seed, indices, device)
        seeds = [(mixed_seed(seed) + index) % 2**32 for index in indices]
        self.generators = [torch.Generator(device).manual_seed(one) for one in seeds]
        self.ahead = {}

    def take(self, draw, x):
        kind = draw, x.shape
        steps = min(10, max(1, 2**16 // x.shape[1:].numel())) if kind in self.ahead else 1
        if not self.ahead.get(kind):
            shape = steps, *x.shape[1:]
            parts = [draw(shape, generator=generator, dtype=x.dtype) for generator in self.generators]
            self.ahead[kind] = list(torch.stack(parts, dim=1))
        return self.ahead[kind].pop(0)

    def normal(self, x):
        return self.take(torch.randn, x)

    def uniform(self, x):
        return self.take(torch.rand, x)


@pytest.fixture
def earlier_numbers(monkeypatch):
    monkeypatch.setattr(ncsn.model.model, "Streams", EarlierStreams)


def log_prob(x, sigma):
    return -(x - 0.5).square().flatten(1).sum(1)


CASES = {
    "Euler": (samplers.Euler(), KARRAS),
    "Heun": (samplers.Heun(), KARRAS),
    "Heun churn": (samplers.Heun(churn=5, churn_min=0.05, churn_max=5, inflation=1.01), KARRAS),
    "DPMSolver": (samplers.DPMSolver(), KARRAS),
    "DPMSolver eta": (samplers.DPMSolver(eta=2), KARRAS),
    "SASolver": (samplers.SASolver(eta=1), KARRAS),
    "Ancestral": (samplers.Ancestral(), KARRAS),
    "EulerMaruyama": (samplers.EulerMaruyama(), KARRAS),
    "PredictorCorrector": (samplers.PredictorCorrector(corrector_steps=2), KARRAS),
    "AnnealedLangevin": (samplers.AnnealedLangevin(langevin_step_size(GEOMETRIC, 2), 2), GEOMETRIC),
    "AnnealedLangevin raw": (samplers.AnnealedLangevin(1e-5, 1, denoise=False), GEOMETRIC),
    "ConsistentAnnealed": (samplers.ConsistentAnnealed(2e-4), GEOMETRIC),
    "Langevin": (samplers.Langevin(1e-3, 5), ONE),
    "MetropolisAdjustedLangevin": (samplers.MetropolisAdjustedLangevin(1e-3, 5, log_prob), ONE),
}


@pytest.mark.parametrize("name", CASES)
def test_a_sampler_gives_the_samples_that_it_gave(name, earlier_numbers):
    sampler, sigmas = CASES[name]
    x = load(REPOSITORY / "checkpoints" / "digits.safetensors").sample(2, 7, sampler=sampler, sigmas=sigmas)
    torch.testing.assert_close(x, load_file(DATA / "samples.safetensors")[name], atol=1e-3, rtol=0)


def test_a_checkpoint_loads_with_its_parts_by_their_names_of_today(earlier_numbers):
    model = load(DATA / "earlier.ckpt")
    assert model.sampler == Heun(churn=3)
    assert model.gaussian_noise
    assert model.sample(2).sum().item() == pytest.approx(30.7316, abs=1e-2)
    assert ScoreModule.load_from_checkpoint(DATA / "earlier.ckpt").sampler == Heun(churn=3)


def test_a_run_is_resumed_with_its_own_configuration(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = Path("checkpoints/run")
    folder.mkdir(parents=True)
    (folder / "step=8.ckpt").write_bytes((DATA / "earlier.ckpt").read_bytes())
    main(["train", "--config", str(DATA / "earlier.yaml"), "--ckpt_path", "last", "--trainer.max_steps", "10"])
    assert "Trained 10 steps." in capsys.readouterr().out
    assert load(folder / "step=10.ckpt").sampler == Heun(churn=3)
