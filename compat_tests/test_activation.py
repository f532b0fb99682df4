"""Switching on and off: install(), the whisper command, the environment, `python -m whisper_max_plugin`.

What a whole process does is tested with a stand-in for openai-whisper that starts in milliseconds. It has the
same modules, signatures and shape of command line; the packaging tests start the real one.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import whisper_max_plugin
from whisper_max_plugin import backends, errors, startup, upstream
from whisper_max_plugin.hookspecs import hookimpl


class EchoBackend:
    """Answers with the arguments it got."""

    def __init__(self, name="echo"):
        self.name = name

    def version(self):
        return "1.0"

    def devices(self):
        return ["cpu"]

    def can_run(self):
        return True

    def load_model(self, name, device, download_root, in_memory, *, upstream_load_model):
        return (self.name, name, device, download_root, in_memory)


class EchoPlugin:
    @hookimpl
    def whisper_backends(self):
        return [EchoBackend(name) for name in ("echo", "one", "two", "three", "four")]


@pytest.fixture(autouse=True)
def switched_off(monkeypatch):
    """Start and end with upstream's whisper and none of our settings."""
    for variable in ("WHISPER_BACKEND", "WHISPER_MAX_NO_HOOK", "WHISPER_MAX_STRICT"):
        monkeypatch.delenv(variable, raising=False)
    was_active = whisper_max_plugin.is_active()
    whisper_max_plugin.uninstall()
    monkeypatch.setattr(startup, "command_line_backend", None)
    monkeypatch.setattr(upstream, "_reported", set())
    yield
    whisper_max_plugin.uninstall()
    if was_active:
        upstream.activate()


@pytest.fixture
def echo():
    backends.plugin_manager().register(EchoPlugin(), name="echo")
    yield
    backends.plugin_manager().unregister(name="echo")


@pytest.fixture
def whisper():
    return importlib.import_module("whisper")


# A whole process, with the stand-in for whisper

