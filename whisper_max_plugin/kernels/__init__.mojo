"""The operations of the graphs: the step's, those for many rows, search, spectrogram. Their bodies for GPUs lie in gpu_*."""

from .align import *
from .attention import *
from .flash import *
from .follow import *
from .gemm import *
from .gpu_step import *
from .layers import *
from .linear import *
from .linear_int8 import *
from .log_mel import *
from .many_tokens import *
from .matmul import *
from .pairs import *
from .phases import *
from .search import *
from .sharing import *
