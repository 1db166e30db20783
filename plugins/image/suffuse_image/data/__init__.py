"""Data: where pictures come from. Each class is one source; all yield items of `Pictures`."""

from suffuse_image.data.cifar import CIFAR10
from suffuse_image.data.digits import Digits
from suffuse_image.data.folder import Folder
from suffuse_image.data.hf import HuggingFace
from suffuse_image.data.mnist import MNIST, FashionMNIST
from suffuse_image.data.shapes_text import ShapesText

__all__ = ["CIFAR10", "MNIST", "Digits", "FashionMNIST", "Folder", "HuggingFace", "ShapesText"]