STAND_IN = {
    "whisper/__init__.py": """
        from .audio import load_audio
        from .transcribe import transcribe
        __version__ = "20250625"
        def load_model(name, device=None, download_root=None, in_memory=False):
            return ["upstream", name]
    """,
    "whisper/audio.py": """
        def load_audio(file, sr=16000):
            return ["upstream", file, sr]
    """,
    "whisper/transcribe.py": """
        import argparse, json
        def transcribe(model, audio, **options):
            return options
        def cli():
            parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
            parser.add_argument("audio", nargs="+", type=str, help="audio file(s) to transcribe")
            parser.add_argument("--model", default="turbo", help="name of the Whisper model to use")
            arguments = parser.parse_args().__dict__
            from . import load_model
            print(json.dumps([load_model(arguments.pop("model")), arguments]))
        if __name__ == "__main__":
            cli()
    """,
    "whisper/__main__.py": """
        from .transcribe import cli
        cli()
    """,
    "bin/whisper": """
        import re
        import sys
        from whisper.transcribe import cli
        if __name__ == '__main__':
            sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])
            sys.exit(cli())
    """,
    "echo_whisper-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: echo-whisper\nVersion: 1.0\n",
    "echo_whisper-1.0.dist-info/entry_points.txt": "[whisper_max_plugin]\necho = echo_whisper\n",
    "echo_whisper.py": """
        from whisper_max_plugin.hookspecs import hookimpl
        class Echo:
            name = "echo"
            def version(self): return "1.0"
            def devices(self): return ["cpu"]
            def can_run(self): return True
            def load_model(self, name, device, download_root, in_memory, *, upstream_load_model):
                return ["echo", name]
        class Tired(Echo):
            name = "tired"
            def can_run(self): return "no more strength: take a rest"
        @hookimpl
        def whisper_backends(): return [Echo(), Tired()]
    """,
}
CONSOLE_SCRIPT = ["bin/whisper"]
MODULE = ["-m", "whisper"]
SUBMODULE = ["-W", "ignore", "-m", "whisper.transcribe"]
STARTS = pytest.mark.parametrize("start", [CONSOLE_SCRIPT, MODULE, SUBMODULE, ["-Wignore", "-mwhisper"]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in STAND_IN.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(inspect.cleandoc(text) + "\n")
    return tmp_path


@pytest.fixture
def python(folder):
    """Run Python beside the stand-in whisper; the plugin's start-up hook is that of this environment."""

    def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WHISPER_")}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**kept, "PYTHONPATH": str(folder), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return python


def printed(result: subprocess.CompletedProcess[str]):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


# import whisper_max_plugin


def test_importing_the_package_imports_nothing_else_and_changes_nothing(python):
    code = (
        "import sys, whisper_max_plugin;"
        "print({'torch', 'max', 'whisper', 'pluggy', 'inspect', 'logging', 'argparse'} & set(sys.modules))"
    )
    assert python("-c", code).stdout == "set()\n"


def test_asking_before_anything_ran_imports_neither_torch_nor_max_nor_whisper(python):
    result = python(
        "-c",
        "import json, sys, whisper_max_plugin; whisper_max_plugin.install(); whisper_max_plugin.uninstall();"
        "status = whisper_max_plugin.status();"
        "print(json.dumps([status, sorted({'torch', 'whisper', 'max.driver'} & set(sys.modules))]))",
    )
    status, heavy = printed(result)
    assert heavy == []
    assert (status["active"], status["backend"]) == (False, "torch")
    assert status["version"] == whisper_max_plugin.__version__


# install() and uninstall()


def test_install_and_uninstall_may_be_repeated_and_leave_upstream_as_it_was(whisper, echo):
    functions = [whisper.load_model, whisper.load_audio, sys.modules["whisper.audio"].load_audio]
    for _ in range(2):
        whisper_max_plugin.install("echo")
        whisper_max_plugin.install("echo")
        assert whisper_max_plugin.is_active()
        assert whisper.load_model("tiny")[0] == "echo"
        assert whisper.load_audio is sys.modules["whisper.audio"].load_audio
        for _ in range(2):
            whisper_max_plugin.uninstall()
            assert not whisper_max_plugin.is_active()
            assert functions == [
                whisper.load_model,
                whisper.load_audio,
                sys.modules["whisper.audio"].load_audio,
            ]


def test_install_takes_max_by_default_and_another_name_replaces_it(whisper, echo):
    whisper_max_plugin.install()
    assert upstream.current_backend() == "max"
    whisper_max_plugin.install(backend=" Echo")
    assert upstream.current_backend() == "echo"


def test_install_refuses_an_unknown_name_and_stays_off(whisper):
    load_model = whisper.load_model
    with pytest.raises(
        errors.UnknownBackendError, match=r"unknown backend 'foo'; known backends: .*max.*torch"
    ):
        whisper_max_plugin.install("foo")
    assert not whisper_max_plugin.is_active()
    assert whisper.load_model is load_model


@pytest.mark.parametrize(
    "code",
    [
        "import whisper, whisper_max_plugin; whisper_max_plugin.install('echo')",
        "import whisper_max_plugin; whisper_max_plugin.install('echo'); import whisper",
    ],
)
def test_install_works_before_and_after_import_whisper(python, code):
    result = python("-c", f"import json; {code}; print(json.dumps(whisper.load_model('tiny')))")
    assert printed(result) == ["echo", "tiny"]


def test_install_then_uninstall_before_import_whisper_changes_nothing(python):
    code = (
        "import json, whisper_max_plugin; whisper_max_plugin.install('echo'); whisper_max_plugin.uninstall();"
        "import whisper; print(json.dumps([whisper.load_model('tiny'), whisper.load_model.__module__]))"
    )
    assert printed(python("-c", code)) == [["upstream", "tiny"], "whisper"]


def test_the_patch_survives_a_reload_of_whisper_and_comes_off_afterwards(python):
    code = (
        "import importlib, json, whisper_max_plugin, whisper; whisper_max_plugin.install('echo');"
        "importlib.reload(whisper); after_reload = whisper.load_model('tiny');"
        "whisper_max_plugin.uninstall(); print(json.dumps([after_reload, whisper.load_model('tiny')]))"
    )
    assert printed(python("-c", code)) == [["echo", "tiny"], ["upstream", "tiny"]]


def test_a_later_patch_by_somebody_else_stays(whisper, echo, monkeypatch):
    monkeypatch.setattr(whisper, "load_model", whisper.load_model)
    whisper_max_plugin.install("echo")
    ours = whisper.load_model

    def theirs(*arguments, **options):
        return ("theirs", ours(*arguments, **options))

    whisper.load_model = theirs
    whisper_max_plugin.uninstall()
    assert whisper.load_model is theirs
    with pytest.raises(RuntimeError, match="Model nonesuch not found"):  # upstream's own answer
        whisper.load_model("nonesuch")


def test_modules_that_imported_load_model_before_are_warned_about_once(python, folder):
    (folder / "early.py").write_text("from whisper import load_model as load\n")
    code = (
        "import warnings, early, whisper_max_plugin as p; warnings.simplefilter('always')\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    p.install('echo'); p.install('echo'); p.uninstall(); p.install('echo')\n"
        "print([(w.category.__name__, str(w.message), w.filename) for w in caught])"
    )
    message = (
        "early imported load_model from whisper before whisper_max_plugin.install() and keeps upstream's: "
        "install first, or call whisper.load_model(...) there"
    )
    assert python("-c", code).stdout == f"{[('RuntimeWarning', message, '<string>')]}\n"


def test_names_imported_after_install_work_again_after_uninstall_and_install(whisper, echo):
    whisper_max_plugin.install("echo")
    load_model = whisper.load_model
    whisper_max_plugin.uninstall()
    with pytest.raises(RuntimeError, match="Model nonesuch not found"):
        load_model("nonesuch")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whisper_max_plugin.install("echo")
    assert load_model("nonesuch")[0] == "echo"
    assert whisper.load_model is load_model


def test_importing_auto_is_install(python):
    code = (
        "import whisper_max_plugin as p; before = p.is_active(); import whisper_max_plugin.auto, json;"
        "print(json.dumps([before, p.is_active(), p.status()['backend']]))"
    )
    assert printed(python("-c", code)) == [False, True, "max"]


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        ("in_memory=False):", "):", "whisper.load_model(name, device, download_root, in_memory)"),
        ("def load_model(", "def other(", "whisper.load_model(name, device, download_root, in_memory)"),
        ("def load_audio(file", "def load_audio(path", "whisper.audio.load_audio(file, sr)"),
    ],
)
def test_another_whisper_is_refused_with_its_version(python, folder, old, new, missing):
    for name in ("whisper/__init__.py", "whisper/audio.py"):
        (folder / name).write_text((folder / name).read_text().replace(old, new))
    result = python("-c", "import whisper_max_plugin as p; p.install(); import whisper")
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert f"UnsupportedWhisperError: whisper 20250625 ({folder}" in error
    assert f"has no {missing} for whisper_max_plugin to replace: pip install" in error


