"""install() and uninstall(): in any order, before and after `import whisper`, beside patches of others."""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from unittest import mock

import pytest

import whisper_max_plugin
from whisper_max_plugin import choices, errors, upstream

from ..stand_in import folder, printed, python
from .activation_fixtures import echo, switched_off, whisper

__all__ = ["echo", "folder", "python", "switched_off", "whisper"]  # fixtures, found by name


# Before it


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


# Switching on and off


def test_install_and_uninstall_may_be_repeated_and_leave_upstream_as_it_was(whisper, echo):
    def functions() -> list[object]:
        audio, transcribe = sys.modules["whisper.audio"], sys.modules["whisper.transcribe"]
        spectrograms = [module.log_mel_spectrogram for module in (whisper, audio, transcribe)]
        return [whisper.load_model, whisper.load_audio, audio.load_audio, *spectrograms]

    before = functions()
    for _ in range(2):
        whisper_max_plugin.install("echo")
        whisper_max_plugin.install("echo")
        assert whisper_max_plugin.is_active()
        assert whisper.load_model("tiny")[0] == "echo"
        assert whisper.load_audio is sys.modules["whisper.audio"].load_audio
        for _ in range(2):
            whisper_max_plugin.uninstall()
            assert not whisper_max_plugin.is_active()
            assert functions() == before


def test_install_takes_max_by_default_and_another_name_replaces_it(whisper, echo):
    whisper_max_plugin.install()
    assert upstream.current_backend() == "max"
    whisper_max_plugin.install(backend=" Echo")
    assert upstream.current_backend() == "echo"


def test_uninstall_forgets_what_the_command_line_of_an_earlier_whisper_asked_for(whisper, echo):
    whisper_max_plugin.install()
    choices.command_line.backend, choices.command_line.precision = "torch", "int8"  # as `whisper --backend torch` does
    whisper_max_plugin.uninstall()
    whisper_max_plugin.install("echo")
    assert upstream.current_backend() == "echo"
    assert choices.command_line.precision is None


def test_install_refuses_an_unknown_name_and_stays_off(whisper):
    load_model = whisper.load_model
    with pytest.raises(errors.UnknownBackendError, match=r"unknown backend 'foo'; known backends: .*max.*torch"):
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


def test_a_later_patch_by_somebody_else_stays(whisper, echo):
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(whisper, "load_model", whisper.load_model)
        whisper_max_plugin.install("echo")
        ours = whisper.load_model

        def theirs(*arguments, **options):
            return ("theirs", ours(*arguments, **options))

        whisper.load_model = theirs
        whisper_max_plugin.uninstall()
        assert whisper.load_model is theirs
        with pytest.raises(RuntimeError, match="Model nonesuch not found"):  # upstream's own answer
            whisper.load_model("nonesuch")


def test_an_earlier_patch_by_somebody_else_is_what_ours_calls(whisper, echo, monkeypatch):
    upstreams = whisper.load_model

    def theirs(*arguments, **options):
        return ("theirs", arguments, options)

    with monkeypatch.context() as patch:
        patch.setattr(whisper, "load_model", theirs)
        whisper_max_plugin.install("echo")
        assert whisper.load_model("tiny")[0] == "echo"
        options = {"device": None, "download_root": None, "in_memory": False}
        assert whisper.load_model("tiny", backend="torch") == ("theirs", ("tiny",), options)
        parameters = inspect.signature(whisper.load_model).parameters
        assert list(parameters) == ["name", "device", "download_root", "in_memory", "backend", "precision"]
        whisper_max_plugin.uninstall()
        assert whisper.load_model is theirs
    assert whisper.load_model is upstreams


def test_what_somebody_put_there_needs_no_name_nor_annotations(whisper, echo, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(whisper, "load_model", functools.partial(whisper.load_model, in_memory=True))
        patch.setattr(whisper, "load_audio", mock.MagicMock(spec=[]))
        whisper_max_plugin.install("echo")
        assert whisper.load_model("tiny")[0] == "echo"
        whisper_max_plugin.uninstall()
    with monkeypatch.context() as patch:
        calls = []
        patch.setattr(
            whisper, "load_model", functools.partial(lambda name, **options: calls.append(options), device="cpu")
        )
        whisper_max_plugin.install()
        load_model = whisper.load_model
        whisper_max_plugin.uninstall()
        load_model("tiny", "cuda")
        assert calls == [{"device": "cuda", "download_root": None, "in_memory": False}]


def test_an_install_that_fails_leaves_the_plugin_off(whisper, monkeypatch):
    with monkeypatch.context() as patch:
        patch.delattr("whisper.timing.median_filter")
        with pytest.raises(errors.UnsupportedWhisperError, match="median_filter"):
            whisper_max_plugin.install()
        assert not whisper_max_plugin.is_active()
        assert whisper_max_plugin.status()["backend"] == "torch"


def test_install_again_puts_back_what_somebodys_temporary_patch_took_off(whisper, echo):
    with mock.patch.object(whisper, "load_model", autospec=True):
        whisper_max_plugin.install("echo")
    whisper_max_plugin.install("echo")
    assert whisper.load_model("tiny")[0] == "echo"
    whisper_max_plugin.uninstall()
    with pytest.raises(RuntimeError, match="Model nonesuch not found"):
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
        ("padding=0", "pad=0", "whisper.audio.log_mel_spectrogram(audio, n_mels, padding)"),
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
