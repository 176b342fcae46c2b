"""Networks F(x, c_noise, label): plain `nn.Module`s that know nothing of noise schedules or scores."""

from ncsn.networks.autoencoder import AutoencoderEnergy
from ncsn.networks.mlp import MLP
from ncsn.networks.rbm import RBM
from ncsn.networks.unet import UNet

__all__ = ["MLP", "RBM", "AutoencoderEnergy", "UNet"]