# whisper.load_model(..., backend=)


def test_load_model_has_upstreams_signature_and_one_keyword_more(whisper):
    signature = inspect.signature(whisper.load_model)
    whisper_max_plugin.install()
    patched = inspect.signature(whisper.load_model)
    assert list(patched.parameters.values())[:-1] == list(signature.parameters.values())
    assert patched.return_annotation == signature.return_annotation
    assert str(patched.parameters["backend"]) == "backend: 'str | None' = None"
    assert patched.parameters["backend"].kind is inspect.Parameter.KEYWORD_ONLY
    assert list(patched.parameters) == ["name", "device", "download_root", "in_memory", "backend"]


def test_load_model_keeps_upstreams_docstring_and_documents_backend(whisper):
    before = inspect.getdoc(whisper.load_model)
    whisper_max_plugin.install()
    after = inspect.getdoc(whisper.load_model)
    added = [line for line in after.splitlines() if line not in before.splitlines()]
    assert [line for line in after.splitlines() if line not in added] == before.splitlines()
    assert added[0] == "backend : str"
    assert after.index("in_memory: bool") < after.index("backend : str") < after.index("Returns")


def test_load_model_hands_every_argument_to_the_backend(whisper, echo):
    whisper_max_plugin.install("echo")
    assert whisper.load_model("tiny", "cpu", "models", True) == ("echo", "tiny", "cpu", "models", True)
    loaded = whisper.load_model(name="tiny", in_memory=True, download_root="models", device="cpu")
    assert loaded == ("echo", "tiny", "cpu", "models", True)
    with pytest.raises(TypeError):
        whisper.load_model("tiny", "cpu", "models", True, "echo")


