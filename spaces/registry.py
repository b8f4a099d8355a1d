"""Every space by name. A new one: a `Space` in its family's file, and its name here."""

from typing import Final

from .cifar10 import CIFAR10_SMALL
from .digits import DIGITS_SMALL
from .mnist import MNIST_MEDIUM, MNIST_SMALL
from .space import Space

SPACES: Final[dict[str, Space]] = {
    space.name: space for space in (DIGITS_SMALL, MNIST_SMALL, MNIST_MEDIUM, CIFAR10_SMALL)
}
