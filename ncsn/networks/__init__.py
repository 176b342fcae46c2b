"""Networks: plain modules that know nothing of noise schedules or scores.

`UNet` and `MLP` are the F(x, c_noise, label) of a denoiser. `AutoencoderEnergy` and
`RBM` are energies (x, sigma).
"""

from ncsn.networks.autoencoder import AutoencoderEnergy
from ncsn.networks.layers import TiedUnits
from ncsn.networks.mlp import MLP
from ncsn.networks.rbm import RBM
from ncsn.networks.unet import UNet

__all__ = ["MLP", "RBM", "AutoencoderEnergy", "TiedUnits", "UNet"]