def test_without_a_backend_upstreams_own_errors_pass_through(whisper):
    whisper_max_plugin.install("torch")
    with pytest.raises(RuntimeError, match="Model nonesuch not found; available models = "):
        whisper.load_model("nonesuch")


def test_an_unknown_backend_in_a_call_lists_the_known_ones(whisper, echo):
    whisper_max_plugin.install("echo")
    with pytest.raises(errors.UnknownBackendError, match="unknown backend 'foo'; known backends: echo, "):
        whisper.load_model("tiny", backend="foo")


def test_without_max_the_max_backend_says_how_to_install_it_and_torch_works(whisper, monkeypatch):
    monkeypatch.setattr("whisper_max_plugin.max_backend._engine_is_importable", lambda: False)
    whisper_max_plugin.install()
    with pytest.raises(errors.BackendUnavailableError, match="MAX is not installed: pip install 'max"):
        whisper.load_model("nonesuch")
    with pytest.raises(RuntimeError, match="Model nonesuch not found"):
        whisper.load_model("nonesuch", backend="torch")


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        (["keyword", "command_line", "installed", "environment"], "one"),
        (["command_line", "installed", "environment"], "two"),
        (["installed", "environment"], "three"),
        (["environment"], "four"),
    ],
)
def test_each_way_to_choose_a_backend_wins_over_the_ways_below_it(whisper, echo, monkeypatch, given, chosen):
    upstream.activate("three" if "installed" in given else None)
    if "command_line" in given:
        monkeypatch.setattr(startup, "command_line_backend", "two")
    if "environment" in given:
        monkeypatch.setenv("WHISPER_BACKEND", "four")  # after activation: it is read at call time
    keyword = {"backend": "one"} if "keyword" in given else {}
    assert whisper.load_model("tiny", **keyword)[0] == chosen
    assert upstream.current_backend(**{"keyword": keyword.get("backend")}) == chosen


def test_active_with_nothing_chosen_is_upstream(whisper):
    upstream.activate()
    assert upstream.current_backend() == "torch"
    with pytest.raises(RuntimeError, match="Model nonesuch not found"):
        whisper.load_model("nonesuch")


# load_audio


@pytest.fixture
def our_load_audio(monkeypatch):
    audio = importlib.import_module("whisper_max_plugin.audio")
    monkeypatch.setattr(audio, "load_audio", lambda file, sr=16000: ("ours", file, sr))


@pytest.mark.parametrize("module", ["whisper", "whisper.audio"])
def test_without_ffmpeg_audio_is_decoded_by_the_plugin(monkeypatch, whisper, our_load_audio, module):
    whisper_max_plugin.install()
    load_audio = sys.modules[module].load_audio
    monkeypatch.setattr("shutil.which", lambda command: None)  # after install: it is looked up at call time
    assert load_audio("a.flac") == ("ours", "a.flac", 16000)
    assert load_audio("a.flac", 8000) == ("ours", "a.flac", 8000)
    assert load_audio(file="a.flac", sr=8000) == ("ours", "a.flac", 8000)


