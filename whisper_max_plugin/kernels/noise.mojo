"""The noise by which a token is sampled: of a seed and a token, it is the same wherever it is computed, but for rounding."""

from std.math import log
from std.random.philox import Random

from .vectors import Float


@always_inline
def gumbel(seed: Int64, token: Int) -> Float:
    """Return a number of Gumbel's distribution: of logits with such numbers, the largest is a sample of their softmax.

    With ``temperature`` times the number, it is one of the softmax of ``logits / temperature``.
    """
    var random = Random(seed=UInt64(seed), subsequence=UInt64(token), offset=0)
    var bits = random.step()[0]
    var uniform = (Float(bits >> 9) + 0.5) * Float(1.0 / 8388608.0)  # of 23 bits, so that neither 0 nor 1 is among them
    # -log(1 - uniform), of which the small ones decide; a GPU's logarithm is not exact near 1
    var exponential = uniform * (1 + uniform * (1.0 / 2.0 + uniform * (1.0 / 3.0 + uniform / 4.0)))
    if uniform > 1.0 / 64.0:
        exponential = -log(1 - uniform)
    return -log(exponential)
