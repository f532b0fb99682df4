"""Kernels of the decoder's step on the CPU, as custom operations of MAX graphs."""

from .attention import *
from .linear import *