def test_with_ffmpeg_audio_is_decoded_by_upstream(python):
    code = (
        "import json, shutil, whisper, whisper_max_plugin; whisper_max_plugin.install();"
        "shutil.which = lambda command: '/usr/bin/' + command;"
        "print(json.dumps(whisper.load_audio('a.flac')))"
    )
    assert printed(python("-c", code)) == ["upstream", "a.flac", 16000]


# The whisper command


@STARTS
@pytest.mark.parametrize("option", [["--backend", "echo"], ["--backend=Echo"]])
def test_the_whisper_command_takes_backend(python, start, option):
    model, options = printed(python(*start, "a.wav", *option, "--model", "tiny"))
    assert model == ["echo", "tiny"]
    assert options == {"audio": ["a.wav"]}  # upstream passes what is left on to transcribe()


@STARTS
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_its_help_is_upstreams_with_one_option_more(python, start, option):
    def words_below_usage(**environment):
        return python(*start, option, **environment).stdout.partition("\n\n")[2].split()

    ours = "what the model runs on: echo, max, tired, torch (default: WHISPER_BACKEND, else torch)"
    upstreams = words_below_usage(WHISPER_MAX_NO_HOOK="1")
    assert words_below_usage() == [*upstreams, "--backend", "NAME", *ours.split()]
    assert upstreams[:4] == ["positional", "arguments:", "audio", "audio"]


