"""Facts about this machine and Python environment that `doctor.checks` judges, and pip commands for it."""

from __future__ import annotations

import ctypes.util
import glob
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

DRIVER_FILE = Path("/proc/driver/nvidia/version")


def version(distribution: str) -> str | None:
    """The installed version of a distribution; None without it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def nvidia_driver_version() -> str | None:
    """Version of the loaded NVIDIA driver, e.g. "580.65.06"; None without one."""
    smi = shutil.which("nvidia-smi")
    text = ""
    if smi is not None:
        command = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            text = ""  # an nvidia-smi without a driver behind it fails; the kernel's own file decides
    if not text:
        try:
            text = DRIVER_FILE.read_text()
        except OSError:
            return None
    version = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text)
    return version[0] if version else None


def find_cublas() -> str | None:
    """Path or name of a cuBLAS 12 or 13: in NVIDIA's wheels, in a CUDA toolkit, or known to the loader."""
    nvidia = importlib.util.find_spec("nvidia")
    wheels = list(nvidia.submodule_search_locations or []) if nvidia is not None else []
    patterns = [f"{glob.escape(folder)}/*/lib/libcublas.so.1[23]" for folder in wheels]
    patterns.append("/usr/local/cuda*/lib64/libcublas.so.1[23]")
    found = [path for pattern in patterns for path in sorted(glob.glob(pattern))]
    return found[0] if found else ctypes.util.find_library("cublas")


def cannot_write(folder: Path) -> str | None:
    """Why no file can be made in `folder`, or in its nearest existing parent; None when one can."""
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        # A real file rather than os.access, which says yes to root even on a read-only file system.
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def file_size(path: Path) -> int | None:
    """Size in bytes; None if it is no file, or no longer one."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None  # another process replaced this cache entry meanwhile


def runs_here(script_path: Path, script: str) -> bool:
    """Whether a console script belongs to this interpreter: by its folder, or by the Python that it names."""
    if script_path.resolve().parent == Path(sysconfig.get_path("scripts")).resolve():
        return True
    interpreters = re.findall(r"(?m)^(?:#!|'''exec' )\"?([^\"\s]*python[^\"\s]*)", script)
    return any(Path(python).parent == Path(sys.executable).parent for python in interpreters)


def _pip(*arguments: str) -> str:
    """A command for this environment; uv's environments have no pip of their own."""
    python = shlex.quote(sys.executable)
    verb, *rest = arguments
    quoted = " ".join(shlex.quote(argument) for argument in rest)
    if importlib.util.find_spec("pip") is None:
        return f"uv pip {verb} --python {python} {quoted}"
    return f"{python} -m pip {verb} {quoted}"


def install(*requirements: str) -> str:
    """The command that installs `requirements`."""
    return _pip("install", *requirements)


def reinstall(requirement: str) -> str:
    """The command that installs `requirement` over what is there."""
    return _pip("install", "--force-reinstall", "--no-deps", requirement)


def uninstall(distribution: str) -> str:
    """The command that removes `distribution`."""
    flags = [] if importlib.util.find_spec("pip") is None else ["--yes"]
    return _pip("uninstall", *flags, distribution)
