"""Fourier transforms of frames of audio, as many frames side by side as a register of the CPU has lanes.

Value i of all frames is a vector, so that nothing ever moves between lanes, and what is true of one number below is true
of as many.
"""

from std.complex import ComplexSIMD
from std.math import cos, pi, sin

from .vectors import Float, Numbers, WIDTH

comptime N_FFT = 400  # whisper.audio.N_FFT: values of a frame
comptime N_BINS = N_FFT // 2 + 1
comptime HALF = N_FFT // 2

comptime Complex = ComplexSIMD[DType.float32, WIDTH]


@always_inline
def load(x: Pointer[Float, ...], i: Int) -> Complex:
    """Load complex number `i` of all frames: their values 2i and 2i + 1."""
    return Complex(x.unsafe_load[width=WIDTH](2 * i * WIDTH), x.unsafe_load[width=WIDTH]((2 * i + 1) * WIDTH))


@always_inline
def store(x: Pointer[mut=True, Float, ...], i: Int, z: Complex):
    """Store complex number `i` of all frames."""
    x.unsafe_store(2 * i * WIDTH, z.re)
    x.unsafe_store((2 * i + 1) * WIDTH, z.im)


@always_inline
def twiddled(z: Complex, twiddles: Numbers[], i: Int) -> Complex:
    """Return the product of `z` and the twiddle factor `i`, ``exp(-2j * pi * i / N_FFT)``."""
    var re = twiddles[unsafe_offset = 2 * i]
    var im = twiddles[unsafe_offset = 2 * i + 1]
    return Complex(z.re * re - z.im * im, z.re * im + z.im * re)


def angle(i: Int, n: Int) -> Float64:
    """Return `i` parts in `n` of a whole turn."""
    return 2 * pi * Float64(i % n) / Float64(n)


@always_inline
def butterfly[radix: Int](a: Array[Complex, radix]) -> Array[Complex, radix]:
    """Return the transform of a few numbers, by sums and differences of those that mirror each other."""
    var b = a.copy()
    comptime for j in range(radix // 2 + 1):
        var even = a[0]
        var odd = Complex(0, 0)
        comptime for n in range(1, (radix + 1) // 2):
            comptime c = cos(angle(j * n, radix)).cast[DType.float32]()
            comptime s = sin(angle(j * n, radix)).cast[DType.float32]()
            var sum = a[n] + a[radix - n]
            var difference = a[n] - a[radix - n]
            even = Complex(sum.re.fma(c, even.re), sum.im.fma(c, even.im))
            odd = Complex(difference.re.fma(s, odd.re), difference.im.fma(s, odd.im))
        comptime if radix % 2 == 0:
            even = even + a[radix // 2] if j % 2 == 0 else even - a[radix // 2]
        b[j] = Complex(even.re + odd.im, even.im - odd.re)
        comptime if j > 0:
            b[radix - j] = Complex(even.re - odd.im, even.im + odd.re)
    return b^


@always_inline
def stage[
    radix: Int, n: Int, stride: Int
](y: Pointer[mut=True, Float, ...], x: Pointer[Float, ...], twiddles: Numbers[]):
    """Split transforms of `n` numbers, which are `stride` apart, into `radix` each, by Stockham's algorithm.

    What is transformed when `n` is down to 1 is in order, as numbers move to their places on the way.
    """
    comptime rest = n // radix
    for p in range(rest):
        for q in range(stride):
            var a = Array[Complex, radix](fill=Complex(0, 0))
            comptime for k in range(radix):
                a[k] = load(x, q + stride * (p + rest * k))
            var b = butterfly[radix](a)
            comptime for j in range(radix):
                var z = b[j]
                comptime if j > 0 and rest > 1:
                    z = twiddled(z, twiddles, p * j * stride * (N_FFT // HALF))
                store(y, q + stride * (radix * p + j), z)


@always_inline
def power_spectrum(
    power: Pointer[mut=True, Float, ...],
    x: Pointer[mut=True, Float, ...],
    scratch: Pointer[mut=True, Float, ...],
    twiddles: Numbers[],
):
    """Compute the squared magnitudes of the transforms of real x (N_FFT, WIDTH), power (N_BINS, WIDTH).

    x is taken for half as many complex numbers, whose transform holds those of the values at even and at odd places;
    from these come two bins at a time. It is overwritten, as is `scratch`, of the same size. twiddles (N_FFT, 2).
    """
    stage[8, HALF, 1](scratch, x, twiddles)
    stage[5, HALF // 8, 8](x, scratch, twiddles)
    stage[5, HALF // 40, 40](scratch, x, twiddles)
    for k in range(HALF // 2 + 1):
        var z = load(scratch, k)
        var mirrored = load(scratch, (HALF - k) % HALF).conj()
        var even = z + mirrored
        var odd = z - mirrored  # times 1j
        odd = twiddled(Complex(odd.im, -odd.re), twiddles, k)
        power.unsafe_store(k * WIDTH, (even + odd).squared_norm() * 0.25)
        power.unsafe_store((HALF - k) * WIDTH, (even - odd).squared_norm() * 0.25)