@STARTS
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--backend", "foo"], "unknown backend 'foo'; known backends: echo, max, tired, torch"),
        (["--backend", ""], "unknown backend ''; known backends: echo, max, tired, torch"),
        (["--backend", "tired"], "no more strength: take a rest"),
    ],
)
def test_a_backend_that_cannot_be_used_is_one_line_and_status_2(python, start, arguments, error):
    result = python(*start, "a.wav", *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.endswith(f": error: {error}")


def test_backend_without_a_name_is_argparses_own_error(python):
    result = python(*CONSOLE_SCRIPT, "a.wav", "--backend")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "whisper: error: argument --backend: expected one argument"


@STARTS
def test_the_whisper_command_reads_the_environment(python, start):
    assert printed(python(*start, "a.wav", WHISPER_BACKEND="echo"))[0] == ["echo", "turbo"]
    both = python(*start, "a.wav", "--backend", "torch", WHISPER_BACKEND="echo")
    assert printed(both)[0] == ["upstream", "turbo"]
    result = python(*start, "a.wav", WHISPER_BACKEND="foo")
    assert result.returncode == 2
    assert "unknown backend 'foo'" in result.stderr


@STARTS
def test_without_backend_the_whisper_command_is_upstreams(python, start):
    assert printed(python(*start, "a.wav"))[0] == ["upstream", "turbo"]


@STARTS
def test_no_hook_switches_everything_off(python, start):
    result = python(*start, "a.wav", "--backend", "echo", WHISPER_MAX_NO_HOOK="1")
    assert result.returncode == 2
    assert "unrecognized arguments: --backend echo" in result.stderr
    result = python(*start, "a.wav", WHISPER_MAX_NO_HOOK="1", WHISPER_BACKEND="echo")
    assert printed(result)[0] == ["upstream", "turbo"]


def test_another_program_with_the_option_backend_is_left_alone(python, folder):
    (folder / "other.py").write_text(
        "import argparse, json, sys, whisper\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('--backend')\n"
        "print(json.dumps([parser.parse_args().backend, 'whisper_max_plugin' in sys.modules]))\n"
    )
    assert printed(python("other.py", "--backend", "echo")) == ["echo", False]


def test_the_option_goes_to_no_other_parser_than_upstreams(python, folder):
    path = folder / "whisper/transcribe.py"
    other = "argparse.ArgumentParser(prog='other').parse_args([])\n    parser = "
    path.write_text(path.read_text().replace("parser = ", other, 1))
    assert printed(python(*MODULE, "a.wav", "--backend", "echo"))[0] == ["echo", "turbo"]


# The environment, in programs that nobody may edit


def test_the_environment_switches_a_script_on_and_is_read_at_call_time(python, folder):
    (folder / "script.py").write_text(
        "import json, os, whisper, whisper_max_plugin\n"
        "loaded = [whisper.load_model('tiny')]\n"
        "os.environ['WHISPER_BACKEND'] = 'torch'\n"
        "loaded.append(whisper.load_model('tiny'))\n"
        "print(json.dumps([loaded, whisper_max_plugin.is_active()]))\n"
    )
    loaded, active = printed(python("script.py", WHISPER_BACKEND="echo"))
    assert loaded == [["echo", "tiny"], ["upstream", "tiny"]]
    assert active


def test_the_environment_with_an_unknown_name_is_an_error_of_the_call(python):
    result = python("-c", "import whisper; whisper.load_model('tiny')", WHISPER_BACKEND="foo")
    assert result.returncode == 1
    assert (
        "UnknownBackendError: unknown backend 'foo'; known backends: echo" in result.stderr.splitlines()[-1]
    )


@pytest.mark.parametrize("environment", [{}, {"WHISPER_BACKEND": " "}, {"WHISPER_MAX_NO_HOOK": "1"}])
def test_a_script_without_it_gets_upstreams_whisper(python, environment):
    code = (
        "import json, sys, whisper; active = 'whisper_max_plugin.upstream' in sys.modules;"
        "print(json.dumps([whisper.load_model('a'), active]))"
    )
    assert printed(python("-c", code, **environment)) == [["upstream", "a"], False]


def test_activating_twice_is_activating_once(python, folder):
    code = (
        "import json, whisper; from whisper_max_plugin.startup import activate; activate(); activate();"
        "doubled = hasattr(whisper.load_model.__wrapped__, '__wrapped__');"
        "print(json.dumps([whisper.load_model('tiny'), doubled]))"
    )
    assert printed(python("-c", code, WHISPER_BACKEND="echo")) == [["echo", "tiny"], False]


# Which processes are the whisper command


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        (["/venv/bin/whisper", "a.wav"], ["python", "/venv/bin/whisper", "a.wav"], True),
        (["whisper.exe"], ["python.exe", "whisper.exe"], True),
        (["-m", "a.wav"], ["python", "-m", "whisper", "a.wav"], True),
        (["-m"], ["python", "-X", "dev", "-m", "whisper.transcribe"], True),
        (["-m", "a"], ["python", "-Imwhisper", "a"], True),
        (["-m", "whisper"], ["python", "-m", "whisperx", "whisper"], False),
        (["-m", "-m", "whisper"], ["python", "-m", "pdb", "-m", "whisper"], False),
        (["/venv/bin/whisper-max", "a.wav"], ["python", "/venv/bin/whisper-max", "a.wav"], False),
        (["script.py", "whisper"], ["python", "script.py", "whisper"], False),
        (["-c", "whisper"], ["python", "-c", "pass", "whisper"], False),
        ([""], ["python"], False),
        (["-m"], [], False),
        ([], [], False),
    ],
)
def test_is_whisper_command(argv, orig_argv, expected):
    assert startup.is_whisper_command(argv, orig_argv) is expected


# when_imported


@pytest.fixture
def module_file(tmp_path: Path, monkeypatch) -> Path:
    path = tmp_path / "imported_later.py"
    path.write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop("imported_later", None)


@pytest.fixture
def calls(module_file):
    calls = []
    callback = calls.append
    startup.when_imported("imported_later", callback)
    yield calls
    startup.forget("imported_later", callback)


