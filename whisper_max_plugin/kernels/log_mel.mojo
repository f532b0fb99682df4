"""The log-mel spectrogram of a recording, as ``whisper.audio.log_mel_spectrogram`` makes it."""

import extensibility
from extensibility import InputTensor, OutputTensor
from extensibility import _MutableInputTensor as MutableInputTensor
from max.gpu.host import DeviceContext
from std.math import ceildiv, log10

from .fft import N_BINS, N_FFT, power_spectrum
from .gemm import Scratch, transpose
from .sharing import share
from .vectors import Float, Floats, Numbers, Results, WIDTH, numbers, results

comptime HOP_LENGTH = 160  # whisper.audio.HOP_LENGTH
comptime SPAN = N_FFT + (WIDTH - 1) * HOP_LENGTH  # samples of as many frames as are transformed together
comptime FRAMES = 64  # of a task
comptime SMALLEST = Float(1e-10)  # power, of which there is a logarithm


@fieldwise_init
struct Recording(TrivialRegisterPassable):
    """Samples, some zeros behind them, and on both sides a mirror image of it all, since frames are centred."""

    var samples: Numbers[]
    var n_samples: Int
    var n_padded: Int  # with the zeros

    @always_inline
    def is_silent(self, start: Int) -> Bool:
        """Tell whether all from `start` on are zeros."""
        return start >= self.n_samples and self.n_padded - self.n_samples > N_FFT

    @always_inline
    def samples_of(self, start: Int, copied: Results[]) -> Numbers[]:
        """Return where SPAN samples lie, from the one numbered `start` on: in the recording, or `copied`."""
        if start >= 0 and start + SPAN <= self.n_samples:
            return self.samples.unsafe_offset(start)
        for i in range(SPAN):
            var place = abs(start + i)
            if place >= self.n_padded:
                place = 2 * (self.n_padded - 1) - place
            copied[unsafe_offset=i] = self.samples[unsafe_offset=place] if 0 <= place < self.n_samples else 0
        return numbers(copied)


@always_inline
def lay_out_frames(frames: Pointer[mut=True, Float, ...], samples: Numbers[], window: Numbers[]):
    """Write WIDTH frames side by side, (N_FFT, WIDTH), each of its samples times `window`."""
    for i in range(0, N_FFT, WIDTH):
        var square = Array[Floats, WIDTH](fill=Floats(0))
        comptime for l in range(WIDTH):
            square[l] = samples.unsafe_load[width=WIDTH](HOP_LENGTH * l + i)
        var rows = transpose(square)
        comptime for j in range(WIDTH):
            frames.unsafe_store((i + j) * WIDTH, rows[j] * window[unsafe_offset = i + j])


def bounds_of(filters: Numbers[], n_mels: Int) -> List[Int]:
    """Return the first bin of each filter, and the one behind its last: it is zero but for some bins in a row."""
    var bounds = List[Int](capacity=2 * n_mels)
    for m in range(n_mels):
        var begin = 0
        var end = N_BINS
        while begin < end and filters[unsafe_offset = m * N_BINS + begin] == 0:
            begin += 1
        while begin < end and filters[unsafe_offset = m * N_BINS + end - 1] == 0:
            end -= 1
        bounds.append(begin)
        bounds.append(end)
    return bounds^


def scale(mel: Results[], top: Float, n_mels: Int, n_frames: Int) raises:
    """Clamp the logarithms in mel (n_mels, n_frames) to 8 below `top` at least, and scale them, as upstream does."""

    def scale_row(m: Int) raises {imm}:
        var row = mel.unsafe_offset(m * n_frames)
        var vector_end = n_frames // WIDTH * WIDTH
        for i in range(0, vector_end, WIDTH):
            row.unsafe_store(i, (max(row.unsafe_load[width=WIDTH](i), Floats(top - 8)) + 4) / 4)
        for i in range(vector_end, n_frames):
            row[unsafe_offset=i] = (max(row[unsafe_offset=i], top - 8) + 4) / 4

    share(scale_row, n_mels)


