"""The checks behind ``whisper-max doctor``: one small function per fact about this environment.

Every function looks, changes nothing, prints nothing and returns one `Check`. Only `check_devices` and
`check_backend` import MAX or torch: the others read metadata and files, which work beside a broken library.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import site
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import whisper_max_plugin
from whisper_max_plugin import environment
from whisper_max_plugin.max_backend import NEWEST_PYTHON, OLDEST_PYTHON, TESTED_MAX

if TYPE_CHECKING:
    from whisper_max_plugin.hookspecs import Backend

OLDEST_WHISPER = 20231106  # yyyymmdd, openai-whisper's own numbering
OLDEST_NVIDIA_DRIVER = 580  # branch; MAX compiles for CUDA 13, or through an external ptxas for older drivers
INSTALL_DRIVER = f"sudo apt-get install nvidia-driver-{OLDEST_NVIDIA_DRIVER}"
HOOK_FILE = "whisper_max_plugin.pth"
# The checks without which no model can be loaded on both backends; the others are about switching the plugin on.
NEEDED_TO_RUN_MODELS = {
    "python",
    "torch",
    "max",
    "openai-whisper",
    "whisper package",
    "devices",
    "backend max",
    "backend torch",
}


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes
    ----------
    name: str
        what was looked at
    ok: bool | None
        True when in order, False when something needs mending, None when it is only information
    value: str
        what was found
    remedy: str | None
        the command that mends it; always set when `ok` is False
    """

    name: str
    ok: bool | None
    value: str
    remedy: str | None = None


def run_checks() -> list[Check]:
    """Run every check, in the order in which a person would read them."""
    from whisper_max_plugin import backends

    return [
        check_python(),
        check_torch(),
        check_max(),
        check_whisper(),
        check_whisper_package(),
        check_plugin(),
        check_nvidia_driver(),
        check_devices(),
        check_cublas(),
        check_ffmpeg(),
        check_av(),
        check_cache_folder(),
        check_whisper_command(),
        check_startup_hook(),
        check_whisper_backend_variable(),
        check_precision_variable(),
        *(check_backend(backend) for backend in backends.all_backends()),
    ]


# Versions


def check_python() -> Check:
    """This interpreter is one that MAX has wheels for."""
    value = f"{'.'.join(map(str, sys.version_info[:3]))} ({sys.executable})"
    if OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        return Check("python", True, value)
    wanted = " to ".join(".".join(map(str, version)) for version in (OLDEST_PYTHON, NEWEST_PYTHON))
    remedy = "python3.12 -m venv whisper-max && whisper-max/bin/pip install whisper-max-plugin"
    return Check("python", False, f"{value}, but MAX supports {wanted}", remedy)


def check_torch() -> Check:
    """PyTorch, which openai-whisper is written in, is installed."""
    return _check_installed("torch")


def check_max() -> Check:
    """MAX is installed, in the minor release that this plugin is tested with."""
    remedy = environment.install(f"max=={TESTED_MAX}.*")
    version = environment.version("max")
    if version is None:
        return Check("max", False, "not installed", remedy)
    if version.split(".")[:2] != TESTED_MAX.split("."):
        return Check("max", False, f"{version}, but this plugin works with {TESTED_MAX}", remedy)
    return Check("max", True, version)


def check_whisper() -> Check:
    """openai-whisper is installed and not older than the oldest release that is tested."""
    remedy = environment.install("openai-whisper")
    version = environment.version("openai-whisper")
    if version is None:
        return Check("openai-whisper", False, "not installed", remedy)
    date = re.match(r"\d+", version)
    if date is None or int(date[0]) < OLDEST_WHISPER:
        remedy = environment.install(f"openai-whisper>={OLDEST_WHISPER}")
        return Check("openai-whisper", False, f"{version} is older than {OLDEST_WHISPER}", remedy)
    return Check("openai-whisper", True, version)


