"""Where graphs run, and how tensors get there and back."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from max.driver import CPU, Accelerator, Buffer, accelerator_count, batch_inplace_copy
from max.dtype import DType
from max.graph import DeviceRef
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from whisper_max_plugin.errors import DeviceError, MemoryFullError
from whisper_max_plugin.execution.threads import processors, torch_threads
from whisper_max_plugin.execution.watch import WATCH

if TYPE_CHECKING:
    import max.driver


@dataclass(frozen=True)
class Device:
    """A device that graphs run on.

    Attributes
    ----------
    name : str
        as torch names it: "cpu", "cuda:0"
    shares_memory : bool
        whether its memory is the host's, so that nothing has to be copied
    """

    name: str
    shares_memory: bool

    @property
    def driver(self) -> max.driver.Device:
        """MAX's device.

        Raises
        ------
        DeviceError
            if the GPU cannot be opened
        """
        return _open(self.index)

    @property
    def index(self) -> int | None:
        """The number of the GPU, None for the CPU."""
        kind, _, number = self.name.partition(":")
        return int(number) if kind == "cuda" else None

    @property
    def records_graphs(self) -> bool:
        """Whether a graph's launches can be recorded and repeated, see `replay.Replay`."""
        return self.index is not None

    @property
    def computes_in_half(self) -> bool:
        """Whether numbers of half width are multiplied faster, so that upstream's option ``fp16`` means something."""
        return self.index is not None

    @property
    def ref(self) -> DeviceRef:
        """The device as graphs name it."""
        return DeviceRef.from_device(self.driver)

    @property
    def kind(self) -> str:
        """What compiled graphs depend on: "cpu", or a GPU's architecture and number, "sm_90-0".

        Without the letter behind "sm_90a", which names the instructions that are compiled to and not other GPUs.
        """
        return "cpu" if self.index is None else f"{self.driver.architecture_name.rstrip('af')}-{self.index}"

    def put(self, tensor: Tensor) -> Buffer:
        """Return a host tensor on the device; where memory is shared, the same memory."""
        tensor = tensor.contiguous()
        buffer = Buffer.from_dlpack(tensor)
        if self.shares_memory:
            return buffer
        copied = self.empty(buffer.shape, buffer.dtype)
        self.copy([copied], [buffer])
        return copied

    def write(self, target: Buffer, tensor: Tensor) -> None:
        """Write a host tensor to a contiguous buffer of the device."""
        self.copy([target], [Buffer.from_dlpack(tensor.contiguous())])

    def copy(self, targets: Sequence[Buffer], sources: Sequence[Buffer]) -> None:
        """Copy buffers of the host to buffers of the device, and wait until they are there."""
        with self.at_work():
            batch_inplace_copy(targets, sources)
            self.driver.synchronize()  # MAX copies later, and does not keep what it copies from

    def get(self, buffer: Buffer) -> Tensor:
        """Return a buffer of the device on the host; where memory is shared, the same memory."""
        if self.shares_memory:
            return from_dlpack(buffer)
        is_bfloat16 = buffer.dtype == DType.bfloat16  # which NumPy does not know
        with self.at_work():
            array = (buffer.view(DType.int16, buffer.shape) if is_bfloat16 else buffer).to_numpy()
        if buffer.device.is_host:  # else MAX has copied
            array = array.copy()
        return torch.from_numpy(array).view(torch.bfloat16) if is_bfloat16 else torch.from_numpy(array)

    def empty(self, shape: Sequence[int], dtype: DType = DType.float32) -> Buffer:
        """Return memory on the device, of any content."""
        with self.at_work():
            return Buffer(dtype, shape, self.driver)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Keep other threads from the device, inside, see that MAX does not sleep, and explain that memory is full.

        A GPU that records what one thread launches would record what another does meanwhile, or stop recording.

        Raises
        ------
        MemoryFullError
            in place of MAX's errors: a ValueError, or a RuntimeError of a step that was recorded
        """
        try:
            with nullcontext() if self.shares_memory else _one_thread(self.name), WATCH.over():
                yield
        except (ValueError, RuntimeError) as error:
            if "OUT_OF_MEMORY" not in str(error):  # as CUDA calls it, and MAX's own server looks for it
                raise
            raise MemoryFullError(
                f"the memory of {self.name} is full: load a smaller model, decode fewer windows or beams at once, or "
                'load the model with device="cpu" (on the command line --device cpu)'
            ) from error


HOST = Device("cpu", shares_memory=True)

PART_OF_FREE_MEMORY = "MODULAR_DEVICE_CONTEXT_MEMORY_MANAGER_SIZE_PERCENT"
"""The environment variable that tells MAX how much of a GPU's free memory it may manage; more comes from the driver."""