def test_a_callback_runs_right_after_the_module(calls):
    assert calls == []
    module = importlib.import_module("imported_later")
    assert calls == [module]
    importlib.import_module("imported_later")
    assert calls == [module]
    assert importlib.reload(module) is module
    assert calls == [module, module]


def test_a_callback_for_an_imported_module_runs_at_once_and_again_after_a_reload(module_file):
    module = importlib.import_module("imported_later")
    values = []
    callback = lambda imported: values.append(imported.value)  # noqa: E731
    for _ in range(2):
        startup.when_imported("imported_later", callback)
    module_file.write_text("value = 22\n")
    importlib.reload(module)
    startup.forget("imported_later", callback)
    importlib.reload(module)
    assert values == [1, 22]


def test_the_modules_loader_stays_the_real_one(calls, module_file):
    module = importlib.import_module("imported_later")
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert "exec_module" not in vars(module.__loader__)
    assert inspect.getsource(module) == module_file.read_text()


def test_a_missing_module_and_a_failing_one_raise_as_ever(calls, module_file):
    module_file.write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("imported_later")
    module_file.unlink()
    importlib.invalidate_caches()
    with pytest.raises(ModuleNotFoundError, match="No module named 'imported_later'"):
        importlib.import_module("imported_later")
    assert calls == []


# python -m whisper_max_plugin


def test_a_script_runs_with_the_plugin_and_with_its_own_argv_and_path(python, folder):
    (folder / "scripts").mkdir()
    (folder / "scripts" / "helper.py").write_text("value = 7\n")
    (folder / "scripts" / "script.py").write_text(
        "import helper, json, sys, whisper_max_plugin as p\n"
        "print(json.dumps([__name__, sys.argv, sys.path[0], p.status()['backend']]))\n"
    )
    script = os.path.join("scripts", "script.py")
    name, argv, path, backend = printed(python("-m", "whisper_max_plugin", script, "a", "--backend", "b"))
    assert (name, argv, backend) == ("__main__", [script, "a", "--backend", "b"], "max")
    assert os.path.samefile(path, folder / "scripts")


def test_a_module_runs_with_the_plugin_and_with_its_own_argv(python, folder):
    (folder / "module.py").write_text(
        "import json, sys; print(json.dumps([__name__, sys.argv, sys.path[0]]))\n"
    )
    name, argv, path = printed(python("-m", "whisper_max_plugin", "-m", "module", "-x", "1"))
    assert (name, argv[1:]) == ("__main__", ["-x", "1"])
    assert os.path.samefile(argv[0], folder / "module.py")
    assert os.path.samefile(path, folder)


@pytest.mark.parametrize("start", [CONSOLE_SCRIPT, MODULE])
def test_upstreams_command_run_that_way_takes_backend_too(python, start):
    result = python("-m", "whisper_max_plugin", *start, "a.wav", "--backend", "echo", WHISPER_MAX_NO_HOOK="1")
    assert printed(result) == [["echo", "turbo"], {"audio": ["a.wav"]}]


@pytest.mark.parametrize("arguments", [[], ["-m"]])
def test_without_a_program_it_prints_its_usage_and_ends_with_status_2(python, arguments):
    result = python("-m", "whisper_max_plugin", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: python -m whisper_max_plugin SCRIPT [ARGUMENT ...]\n")


def test_its_help_is_its_usage(python):
    assert python("-m", "whisper_max_plugin", "--help").stdout.startswith(
        "usage: python -m whisper_max_plugin"
    )


def test_a_missing_script_is_one_line_and_status_2(python):
    result = python("-m", "whisper_max_plugin", "nonesuch.py")
    assert result.returncode == 2
    assert result.stderr == "python -m whisper_max_plugin: error: no such script: nonesuch.py\n"


def test_the_exit_status_is_the_scripts(python, folder):
    (folder / "script.py").write_text("raise SystemExit(5)\n")
    assert python("-m", "whisper_max_plugin", "script.py").returncode == 5