def log_mel(
    mel: Results[],
    recording: Recording,
    window: Numbers[],
    filters: Numbers[],
    twiddles: Numbers[],
    n_mels: Int,
    n_frames: Int,
) raises -> Float:
    """Write mel (n_mels, n_frames), and return its largest value before it is scaled, which nothing else tells.

    NaN is returned if a sample was not finite. filters (n_mels, N_BINS); twiddles as in `power_spectrum`.
    """
    comptime assert N_FFT % WIDTH == 0, "a frame is not a whole number of vectors"
    var bounds = bounds_of(filters, n_mels)
    var n_tasks = ceildiv(n_frames, FRAMES)
    var tops = List[Float](length=n_tasks, fill=log10(SMALLEST))
    var of_tasks = results(tops.unsafe_ptr())

    def transform(task: Int) raises {imm}:
        var of_frames = Scratch(N_FFT * WIDTH)
        var of_scratch = Scratch(N_FFT * WIDTH)
        var of_power = Scratch(N_BINS * WIDTH)
        var of_copy = Scratch(SPAN)
        var power = of_power.pointer()
        var top = Floats(log10(SMALLEST))
        var total = Floats(0)  # of all values: finite if they are
        for first in range(task * FRAMES, min(n_frames, (task + 1) * FRAMES), WIDTH):
            var start = first * HOP_LENGTH - N_FFT // 2
            var silent = recording.is_silent(start)
            if not silent:
                var samples = recording.samples_of(start, results(of_copy.pointer()))
                lay_out_frames(of_frames.pointer(), samples, window)
                power_spectrum(power, of_frames.pointer(), of_scratch.pointer(), twiddles)
            for m in range(n_mels):
                var sum = Floats(0)
                if not silent:
                    for k in range(bounds[2 * m], bounds[2 * m + 1]):
                        var weight = Floats(filters[unsafe_offset = m * N_BINS + k])
                        sum = power.unsafe_load[width=WIDTH](k * WIDTH).fma(weight, sum)
                total += sum
                var value = log10(max(sum, Floats(SMALLEST)))
                var row = mel.unsafe_offset(m * n_frames + first)
                if first + WIDTH <= n_frames:
                    row.unsafe_store(0, value)
                    top = max(top, value)
                else:
                    for l in range(n_frames - first):
                        row[unsafe_offset=l] = value[l]
                        top = max(top, Floats(value[l]))
        of_tasks[unsafe_offset=task] = top.reduce_max() + 0 * total.reduce_add()

    share(transform, n_tasks)
    var top = log10(SMALLEST)
    var total = Float(0)
    for task in range(n_tasks):
        top = max(top, tops[task])
        total += tops[task]

    scale(mel, top, n_mels, n_frames)
    return top + 0 * total


@extensibility.register("whisper_log_mel")
struct LogMel:
    """Make a log-mel spectrogram (n_mels, n_frames) of samples (n_samples), with some zeros behind them; on the CPU.

    top (1): the largest value before all are scaled, NaN if a sample is not finite; window (N_FFT); filters (n_mels,
    N_BINS); twiddles (N_FFT, 2), ``exp(-2j * pi * i / N_FFT)``; padding (1): the number of zeros.
    """

    @staticmethod
    def execute[
        target: StaticString
    ](
        top: OutputTensor[dtype=DType.float32, rank=1, ...],
        mel: MutableInputTensor[dtype=DType.float32, rank=2, ...],
        samples: InputTensor[dtype=DType.float32, rank=1, ...],
        window: InputTensor[dtype=DType.float32, rank=1, ...],
        filters: InputTensor[dtype=DType.float32, rank=2, ...],
        twiddles: InputTensor[dtype=DType.float32, rank=2, ...],
        padding: InputTensor[dtype=DType.int64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var n_samples = samples.dim_size(0)
        var n_padded = n_samples + Int(padding.unsafe_ptr()[unsafe_offset=0])
        top.unsafe_ptr()[unsafe_offset=0] = log_mel(
            results(mel.unsafe_ptr()),
            Recording(numbers(samples.unsafe_ptr()), n_samples, n_padded),
            numbers(window.unsafe_ptr()),
            numbers(filters.unsafe_ptr()),
            numbers(twiddles.unsafe_ptr()),
            mel.dim_size(0),
            mel.dim_size(1),
        )
