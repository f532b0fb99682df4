"""The spectrogram graph: from samples to mels, on the host, whatever the other graphs run on."""

from __future__ import annotations

from max.dtype import DType
from max.graph import BufferType, DeviceRef, Graph, KernelLibrary, Module, TensorType
from whisper.audio import N_FFT
from whisper.model import ModelDimensions

from whisper_max_plugin.graphs.kernels import log_mel


def build_log_mel(module: Module, dims: ModelDimensions, library: KernelLibrary) -> None:
    """Add the graph ``log_mel`` to `module`, which mirrors upstream's ``log_mel_spectrogram``.

    It is the host's, since upstream's `transcribe()` cuts the windows out of its result there: samples would have to go
    to a GPU, and mels to come back.

    Inputs
    ------
    mel (n_mels, n_frames), which it writes; samples (n_samples); window (N_FFT); filters (n_mels, N_FFT / 2 + 1);
    twiddles (N_FFT, 2), see `execution.mel_tables`; padding (1) int64, the number of zeros behind the samples.

    Outputs
    -------
    top (1): the largest value before they are scaled, NaN if a sample is not finite.
    """
    host = DeviceRef.CPU()
    input_types = [
        BufferType(DType.float32, [dims.n_mels, "n_frames"], host),
        TensorType(DType.float32, ["n_samples"], host),
        TensorType(DType.float32, [N_FFT], host),
        TensorType(DType.float32, [dims.n_mels, N_FFT // 2 + 1], host),
        TensorType(DType.float32, [N_FFT, 2], host),
        TensorType(DType.int64, [1], host),
    ]
    with Graph("log_mel", input_types=input_types, module=module, kernel_library=library) as graph:
        mel = graph.inputs[0].buffer
        samples, window, filters, twiddles, padding = (value.tensor for value in graph.inputs[1:])
        graph.output(log_mel(mel, samples, window, filters, twiddles, padding))
