"""WHISPER_BACKEND switches the plugin on in programs that nobody may edit."""

from __future__ import annotations

import pytest

from ..stand_in import folder, printed, python

__all__ = ["folder", "python"]  # fixtures, found by name


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
    assert "UnknownBackendError: unknown backend 'foo'; known backends: echo" in result.stderr.splitlines()[-1]


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