def check_whisper_package() -> Check:
    """``import whisper`` finds OpenAI's package, not another one of the same name."""
    name = "whisper package"
    other = environment.version("whisper")  # Graphite's database library, which `pip install whisper` brings
    spec = importlib.util.find_spec("whisper")
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    ours = [folder for folder in folders if (Path(folder) / "transcribe.py").is_file()]
    if ours and other is None:
        return Check(name, True, ours[0])
    uninstall = environment.uninstall("whisper")
    if ours:
        return Check(name, None, f"{ours[0]}, beside the unrelated package whisper {other}", uninstall)
    install = environment.reinstall("openai-whisper")
    if other is not None:
        value = f"the unrelated package whisper {other} is installed instead of openai-whisper"
        return Check(name, False, value, f"{uninstall} && {install}")
    if spec is None or spec.origin is None:
        return Check(name, False, "cannot be imported", install)
    shadow = folders[0] if folders else spec.origin
    value = f"{shadow} is not OpenAI's and hides it"
    return Check(name, False, value, f"mv {shlex.quote(shadow)} {shlex.quote(shadow + '_hidden')}")


def check_plugin() -> Check:
    """The version of this plugin and where it is imported from."""
    return Check(
        "whisper-max-plugin", True, f"{whisper_max_plugin.__version__} ({Path(whisper_max_plugin.__file__).parent})"
    )


# The machine


def check_nvidia_driver() -> Check:
    """The NVIDIA driver, where there is one, is new enough for MAX."""
    version = environment.nvidia_driver_version()
    if version is None:
        return Check("nvidia driver", None, "none: graphs run on the CPU")
    if int(version.split(".")[0]) >= OLDEST_NVIDIA_DRIVER or os.environ.get("MODULAR_NVPTX_COMPILER_PATH"):
        return Check("nvidia driver", True, version)
    ptxas = shutil.which("ptxas")
    remedy = f"export MODULAR_NVPTX_COMPILER_PATH={shlex.quote(ptxas)}" if ptxas else INSTALL_DRIVER
    return Check("nvidia driver", False, f"{version} is older than {OLDEST_NVIDIA_DRIVER}", remedy)


def check_devices() -> Check:
    """The devices that MAX sees, among them the GPU when the machine has one."""
    if environment.version("max") is None:
        return Check("devices", None, "unknown without MAX")
    try:
        from max.driver import scan_available_devices
    except ImportError as error:
        return Check(
            "devices", False, f"MAX cannot be imported: {error}", environment.reinstall(f"max=={TESTED_MAX}.*")
        )
    specs = scan_available_devices()
    value = ", ".join(spec.device_type if spec.device_type == "cpu" else f"gpu:{spec.id}" for spec in specs)
    if environment.nvidia_driver_version() is None or any(spec.device_type == "gpu" for spec in specs):
        return Check("devices", True, value)
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        value += ": CUDA_VISIBLE_DEVICES hides the GPU"
        return Check("devices", False, value, "unset CUDA_VISIBLE_DEVICES")
    return Check("devices", False, f"{value}: MAX does not see the NVIDIA GPU", INSTALL_DRIVER)


def check_cublas() -> Check:
    """cuBLAS, which MAX opens for matrix products of its own on an NVIDIA GPU; the graphs here have none."""
    found = environment.find_cublas()
    if found is not None:
        return Check("cublas", True, found)
    return Check("cublas", None, "not found, and not needed")


def check_ffmpeg() -> Check:
    """The ffmpeg command that upstream decodes audio with; without it the plugin decodes with PyAV."""
    found = shutil.which("ffmpeg")
    if found is None:
        return Check("ffmpeg", None, "not found: PyAV decodes the audio")
    return Check("ffmpeg", True, found)


def check_av() -> Check:
    """PyAV is installed; it is needed where ffmpeg is missing."""
    check = _check_installed("av")
    if check.ok or shutil.which("ffmpeg") is None:
        return check
    value = "not installed; beside ffmpeg only `doctor --audio`, `bench --audio` and Ray need it"
    return Check("av", None, value, check.remedy)


def check_cache_folder() -> Check:
    """The folder of compiled graphs can be written to, and how much it holds."""
    from whisper_max_plugin.execution import artifacts

    folder = artifacts.cache_dir()
    refusal = environment.cannot_write(folder)
    if refusal is not None:
        remedy = 'export MODULAR_MAX_CACHE_DIR="$HOME/whisper-max-cache"'
        return Check("cache folder", False, f"{folder} cannot be written to: {refusal}", remedy)
    sizes = {path: size for path in folder.rglob("*") if (size := environment.file_size(path)) is not None}
    graphs = sum(path.suffix == ".mef" for path in sizes)
    entries = "1 entry" if graphs == 1 else f"{graphs} entries"
    return Check("cache folder", True, f"{folder} ({entries}, {sum(sizes.values()) / 1e6:.1f} MB)")


