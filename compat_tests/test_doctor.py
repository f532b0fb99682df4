"""What each check of `whisper-max doctor` says about a sound environment and about every way to break one."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.util
import shlex
import site
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

from whisper_max_plugin import artifacts, backends, doctor, environment

UPSTREAM_SCRIPT = """#!{python}
import sys
from whisper.transcribe import cli
if __name__ == '__main__':
    sys.exit(cli())
"""


@pytest.fixture
def versions(monkeypatch):
    """A dict in which a test overrides versions of distributions; None is not installed."""
    overrides = {}
    real = metadata.version

    def version(distribution):
        found = overrides[distribution] if distribution in overrides else real(distribution)
        if found is None:
            raise metadata.PackageNotFoundError(distribution)
        return found

    monkeypatch.setattr(metadata, "version", version)
    return overrides


@pytest.fixture
def commands(monkeypatch):
    """A dict of the commands on PATH, empty at first."""
    found = {}
    monkeypatch.setattr(doctor.shutil, "which", found.get)
    return found


@pytest.fixture
def driver(monkeypatch, commands):
    """Return a function that installs an NVIDIA driver of some version."""

    def install(version):
        commands["nvidia-smi"] = "/usr/bin/nvidia-smi"

        def run(command, **_options):
            return subprocess.CompletedProcess(command, 0, stdout=f"{version}\n{version}\n", stderr="")

        monkeypatch.setattr(subprocess, "run", run)

    return install


@pytest.fixture
def modules(monkeypatch):
    """A dict in which a test overrides where modules are found; None is nowhere."""
    overrides = {}
    real = importlib.util.find_spec

    def find_spec(name, package=None):
        return overrides[name] if name in overrides else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return overrides


def is_problem(check):
    """Whether a check failed, which it may not do without naming a command that mends it."""
    if check.ok is False:
        assert check.remedy is not None
        assert shlex.split(check.remedy)
    return check.ok is False


def test_every_check_has_its_own_name_and_says_what_it_found():
    checks = doctor.run_checks()
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    assert all(check.value for check in checks)


def test_every_problem_has_a_remedy(versions, commands, modules, monkeypatch, tmp_path):
    for distribution in ("torch", "max", "openai-whisper", "av"):
        versions[distribution] = None
    modules.update({"whisper": None, "max": None, "torch": None})
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(tmp_path)])
    monkeypatch.setattr(site, "ENABLE_USER_SITE", False)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(artifacts, "cache_dir", lambda: Path("/dev/null/cache"))
    monkeypatch.setattr(environment, "DRIVER_FILE", Path("/nonexistent"))
    monkeypatch.setenv("WHISPER_BACKEND", "nonsense")
    problems = {check.name for check in doctor.run_checks() if is_problem(check)}
    assert problems == {
        "python",
        "torch",
        "max",
        "openai-whisper",
        "whisper package",
        "av",
        "cache folder",
        "whisper command",
        "start-up hook",
        "WHISPER_BACKEND",
        "backend max",
        "backend torch",
    }


def test_a_check_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        doctor.check_python().ok = False


# Versions


@pytest.mark.parametrize(
    ("version", "supported"), [((3, 9), False), ((3, 10), True), ((3, 14), True), ((3, 15), False)]
)
def test_python_is_supported_where_max_has_wheels(monkeypatch, version, supported):
    monkeypatch.setattr(sys, "version_info", (*version, 1, "final", 0))
    check = doctor.check_python()
    assert check.ok is supported
    assert check.value.startswith(".".join(map(str, version)))
    assert is_problem(check) is not supported


@pytest.mark.parametrize(
    ("version", "works"), [("26.7.0", True), ("26.7.1", True), ("26.6.9", False), ("27.7.0", False)]
)
def test_max_is_the_tested_minor_release(versions, version, works):
    versions["max"] = version
    check = doctor.check_max()
    assert check.ok is works
    assert check.value.startswith(version)
    assert is_problem(check) is not works


def test_max_missing_names_the_release_to_install(versions):
    versions["max"] = None
    check = doctor.check_max()
    assert is_problem(check)
    assert "max==26.7.*" in check.remedy


@pytest.mark.parametrize(
    ("version", "works"),
    [("20250625", True), ("20231106", True), ("20231106.post1", True), ("20231105", False), ("1.0", False)],
)
def test_openai_whisper_is_recent_enough(versions, version, works):
    versions["openai-whisper"] = version
    check = doctor.check_whisper()
    assert check.ok is works
    assert is_problem(check) is not works


@pytest.mark.parametrize("name", ["torch", "openai-whisper", "av"])
def test_a_missing_distribution_is_a_problem(versions, commands, name):
    versions[name] = None
    check = {"torch": doctor.check_torch, "openai-whisper": doctor.check_whisper, "av": doctor.check_av}[
        name
    ]()
    assert is_problem(check)
    assert check.value == "not installed"
    assert check.remedy.split()[-1] == name


def test_remedies_use_the_pip_of_this_interpreter(versions, modules):
    versions["torch"] = None
    modules["pip"] = importlib.machinery.ModuleSpec("pip", None)
    assert doctor.check_torch().remedy == f"{sys.executable} -m pip install torch"


def test_remedies_use_uv_where_the_environment_has_no_pip(versions, modules):
    versions["torch"] = None
    modules["pip"] = None
    assert doctor.check_torch().remedy == f"uv pip install --python {sys.executable} torch"


def test_the_whisper_package_is_openais():
    check = doctor.check_whisper_package()
    assert check.ok is True
    assert (Path(check.value) / "transcribe.py").is_file()


def test_the_wrong_whisper_from_pypi_is_a_problem(versions, modules, tmp_path):
    versions["whisper"] = "1.1.10"
    modules["whisper"] = importlib.machinery.ModuleSpec("whisper", None, origin=str(tmp_path / "whisper.py"))
    check = doctor.check_whisper_package()
    assert is_problem(check)
    assert "whisper 1.1.10" in check.value
    uninstall, install = check.remedy.split(" && ")
    assert uninstall.split()[-1] == "whisper"
    assert install.split()[-1] == "openai-whisper"


def test_the_wrong_whisper_beside_openais_is_only_information(versions):
    versions["whisper"] = "1.1.10"
    check = doctor.check_whisper_package()
    assert check.ok is None
    assert "1.1.10" in check.value


def test_a_local_file_named_whisper_is_a_problem(modules, tmp_path):
    shadow = str(tmp_path / "whisper.py")
    modules["whisper"] = importlib.machinery.ModuleSpec("whisper", None, origin=shadow)
    check = doctor.check_whisper_package()
    assert is_problem(check)
    assert check.remedy == f"mv {shadow} {shadow}_hidden"


# The machine


def test_no_nvidia_driver_is_fine(commands, monkeypatch):
    monkeypatch.setattr(environment, "DRIVER_FILE", Path("/nonexistent"))
    check = doctor.check_nvidia_driver()
    assert check.ok is None
    assert "none" in check.value


@pytest.mark.parametrize(("version", "works"), [("580.65.06", True), ("590.10", True), ("550.127.08", False)])
def test_the_nvidia_driver_is_recent_enough(driver, monkeypatch, version, works):
    monkeypatch.delenv("MODULAR_NVPTX_COMPILER_PATH", raising=False)
    driver(version)
    check = doctor.check_nvidia_driver()
    assert check.ok is works
    assert check.value.startswith(version)
    assert is_problem(check) is not works


def test_an_older_nvidia_driver_works_through_an_external_ptxas(driver, commands, monkeypatch):
    monkeypatch.delenv("MODULAR_NVPTX_COMPILER_PATH", raising=False)
    driver("550.127.08")
    commands["ptxas"] = "/usr/local/cuda/bin/ptxas"
    remedy = doctor.check_nvidia_driver().remedy
    assert remedy == "export MODULAR_NVPTX_COMPILER_PATH=/usr/local/cuda/bin/ptxas"
    monkeypatch.setenv("MODULAR_NVPTX_COMPILER_PATH", "/usr/local/cuda/bin/ptxas")
    assert doctor.check_nvidia_driver().ok is True


def test_the_kernel_tells_the_driver_where_nvidia_smi_is_missing_or_fails(commands, monkeypatch, tmp_path):
    file = tmp_path / "version"
    file.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC 12.2.0\n"
    )
    monkeypatch.setattr(environment, "DRIVER_FILE", file)
    assert doctor.check_nvidia_driver().value == "580.65.06"
    commands["nvidia-smi"] = "/bin/false"
    assert doctor.check_nvidia_driver().value == "580.65.06"


def test_max_sees_at_least_the_cpu():
    check = doctor.check_devices()
    assert check.ok is True
    assert "cpu" in check.value.split(", ")


@pytest.fixture
def only_a_cpu(monkeypatch):
    from max import driver as max_driver

    cpu = type("DeviceSpec", (), {"id": -1, "device_type": "cpu"})()
    monkeypatch.setattr(max_driver, "scan_available_devices", lambda: [cpu])


def test_a_gpu_that_max_does_not_see_is_a_problem(driver, only_a_cpu, monkeypatch):
    driver("580.65.06")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert is_problem(doctor.check_devices())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check = doctor.check_devices()
    assert is_problem(check)
    assert check.remedy == "unset CUDA_VISIBLE_DEVICES"


def test_devices_are_unknown_without_max(versions):
    versions["max"] = None
    assert doctor.check_devices().ok is None


def test_cublas_is_found_in_nvidias_wheel(modules, tmp_path):
    library = tmp_path / "cublas" / "lib" / "libcublas.so.12"
    library.parent.mkdir(parents=True)
    library.touch()
    spec = importlib.machinery.ModuleSpec("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    modules["nvidia"] = spec
    check = doctor.check_cublas()
    assert check.ok is True
    assert check.value == str(library)


@pytest.fixture
def no_cublas(modules, monkeypatch):
    modules["nvidia"] = None
    monkeypatch.setattr(environment.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(environment.ctypes.util, "find_library", lambda name: None)


def test_missing_cublas_is_a_problem_beside_a_gpu(no_cublas, driver):
    driver("580.65.06")
    check = doctor.check_cublas()
    assert is_problem(check)
    assert "'whisper-max-plugin[gpu]'" in check.remedy


def test_missing_cublas_is_fine_without_a_gpu(no_cublas, commands, monkeypatch):
    monkeypatch.setattr(environment, "DRIVER_FILE", Path("/nonexistent"))
    assert doctor.check_cublas().ok is None


def test_ffmpeg_is_found_or_pyav_decodes(commands):
    check = doctor.check_ffmpeg()
    assert check.ok is None
    assert "PyAV" in check.value
    commands["ffmpeg"] = "/usr/bin/ffmpeg"
    check = doctor.check_ffmpeg()
    assert (check.ok, check.value) == (True, "/usr/bin/ffmpeg")


def test_missing_pyav_is_only_information_beside_ffmpeg(versions, commands):
    versions["av"] = None
    commands["ffmpeg"] = "/usr/bin/ffmpeg"
    assert doctor.check_av().ok is None


# The cache folder


def test_the_cache_folder_reports_its_entries_and_size(monkeypatch, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one.mef").write_bytes(bytes(1_500_000))
    (tmp_path / "two.mef").write_bytes(bytes(900_000))
    (tmp_path / "two.json").write_bytes(bytes(100_000))
    monkeypatch.setattr(artifacts, "cache_dir", lambda: tmp_path)
    check = doctor.check_cache_folder()
    assert check.ok is True
    assert check.value == f"{tmp_path} (2 entries, 2.5 MB)"


def test_a_cache_folder_that_does_not_exist_yet_is_fine_and_stays_away(monkeypatch, tmp_path):
    folder = tmp_path / "not" / "yet"
    monkeypatch.setattr(artifacts, "cache_dir", lambda: folder)
    check = doctor.check_cache_folder()
    assert check.ok is True
    assert check.value == f"{folder} (0 entries, 0.0 MB)"
    assert list(tmp_path.iterdir()) == []


def test_a_cache_folder_that_cannot_be_written_to_is_a_problem(monkeypatch, tmp_path):
    # Below a regular file not even root can write.
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"
    monkeypatch.setattr(artifacts, "cache_dir", lambda: folder)
    check = doctor.check_cache_folder()
    assert is_problem(check)
    assert str(folder) in check.value
    assert "Not a directory" in check.value
    assert check.remedy.startswith("export MODULAR_MAX_CACHE_DIR=")


def test_the_remedy_for_the_cache_folder_mends_it(monkeypatch, tmp_path):
    monkeypatch.setenv("MODULAR_MAX_CACHE_DIR", "/dev/null/cache")
    check = doctor.check_cache_folder()
    assert is_problem(check)
    variable, _, value = check.remedy.removeprefix("export ").partition("=")
    monkeypatch.setenv(variable, value.strip('"').replace("$HOME", str(tmp_path)))
    check = doctor.check_cache_folder()
    assert check.ok is True
    assert check.value.startswith(str(tmp_path))


# Switching the plugin on


def whisper_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """The folder of console scripts of this interpreter, empty at first."""
    folder = tmp_path / "environment" / "bin"
    folder.mkdir(parents=True)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
    return folder


def test_the_whisper_command_is_upstreams_and_of_this_environment(commands, scripts):
    commands["whisper"] = whisper_script(scripts / "whisper", UPSTREAM_SCRIPT.format(python="/bin/sh"))
    check = doctor.check_whisper_command()
    assert (check.ok, check.value) == (True, commands["whisper"])


@pytest.mark.parametrize(
    "first_lines",
    ["#!{python}", "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''"],
    ids=["plain", "long path"],
)
def test_a_whisper_command_elsewhere_that_names_this_python_is_fine(commands, scripts, tmp_path, first_lines):
    script = first_lines.format(python=sys.executable) + "\nfrom whisper.transcribe import cli\n"
    commands["whisper"] = whisper_script(tmp_path / "elsewhere" / "whisper", script)
    assert doctor.check_whisper_command().ok is True


def test_a_whisper_command_of_another_environment_is_a_problem(commands, scripts, tmp_path):
    other = tmp_path / "other" / "bin"
    text = UPSTREAM_SCRIPT.format(python=other / "python")
    commands["whisper"] = whisper_script(other / "whisper", text)
    whisper_script(scripts / "whisper", text)
    check = doctor.check_whisper_command()
    assert is_problem(check)
    assert "another Python environment" in check.value
    assert check.remedy == f'export PATH={scripts}:"$PATH"'


def test_a_whisper_command_that_is_not_upstreams_is_a_problem(commands, scripts):
    commands["whisper"] = whisper_script(scripts / "whisper", f"#!{sys.executable}\nprint('hush')\n")
    check = doctor.check_whisper_command()
    assert is_problem(check)
    assert "not openai-whisper's" in check.value
    assert check.remedy.split()[-1] == "openai-whisper"


def test_an_environment_that_is_not_on_path_is_only_information(commands, scripts):
    whisper_script(scripts / "whisper", UPSTREAM_SCRIPT.format(python=sys.executable))
    check = doctor.check_whisper_command()
    assert check.ok is None
    assert check.remedy == f'export PATH={scripts}:"$PATH"'


def test_a_missing_whisper_command_is_a_problem(commands, scripts):
    check = doctor.check_whisper_command()
    assert is_problem(check)
    assert check.remedy.split()[-1] == "openai-whisper"


@pytest.fixture
def site_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(tmp_path)])
    monkeypatch.setattr(site, "ENABLE_USER_SITE", False)
    monkeypatch.delenv("WHISPER_MAX_NO_HOOK", raising=False)
    return tmp_path


def test_the_startup_hook_is_active_when_its_file_is_in_a_site_folder(site_folder):
    (site_folder / "whisper_max_plugin.pth").touch()
    check = doctor.check_startup_hook()
    assert check.ok is True
    assert str(site_folder) in check.value


def test_a_missing_startup_hook_is_a_problem(site_folder):
    assert is_problem(doctor.check_startup_hook())


def test_a_startup_hook_that_is_switched_off_is_only_information(site_folder, monkeypatch):
    (site_folder / "whisper_max_plugin.pth").touch()
    monkeypatch.setenv("WHISPER_MAX_NO_HOOK", "1")
    check = doctor.check_startup_hook()
    assert check.ok is None
    assert check.remedy == "unset WHISPER_MAX_NO_HOOK"


# Backends


@pytest.mark.parametrize("value", ["max", "torch", " MAX "])
def test_whisper_backend_names_a_known_backend(monkeypatch, value):
    monkeypatch.setenv("WHISPER_BACKEND", value)
    assert doctor.check_whisper_backend_variable().ok is True


@pytest.mark.parametrize("value", [None, "", " "])
def test_whisper_backend_need_not_be_set(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("WHISPER_BACKEND", raising=False)
    else:
        monkeypatch.setenv("WHISPER_BACKEND", value)
    assert doctor.check_whisper_backend_variable().ok is None


def test_whisper_backend_with_an_unknown_name_is_a_problem_that_lists_the_known_ones(monkeypatch):
    monkeypatch.setenv("WHISPER_BACKEND", "mux")
    check = doctor.check_whisper_backend_variable()
    assert is_problem(check)
    assert "'mux'" in check.value
    assert "max, torch" in check.value


def test_whisper_backend_that_cannot_run_is_a_problem(monkeypatch):
    monkeypatch.setattr(backends, "all_backends", lambda: [backends.BrokenBackend("other", "no such chip")])
    monkeypatch.setenv("WHISPER_BACKEND", "other")
    check = doctor.check_whisper_backend_variable()
    assert is_problem(check)
    assert "no such chip" in check.value


def test_the_built_in_backends_can_run():
    assert {backend.name: doctor.check_backend(backend).ok for backend in backends.all_backends()} == {
        "max": True,
        "torch": True,
    }


def test_a_built_in_backend_that_cannot_run_is_a_problem():
    check = doctor.check_backend(backends.BrokenBackend("max", "MAX is not installed"))
    assert is_problem(check)
    assert check.value == "MAX is not installed"


def test_a_third_partys_backend_that_cannot_run_is_only_information():
    check = doctor.check_backend(backends.BrokenBackend("other", "no such chip"))
    assert (check.ok, check.value) == (None, "no such chip")
