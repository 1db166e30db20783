"""Networks: F(x, noise, cond), any of which a denoiser can precondition.

A network is called with the scaled state x of shape (B, C, *spatial), a noise scalar of order one per sample (B,) or
per token (B, T), and the embedded condition, whose entry ``vector`` has shape (B, cond_dim). It returns the shape of x,
and returns zero before training. Sizes are free at run time as far as the network's factor divides them.
"""

from suffuse.nn.autoencoder import ConvAutoencoder
from suffuse.nn.dit import DiT
from suffuse.nn.unet import UNet

__all__ = ["ConvAutoencoder", "DiT", "UNet"]