# Switching the plugin on


def check_whisper_command() -> Check:
    """The ``whisper`` command on PATH is upstream's and runs in this Python environment."""
    name = "whisper command"
    here = Path(sysconfig.get_path("scripts"))
    prepend = f'export PATH={shlex.quote(str(here))}:"$PATH"'
    found = shutil.which("whisper")
    if found is None:
        if (here / "whisper").is_file():
            return Check(name, None, f"not on PATH, but in {here}", prepend)
        return Check(name, False, "not found", environment.reinstall("openai-whisper"))
    try:
        script = Path(found).read_bytes().decode("utf-8", "replace")
    except OSError as error:
        return Check(name, False, f"{found} cannot be read: {error.strerror}", environment.reinstall("openai-whisper"))
    upstream = "whisper.transcribe" in script
    local = environment.runs_here(Path(found), script)
    if upstream and local:
        return Check(name, True, found)
    value = f"{found} runs in another Python environment" if upstream else f"{found} is not openai-whisper's"
    in_the_way = Path(found).parent == here or not (here / "whisper").is_file()
    return Check(name, False, value, environment.reinstall("openai-whisper") if in_the_way else prepend)


def check_startup_hook() -> Check:
    """The start-up hook behind ``whisper … --backend NAME`` is installed here and not switched off."""
    folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    hooks = [path for path in (Path(folder) / HOOK_FILE for folder in folders) if path.is_file()]
    if not hooks:
        project = Path(whisper_max_plugin.__file__).parents[1]
        is_checkout = (project / "pyproject.toml").is_file()
        remedy = (
            environment.install("--editable", str(project))
            if is_checkout
            else environment.reinstall("whisper-max-plugin")
        )
        return Check("start-up hook", False, f"{HOOK_FILE} is in no site folder of this Python", remedy)
    if os.environ.get("WHISPER_MAX_NO_HOOK"):
        value = "switched off by WHISPER_MAX_NO_HOOK"
        return Check("start-up hook", None, value, "unset WHISPER_MAX_NO_HOOK")
    return Check("start-up hook", True, f"active ({hooks[0]})")


def check_whisper_backend_variable() -> Check:
    """WHISPER_BACKEND, when set, names a backend that can run."""
    from whisper_max_plugin import backends
    from whisper_max_plugin.errors import UnknownBackendError

    value = os.environ.get(backends.VARIABLE, "").strip()
    if not value:
        return Check(backends.VARIABLE, None, "not set")
    try:
        reason = backends.state(backends.get(value)).reason
    except UnknownBackendError as error:
        return Check(backends.VARIABLE, False, str(error), f"export {backends.VARIABLE}=max")
    if reason is None:
        return Check(backends.VARIABLE, True, value)
    return Check(backends.VARIABLE, False, f"{value} cannot run: {reason}", f"unset {backends.VARIABLE}")


def check_precision_variable() -> Check:
    """WHISPER_MAX_PRECISION, when set, names a precision; with any but the default models are no longer upstream's."""
    from whisper_max_plugin import precision
    from whisper_max_plugin.errors import PrecisionError

    value = os.environ.get(precision.VARIABLE, "").strip()
    if not value:
        return Check(precision.VARIABLE, None, "not set")
    try:
        name = precision.checked(value)
    except PrecisionError as error:
        return Check(precision.VARIABLE, False, str(error), f"export {precision.VARIABLE}={precision.DEFAULT}")
    if name == precision.DEFAULT:
        return Check(precision.VARIABLE, True, name)
    value = f"{name} rounds weights, and --parity compares {precision.DEFAULT}"
    return Check(precision.VARIABLE, None, value, f"unset {precision.VARIABLE}")


def check_backend(backend: Backend) -> Check:
    """One registered backend can run; a third party's that cannot is only information."""
    from whisper_max_plugin import backends

    name = f"backend {backend.name}"
    found = backends.state(backend)
    if found.reason is None:
        return Check(name, True, f"usable on {', '.join(found.devices)}")
    remedies = {"max": environment.reinstall(f"max=={TESTED_MAX}.*"), "torch": environment.reinstall("torch")}
    return Check(name, False if backend.name in remedies else None, found.reason, remedies.get(backend.name))


def _check_installed(distribution: str) -> Check:
    version = environment.version(distribution)
    if version is None:
        return Check(distribution, False, "not installed", environment.install(distribution))
    return Check(distribution, True, version)
