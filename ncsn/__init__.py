"""Score-based generative models: noise schedule, score, objective, sampler.

The public names are resolved when they are first used, so that the theory needs torch alone.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "GeometricSchedule": "noise",
    "KarrasSchedule": "noise",
    "LogNormalSchedule": "noise",
    "NoNoise": "noise",
    "NoiseSchedule": "noise",
    "Denoiser": "score",
    "EDMDenoiser": "score",
    "EnergyScore": "score",
    "NCSNDenoiser": "score",
    "tweedie": "score",
    "Gaussian": "densities",
    "GaussianMixture": "densities",
    "HyperCubeWindow": "densities",
    "ParzenWindow": "densities",
    "Annealed": "objectives",
    "DenoisingScoreMatching": "objectives",
    "EDMScoreMatching": "objectives",
    "ExplicitScoreMatching": "objectives",
    "FiniteDifferenceSlicedScoreMatching": "objectives",
    "GaussianNoise": "objectives",
    "ImplicitScoreMatching": "objectives",
    "LaplaceNoise": "objectives",
    "Objective": "objectives",
    "PseudoLikelihood": "objectives",
    "RatioMatching": "objectives",
    "SlicedScoreMatching": "objectives",
    "Ancestral": "samplers",
    "AnnealedLangevin": "samplers",
    "ConsistentAnnealed": "samplers",
    "DPMSolver": "samplers",
    "EulerMaruyama": "samplers",
    "Gibbs": "samplers",
    "Langevin": "samplers",
    "MetropolisAdjustedLangevin": "samplers",
    "PredictorCorrector": "samplers",
    "ProbabilityFlow": "samplers",
    "Sampler": "samplers",
    "StochasticHeun": "samplers",
    "Streams": "streams",
    "bits_per_dim": "likelihood",
    "log_prob": "likelihood",
    "AveragePooling": "guidance",
    "GaussianBlur": "guidance",
    "Mask": "guidance",
    "adjoint": "guidance",
    "classifier_free": "guidance",
    "encode": "guidance",
    "grey": "guidance",
    "inpaint": "guidance",
    "posterior": "guidance",
    "restore_known": "guidance",
    "slerp": "guidance",
    "AutoencoderEnergy": "networks",
    "MLP": "networks",
    "RBM": "networks",
    "UNet": "networks",
    "BinaryDigits": "data",
    "CIFAR10": "data",
    "MNIST": "data",
    "Digits": "data",
    "FashionMNIST": "data",
    "ImageData": "data",
    "ImageFolder": "data",
    "Points": "data",
    "ScoreModule": "module",
    "DurableCheckpointIO": "checkpoints",
    "load": "checkpoints",
    "save_safetensors": "checkpoints",
    "Features": "features",
    "load_features": "features",
    "Inception": "inception",
    "load_inception": "inception",
    "Judge": "judging",
    "real_pictures": "judging",
    "frechet_distance": "metrics",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ncsn' has no attribute {name!r}")
    return getattr(import_module(f"ncsn.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
