"""The network of silero-vad, on the weights that its package holds: how likely each 32 ms of audio are speech."""

from __future__ import annotations

import functools
import importlib.util
import pathlib

import torch
import torch.nn.functional as F
from torch import Tensor

from whisper_max_plugin.errors import PackageError

CHUNK = 512  # samples at 16 kHz that get one probability
CONTEXT = 64  # samples before a chunk that the network sees as well
STATE = 128  # width of its memory
BLOCK = 2048  # chunks that are computed at a time, 66 s: what bounds the memory

INSTALL = "pip install 'silero-vad>=6.2.3'"

# The network's parameters by their names in the package's TorchScript file, which also has another one for 8 kHz.
SHAPES = {
    "stft.forward_basis_buffer": (258, 1, 256),  # real parts of 129 frequencies, then their imaginary parts
    "encoder.0.reparam_conv.weight": (128, 129, 3),
    "encoder.0.reparam_conv.bias": (128,),
    "encoder.1.reparam_conv.weight": (64, 128, 3),
    "encoder.1.reparam_conv.bias": (64,),
    "encoder.2.reparam_conv.weight": (64, 64, 3),
    "encoder.2.reparam_conv.bias": (64,),
    "encoder.3.reparam_conv.weight": (128, 64, 3),
    "encoder.3.reparam_conv.bias": (128,),
    "decoder.rnn.weight_ih": (4 * STATE, 128),
    "decoder.rnn.weight_hh": (4 * STATE, STATE),
    "decoder.rnn.bias_ih": (4 * STATE,),
    "decoder.rnn.bias_hh": (4 * STATE,),
    "decoder.decoder.2.weight": (1, STATE, 1),
    "decoder.decoder.2.bias": (1,),
}
STRIDES = (1, 2, 2, 1)  # of the encoder's convolutions


@torch.inference_mode()
def speech_probabilities(samples: Tensor) -> Tensor:
    """
    Return how likely each chunk of `CHUNK` samples is speech, as silero-vad's own model does.

    That one takes a chunk per call, some 30 calls for each second of audio. Only its LSTM depends on the chunks before,
    so that all else is computed for `BLOCK` of them at once.

    Parameters
    ----------
    samples : Tensor, dtype = float32, shape = (n_samples,)
        the waveform at 16 kHz

    Returns
    -------
    Tensor, dtype = float32, shape = (ceil(n_samples / CHUNK),)
        the last chunk is filled up with zeros

    Raises
    ------
    PackageError
        by `load`
    """
    weights = load()
    n_chunks = -(-samples.shape[0] // CHUNK)
    padded = F.pad(samples, (CONTEXT, n_chunks * CHUNK - samples.shape[0]))
    state = samples.new_zeros(1, 1, STATE), samples.new_zeros(1, 1, STATE)
    probabilities = [samples.new_empty(0)]
    for begin in range(0, n_chunks, BLOCK):
        end = min(begin + BLOCK, n_chunks)
        chunks = padded[begin * CHUNK : end * CHUNK + CONTEXT].unfold(0, CONTEXT + CHUNK, CHUNK)  # (n, 576)
        features = _features(weights, chunks)
        outputs, *state_after = torch.lstm(
            features[:, None],  # (n, 1, 128): a sequence of n, a batch of one
            state,
            [weights[f"decoder.rnn.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")],
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            train=False,
            bidirectional=False,
            batch_first=False,
        )
        state = state_after[0], state_after[1]
        logits = F.conv1d(outputs.relu().mT, weights["decoder.decoder.2.weight"], weights["decoder.decoder.2.bias"])
        probabilities.append(logits[:, 0, 0].sigmoid())
    return torch.cat(probabilities)


def _features(weights: dict[str, Tensor], chunks: Tensor) -> Tensor:
    """Return what the LSTM takes of each chunk by itself: spectrum, then four convolutions."""
    x = F.pad(chunks[:, None], (0, CONTEXT), mode="reflect")  # (n, 1, 640)
    real, imaginary = F.conv1d(x, weights["stft.forward_basis_buffer"], stride=128).chunk(2, dim=1)  # (n, 129, 4) each
    x = (real**2 + imaginary**2).sqrt()
    for index, stride in enumerate(STRIDES):
        name = f"encoder.{index}.reparam_conv"
        x = F.conv1d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding=1).relu()
    return x[:, :, 0]  # (n, 128, 1)


@functools.cache
def load() -> dict[str, Tensor]:
    """Return the network's parameters, named as in `SHAPES`.

    Raises
    ------
    PackageError
        if silero-vad is not installed, or its network is not the one that is known here
    """
    # Found without being imported: the package limits torch to one thread for the whole process when it is.
    package = importlib.util.find_spec("silero_vad")
    if package is None or package.origin is None:
        raise PackageError(f"silero-vad, which finds speech in audio, is not installed: {INSTALL}")
    path = pathlib.Path(package.origin).parent / "data" / "silero_vad.jit"
    try:
        state = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError, ValueError) as error:
        raise PackageError(f"the model of silero-vad, {path}, cannot be read ({error}): {INSTALL}") from error
    weights = {name: state.get(f"_model.{name}", torch.empty(0)).detach() for name in SHAPES}
    if any(tuple(weights[name].shape) != shape for name, shape in SHAPES.items()):
        raise PackageError(f"{path} is not the network that this version knows: {INSTALL}")
    return weights
