"""Compiles for GPUs that are not in this machine, by MAX's virtual devices."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from whisper_max_plugin.errors import DeviceError, WhisperMaxError

if TYPE_CHECKING:
    from whisper_max_plugin.loading import WarmupResult

# As `mojo build --print-supported-accelerators` of MAX 26.7 lists them, without those whose instructions the kernels
# exceed: mma.sync of 16 x 8 x 16 and cp.async came with sm_80.
ARCHITECTURES = {
    "sm_80": "sm_80 (A100)",
    "sm_86": "sm_86 (A10)",
    "sm_87": "sm_87 (Jetson Orin)",
    "sm_89": "sm_89 (L4, L40S)",
    "sm_90": "sm_90",
    "sm_90a": "sm_90a (H100, H200)",
    "sm_100": "sm_100",
    "sm_100a": "sm_100a (B200)",
    "sm_103": "sm_103",
    "sm_103a": "sm_103a (B300)",
    "sm_110": "sm_110",
    "sm_110a": "sm_110a (Jetson Thor)",
    "sm_120": "sm_120",
    "sm_120a": "sm_120a (RTX 5090)",
    "sm_121": "sm_121",
    "sm_121a": "sm_121a (DGX Spark)",
}


def warmup(name: str, target: str, precision: str | None = None) -> WarmupResult:
    """Compile the graphs that a model needs on a GPU of the architecture `target`, which need not be in this machine.

    A machine that has one finds them in the cache, wherever its folder was copied from, if it has the same version of
    this package and of MAX.

    Parameters
    ----------
    name : str
        as `loading.warmup` takes it
    target : str
        "sm_90a", say
    precision : str
        as `loading.warmup` takes it

    Raises
    ------
    DeviceError
        if `target` is not the name of an architecture, or MAX cannot compile for it
    WhisperMaxError
        see `loading.warmup`
    """
    if target not in ARCHITECTURES:
        raise DeviceError(
            f"no graphs for {target!r}: give an NVIDIA GPU's architecture, one of {', '.join(ARCHITECTURES.values())}"
        )
    # In a process of its own: virtual devices are for a whole process, and it may abort at exit.
    context = multiprocessing.get_context("spawn")
    connection, childs = context.Pipe(duplex=False)
    process = context.Process(target=_warmup_and_exit, args=(childs, name, target, precision), daemon=True)
    process.start()
    childs.close()
    try:
        answer: WarmupResult | WhisperMaxError = connection.recv()
    except EOFError as error:
        process.join()
        code = process.exitcode or 0
        end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        raise DeviceError(
            f"the process that compiled for {target} {end}: run the command again, with more free memory or disk "
            "space, or without others beside it, and report it if that ends so, too"
        ) from error
    finally:
        process.kill()
        process.join()
    if isinstance(answer, WhisperMaxError):
        raise answer
    return answer


def _warmup_and_exit(connection: Connection, name: str, target: str, precision: str | None) -> None:
    from max.driver import set_virtual_device_api, set_virtual_device_count, set_virtual_device_target_arch

    # before anything else asks MAX for its devices
    set_virtual_device_api("cuda")
    set_virtual_device_target_arch(target)
    set_virtual_device_count(1)
    from tqdm import tqdm

    from whisper_max_plugin import loading

    tqdm.set_lock(threading.RLock())  # in place of one for processes, which would be missed behind os._exit
    answer: WarmupResult | WhisperMaxError
    try:
        answer = loading.warmup(name, "cuda", precision)
    except WhisperMaxError as error:
        answer = error
    connection.send(answer)
    connection.close()
    os._exit(0)
