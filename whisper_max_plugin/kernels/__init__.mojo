"""Kernels of the graphs on the CPU, as custom operations: the step's, and those for many rows."""

from .attention import *
from .flash import *
from .gemm import *
from .linear import *
from .matmul import *
from .sharing import *
