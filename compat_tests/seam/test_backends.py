"""Backends: who is registered, who can run, and what is said about those that cannot."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from whisper_max_plugin import backends, errors, hookspecs, max_backend
from whisper_max_plugin.hookspecs import hookimpl

from .echo_backend import GIVEN, PRECEDENCE, EchoBackend


class Plugin:
    def __init__(self, *backends):
        self.backends = backends

    @hookimpl
    def whisper_backends(self):
        return list(self.backends)


@pytest.fixture
def fresh_plugin_manager():
    backends.plugin_manager.cache_clear()
    yield
    backends.plugin_manager.cache_clear()


@pytest.fixture
def register(fresh_plugin_manager):
    def register(*registered):
        backends.plugin_manager().register(Plugin(*registered), name="third-party")

    return register


@pytest.fixture
def install_plugin(fresh_plugin_manager, tmp_path: Path, monkeypatch):
    """Install a distribution "echo-whisper" with one module and one entry point, as pip would leave it."""

    def install_plugin(source: str, entry_point: str = "echo = echo_whisper") -> None:
        (tmp_path / "echo_whisper.py").write_text(source)
        dist_info = tmp_path / "echo_whisper-1.0.dist-info"
        dist_info.mkdir()
        (dist_info / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-whisper\nVersion: 1.0\n")
        (dist_info / "entry_points.txt").write_text(f"[whisper_max_plugin]\n{entry_point}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "echo_whisper", raising=False)

    yield install_plugin
    sys.modules.pop("echo_whisper", None)


# The built-ins


def test_max_and_torch_are_built_in():
    assert [backend.name for backend in backends.all_backends()][:2] == ["max", "torch"]


@pytest.mark.parametrize("name", ["max", "MAX", " Max "])
def test_names_ignore_case_and_surrounding_blanks(name):
    assert backends.get(name).name == "max"


@pytest.mark.parametrize("name", ["foo", "", "max2"])
def test_an_unknown_name_is_one_error_that_lists_the_known_ones(fresh_plugin_manager, name):
    with pytest.raises(errors.UnknownBackendError) as raised:
        backends.get(name)
    assert str(raised.value) == f"unknown backend {name!r}; known backends: max, torch"
    assert isinstance(raised.value, ValueError)


def test_asking_for_names_and_reasons_imports_neither_torch_nor_max_nor_whisper():
    code = (
        "import sys; from whisper_max_plugin import backends;"
        "[(b.name, b.version(), b.can_run()) for b in backends.all_backends()];"
        "print({'torch', 'whisper', 'max.driver', 'max.engine'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_torch_is_usable_where_upstream_is():
    torch = backends.get_usable("torch")
    assert torch.version() == metadata.version("torch")
    assert torch.devices()[0] == "cpu"


def test_torch_hands_every_argument_to_upstream():
    def upstream_load_model(name, device=None, download_root=None, in_memory=False):
        return (name, device, download_root, in_memory)

    torch = backends.get("torch")
    loaded = torch.load_model("tiny", "cpu", "models", True, upstream_load_model=upstream_load_model)
    assert loaded == ("tiny", "cpu", "models", True)


def test_max_lists_the_cpu_first():
    pytest.importorskip("max.driver", reason="MAX is not installed")
    assert backends.get_usable("max").devices()[0] == "cpu"


def test_max_names_each_accelerator_as_torch_does(monkeypatch):
    driver = pytest.importorskip("max.driver", reason="MAX is not installed")
    monkeypatch.setattr(driver, "accelerator_count", lambda: 2)
    assert backends.get("max").devices() == ["cpu", "cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (None, "MAX is not installed: pip install 'max>=26.7,<26.8'"),
        ("26.6.1", "MAX 26.6.1 is installed and this plugin needs 26.7: pip install 'max>=26.7,<26.8'"),
        ("27.0.0", "MAX 27.0.0 is installed and this plugin needs 26.7: pip install 'max>=26.7,<26.8'"),
    ],
)
def test_max_says_how_to_install_it(monkeypatch, version, reason):
    monkeypatch.setattr(max_backend.MaxBackend, "version", lambda self: version)
    monkeypatch.setattr(max_backend, "_engine_is_importable", lambda: True)
    assert backends.get("max").can_run() == reason
    assert backends.get("max").devices() == []
    with pytest.raises(errors.BackendUnavailableError, match="pip install 'max"):
        backends.get_usable("max")


def test_max_needs_more_than_an_empty_folder_of_its_name(monkeypatch, tmp_path):
    (tmp_path / "max").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    for name in [name for name in sys.modules if name == "max" or name.startswith("max.")]:
        monkeypatch.delitem(sys.modules, name)
    assert not max_backend._engine_is_importable()


@pytest.mark.parametrize("version", [(3, 9), (3, 15)])
def test_max_says_which_python_it_needs(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    running = ".".join(map(str, version))
    reason = f"MAX runs on Python 3.10 to 3.14 and this is {running}: use one of those"
    assert backends.get("max").can_run() == reason


# Third parties


def test_a_plugin_adds_its_backend(register):
    register(EchoBackend("Echo"))
    assert "Echo" in [backend.name for backend in backends.all_backends()]
    assert backends.get("echo").version() == "1.0"
    with pytest.raises(errors.UnknownBackendError, match="known backends: echo, max, torch"):
        backends.get("foo")


def test_a_plugins_function_may_have_another_name(register):
    class Plugin:
        @hookimpl(specname="whisper_backends")
        def whisper(self):
            return [EchoBackend()]

    plugin = Plugin()
    backends.plugin_manager().register(plugin, name="another")
    try:
        assert backends.get("echo").version() == "1.0"
    finally:
        backends.plugin_manager().unregister(plugin)


def test_a_backend_that_cannot_run_is_listed_and_refused_with_its_reason(register):
    class NeedsHardware(EchoBackend):
        def can_run(self):
            return "no such accelerator: buy one"

    register(NeedsHardware())
    assert backends.get("echo").can_run() == "no such accelerator: buy one"
    with pytest.raises(errors.BackendUnavailableError, match=r"^no such accelerator: buy one$"):
        backends.get_usable("echo")


def test_a_plugin_cannot_replace_a_built_in(register, caplog):
    register(EchoBackend("max"))
    assert isinstance(backends.get("max"), max_backend.MaxBackend)
    assert "ignored a second backend named 'max'" in caplog.text


def test_an_entry_point_registers_a_backend(install_plugin):
    install_plugin(
        "from whisper_max_plugin.hookspecs import hookimpl\n"
        f"{inspect.getsource(EchoBackend)}\n"
        "@hookimpl\n"
        "def whisper_backends():\n"
        "    return [EchoBackend()]\n"
    )
    assert backends.get_usable("echo").devices() == ["cpu"]


@pytest.mark.parametrize(
    ("source", "entry_point", "problem"),
    [
        ("import no_such_library", "echo = echo_whisper", "ModuleNotFoundError: No module named 'no_such"),
        ("1 / 0", "echo = echo_whisper", "ZeroDivisionError: division by zero"),
        ("", "echo = echo_whisper:Missing", "AttributeError: module 'echo_whisper' has no attribute"),
        ("", "echo = echo_whisper", "it implements no whisper_backends() hook"),
    ],
)
def test_an_entry_point_that_cannot_be_loaded_is_an_unusable_backend(install_plugin, source, entry_point, problem):
    install_plugin(source, entry_point)
    broken = backends.get("echo")
    assert problem in broken.can_run()
    assert broken.can_run().endswith("update or uninstall echo-whisper")
    assert (broken.version(), broken.devices()) == (None, [])
    assert {"max", "torch"} <= {backend.name for backend in backends.all_backends()}
    with pytest.raises(errors.BackendUnavailableError, match="cannot be loaded"):
        broken.load_model("tiny", None, None, False, upstream_load_model=print)


def test_a_backend_that_lacks_a_method_is_an_unusable_backend(register):
    class Half:
        name = "half"

        def version(self):
            return None

    register(Half())
    reason = "the backend of the plugin third-party lacks devices, can_run, load_model: update it"
    assert backends.get("half").can_run() == reason


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        ("raise OSError('no such chip')", "OSError: no such chip"),
        ("return None", "TypeError: 'NoneType' object is not iterable"),
        ("yield 1 / 0", "ZeroDivisionError: division by zero"),
        ("return [type('Nameless', (), {'name': 7})]", "AttributeError: 'int' object has no attribute 'strip'"),
    ],
)
def test_a_hook_that_fails_is_an_unusable_backend_of_the_plugins_name(install_plugin, hook, problem):
    install_plugin(
        f"from whisper_max_plugin.hookspecs import hookimpl\n@hookimpl\ndef whisper_backends():\n    {hook}\n"
    )
    assert [backend.name for backend in backends.all_backends()] == ["echo", "max", "torch"]
    reason = f"whisper_backends() of the plugin echo failed ({problem}): update or uninstall it"
    assert backends.get("echo").can_run() == reason
    assert isinstance(backends.get("max"), max_backend.MaxBackend)


def test_every_hook_is_documented():
    hooks = [getattr(hookspecs, name) for name in dir(hookspecs)]
    specifications = [hook for hook in hooks if hasattr(hook, f"{hookspecs.PROJECT}_spec")]
    assert specifications
    assert all(hook.__doc__ for hook in specifications)


# Which one a call gets


@pytest.mark.parametrize(("given", "chosen"), [*PRECEDENCE, ([], "torch")])
def test_keyword_then_command_line_then_install_then_environment_then_torch(monkeypatch, given, chosen):
    monkeypatch.delenv("WHISPER_BACKEND", raising=False)
    if "environment" in given:
        monkeypatch.setenv("WHISPER_BACKEND", GIVEN["environment"])
    keyword, command_line, installed = (
        GIVEN[level] if level in given else None for level in ("keyword", "command_line", "installed")
    )
    assert backends.resolve(keyword, command_line=command_line, installed=installed) == chosen


@pytest.mark.parametrize(("value", "chosen"), [("", "torch"), ("  ", "torch"), (" Max\n", "max")])
def test_the_environment_is_read_when_asked_and_an_empty_one_is_none(monkeypatch, value, chosen):
    monkeypatch.setenv("WHISPER_BACKEND", value)
    assert backends.resolve(None, command_line=None, installed=None) == chosen