@dataclass(frozen=True, eq=False)
class Mirror:
    """An array on the host and a buffer on the device, of the same values when their `Mirrors` were told so.

    Attributes
    ----------
    array : ndarray
    buffer : Buffer
        where memory is shared, the array's own
    """

    array: npt.NDArray[Any]
    buffer: Buffer


class Mirrors:
    """Arrays on the host and buffers on the device, which take each other's values when they are told to.

    They lie in one piece of memory, here and there, since on the way to a device and back calls take time, not bytes.

    Parameters
    ----------
    device : Device
    arrays : what they hold at first

    Attributes
    ----------
    each : tuple of Mirror
        in the order of `arrays`
    """

    ALIGNMENT = 256  # bytes, as devices give out memory

    def __init__(self, device: Device, *arrays: npt.NDArray[Any]) -> None:
        self._device = device
        starts = np.cumsum([0, *(-(-array.nbytes // self.ALIGNMENT) * self.ALIGNMENT for array in arrays)]).tolist()
        places = [slice(start, start + array.nbytes) for start, array in zip(starts, arrays, strict=False)]
        self._here = np.zeros(starts[-1], dtype=np.uint8)
        for place, array in zip(places, arrays, strict=True):
            self._here[place] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._there = device.put(torch.from_numpy(self._here))
        self.each = tuple(
            Mirror(
                self._here[place].view(array.dtype).reshape(array.shape),
                self._there[place].view(DType.from_numpy(array.dtype), array.shape),
            )
            for place, array in zip(places, arrays, strict=True)
        )

    def push(self) -> None:
        """Bring the arrays to the device."""
        push_all([self])

    def pull(self) -> None:
        """Bring the buffers to the host."""
        if not self._device.shares_memory:
            with self._device.at_work():
                np.copyto(self._here, self._there.to_numpy())


def push_all(every: Sequence[Mirrors]) -> None:
    """Bring the arrays of several `Mirrors`, which are of one device, there, and wait for it once."""
    device = every[0]._device
    if not device.shares_memory:
        device.copy([mirrors._there for mirrors in every], [Buffer.from_dlpack(mirrors._here) for mirrors in every])


def find(name: str | int | torch.device | None) -> Device:
    """Return the device that `name` means, as `whisper.load_model` takes it; None means the best that MAX sees.

    Raises
    ------
    DeviceError
        if there is no such kind of device, graphs do not run on it, or it is not there
    """
    if name is None:
        return HOST if accelerator_count() == 0 else Device("cuda:0", shares_memory=False)
    asked_for = f"cuda:{name}" if isinstance(name, int) else str(name)  # torch takes the number of a GPU alone, too
    try:
        device = torch.device(asked_for)
    except RuntimeError as error:  # torch's, of several sentences
        raise DeviceError(f"no device {asked_for!r}: give cpu, cuda, or a GPU by its number as in cuda:1") from error
    if device.type == "cpu":
        return HOST
    if device.type != "cuda":
        raise DeviceError(
            f"the backend 'max' does not run on {asked_for!r}: pass device=\"cpu\" (on the command line --device cpu), "
            'or backend="torch"'
        )
    index, n_gpus = device.index or 0, accelerator_count()
    if index >= n_gpus:
        seen = "no GPU" if n_gpus == 0 else f"only {n_gpus} GPU{'s' if n_gpus > 1 else ''}"
        raise DeviceError(
            f"{asked_for!r} was asked for and MAX sees {seen} here: check what nvidia-smi lists, or pass "
            'device="cpu" (on the command line --device cpu), or backend="torch"'
        )
    return Device(f"cuda:{index}", shares_memory=False)


@cache
def _one_thread(_name: str) -> threading.RLock:
    """Return the lock of a device."""
    return threading.RLock()


@cache
def _open(index: int | None) -> max.driver.Device:
    # The first device brings MAX's threads. So ``torch.set_num_threads``, ``OMP_NUM_THREADS`` and the command line's
    # ``--threads`` are respected, if they come before the first model is loaded.
    with processors(torch_threads()):
        if index is None:
            return CPU()
        # When the first step is recorded, MAX takes all of it, by default nine tenths: nothing would be left for torch,
        # for other processes, nor for the one in which `trial` compares a GPU.
        os.environ.setdefault(PART_OF_FREE_MEMORY, "50")
        try:
            return Accelerator(index)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())  # of several lines where the driver is too old
            raise DeviceError(
                f"MAX cannot open cuda:{index}: {reason}; update NVIDIA's driver, or load the model with "
                'device="cpu" (on the command line --device cpu)'
            ) from error
