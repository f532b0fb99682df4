"""The order of imports, patches and loads, as programs, interpreters and test runners bring it about.

`test_install.py` has the plain orders; here are those that involve live models, other ways to start Python, modules
that are imported again, threads, and pytest-xdist.
"""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
import whisper as real_whisper
from whisper.model import Whisper

import whisper_max_plugin
from whisper_max_plugin.inference.model import MaxWhisper

from ..compare import assert_same_decoding
from ..conftest import Pair
from ..data import NANO, ROOT
from ..stand_in import CONSOLE_SCRIPT, MODULE, folder, printed, python
from .activation_fixtures import switched_off

__all__ = ["folder", "python", "switched_off"]  # fixtures, found by name

MEL = torch.randn(80, 3000, generator=torch.Generator().manual_seed(0)) / 2
OPTIONS = real_whisper.DecodingOptions(language="en", fp16=False, sample_len=8)

Run = Callable[..., subprocess.CompletedProcess[str]]


# Live models


def graph_runs() -> int:
    return sum(whisper_max_plugin.status()["graph_runs"].values())


@pytest.fixture
def loaded(switched_off: None) -> Whisper:
    """A model that was accelerated, and ran, before the plugin was switched off."""
    whisper_max_plugin.install()
    model = real_whisper.load_model(str(NANO))
    model.decode(MEL, OPTIONS)
    whisper_max_plugin.uninstall()
    return model


def test_after_uninstall_a_live_model_still_runs_graphs_and_a_new_one_is_upstreams(nano: Pair, loaded: Whisper) -> None:
    before = graph_runs()
    expected = nano.torch.decode(MEL + 0.1, OPTIONS)
    assert_same_decoding(loaded.decode(MEL + 0.1, OPTIONS), expected)
    assert graph_runs() > before + 3
    assert type(loaded) is MaxWhisper

    new, before = real_whisper.load_model(str(NANO)), graph_runs()
    assert type(new) is Whisper
    assert_same_decoding(new.decode(MEL + 0.1, OPTIONS), expected)
    assert graph_runs() == before


def test_install_leaves_live_models_of_upstream_as_they_are(nano: Pair, loaded: Whisper) -> None:
    theirs = real_whisper.load_model(str(NANO))
    whisper_max_plugin.install()
    before = graph_runs()
    assert type(theirs) is Whisper
    assert {type(module).__module__ for module in theirs.modules()} == {
        type(module).__module__ for module in nano.torch.modules()
    }
    assert_same_decoding(theirs.decode(MEL, OPTIONS), nano.torch.decode(MEL, OPTIONS))
    assert graph_runs() == before
    assert type(real_whisper.load_model(str(NANO))) is MaxWhisper
    assert type(loaded) is MaxWhisper


# `from whisper import load_model` first


@pytest.mark.parametrize("install", ["whisper_max_plugin.install('echo')", "import whisper_max_plugin.auto"])
def test_a_script_that_imported_load_model_first_is_warned_about_itself(
    python: Run, folder: Path, install: str
) -> None:
    code = f"from whisper import load_model\nimport whisper_max_plugin\n{install}\n{install}\nprint(load_model('a'))\n"
    (folder / "script.py").write_text(code)
    result = python("script.py")
    assert result.stdout == "['upstream', 'a']\n"
    assert result.stderr.count("RuntimeWarning: __main__ imported load_model from whisper before") == 1
    assert "install first, or call whisper.load_model(...) there" in result.stderr


def test_the_warning_as_an_error_leaves_the_plugin_active(python: Run) -> None:
    code = (
        "import whisper\nfrom whisper import load_model\nimport json, whisper_max_plugin as p\n"
        "try: p.install('echo')\nexcept RuntimeWarning: print(json.dumps([p.is_active(), whisper.load_model('a')]))"
    )
    assert printed(python("-W", "error::RuntimeWarning", "-c", code)) == [True, ["echo", "a"]]


# Modules that are imported again


def test_whisper_imported_a_second_time_is_patched_too(python: Run) -> None:
    code = (
        "import json, sys, whisper as first, whisper_max_plugin; whisper_max_plugin.install('echo')\n"
        "for name in [name for name in sys.modules if name.partition('.')[0] == 'whisper']: del sys.modules[name]\n"
        "import whisper as second\n"
        "loaded = [first is second, first.load_model('a'), second.load_model('a')]; whisper_max_plugin.uninstall()\n"
        "print(json.dumps([*loaded, first.load_model('a'), second.load_model('a')]))"
    )
    upstreams = ["upstream", "a"]
    assert printed(python("-c", code)) == [False, ["echo", "a"], ["echo", "a"], upstreams, upstreams]


def test_a_reload_of_the_plugin_changes_nothing(python: Run) -> None:
    code = (
        "import importlib, json, whisper, whisper_max_plugin as p; p.install('echo'); importlib.reload(p);"
        "loaded = [p.is_active(), whisper.load_model('a')]; p.uninstall();"
        "print(json.dumps([*loaded, p.is_active(), whisper.load_model('a')]))"
    )
    assert printed(python("-c", code)) == [True, ["echo", "a"], False, ["upstream", "a"]]


# Other ways to start Python

ISOLATING = pytest.mark.parametrize("options", [["-I"], ["-E"], ["-s"], ["-OO"]])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment's folder, which has the stand-in whisper and the plugin with its hook.

    They are found by path files, since `python -I` ignores PYTHONPATH.
    """
    path = tmp_path_factory.mktemp("environment")
    venv.create(path, symlinks=True)
    return path


@pytest.fixture
def installed_python(environment: Path, folder: Path) -> Run:
    """Run that environment's Python in the folder of the stand-in."""
    site_packages = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    plugin = Path(whisper_max_plugin.__file__).parents[1]
    places = [folder, plugin, metadata.distribution("pluggy").locate_file("")]
    (site_packages / "_stand_in.pth").write_text("".join(f"{place}\n" for place in places))
    for hook in (ROOT / "site-packages").iterdir():
        shutil.copy(hook, site_packages)

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("WHISPER_", "PYTHON"))}
        command = [str(environment / "bin" / "python"), *arguments]
        return subprocess.run(
            command, cwd=folder, env={**kept, **variables}, capture_output=True, text=True, timeout=60
        )

    return run


@ISOLATING
@pytest.mark.parametrize("start", [CONSOLE_SCRIPT, MODULE], ids=["script", "module"])
def test_the_hook_works_in_an_isolated_interpreter(installed_python: Run, options: list[str], start: list[str]) -> None:
    result = installed_python(*options, *start, "a.wav", "--backend", "echo")
    assert printed(result) == [["echo", "turbo"], {"audio": ["a.wav"]}]
    result = installed_python(*options, *start, "a.wav", WHISPER_BACKEND="echo")  # -E ignores only PYTHON…
    assert printed(result)[0] == ["echo", "turbo"]


@ISOLATING
def test_the_hook_switched_off_in_an_isolated_interpreter(installed_python: Run, options: list[str]) -> None:
    off = {"WHISPER_MAX_NO_HOOK": "1"}
    result = installed_python(*options, *MODULE, "a.wav", "--backend", "echo", **off)
    assert result.returncode == 2
    assert result.stderr.endswith("error: unrecognized arguments: --backend echo\n")
    assert printed(installed_python(*options, *MODULE, "a.wav", WHISPER_BACKEND="echo", **off))[0][0] == "upstream"

    command = ["-m", "whisper_max_plugin", *MODULE, "a.wav", "--backend", "echo"]
    assert printed(installed_python(*options, *command, **off))[0] == ["echo", "turbo"]


@ISOLATING
def test_install_in_an_isolated_interpreter(installed_python: Run, options: list[str]) -> None:
    code = (
        "import json, whisper_max_plugin; whisper_max_plugin.install('echo'); import whisper;"
        "print(json.dumps(whisper.load_model('a')))"
    )
    assert printed(installed_python(*options, "-c", code)) == ["echo", "a"]


@ISOLATING
def test_a_script_that_the_plugin_runs_has_the_path_that_python_gives_it(
    installed_python: Run, folder: Path, options: list[str]
) -> None:
    (folder / "scripts").mkdir()
    (folder / "scripts" / "script.py").write_text("import json, sys; print(json.dumps([sys.argv, sys.path]))")
    arguments = [os.path.join("scripts", "script.py"), "-x"]
    expected = printed(installed_python(*options, *arguments))
    assert printed(installed_python(*options, "-m", "whisper_max_plugin", *arguments)) == expected


def test_without_site_there_is_no_plugin_as_there_is_no_whisper(installed_python: Run) -> None:
    for module in ("whisper", "whisper_max_plugin"):
        result = installed_python("-I", "-S", "-m", module)
        assert result.returncode == 1
        assert result.stderr.endswith(f": No module named {module}\n")


def test_without_site_but_with_a_path_there_is_no_hook_and_the_rest_works(installed_python: Run, folder: Path) -> None:
    plugin = Path(whisper_max_plugin.__file__).parents[1]
    places = [folder, plugin, metadata.distribution("pluggy").locate_file("")]
    path = {"PYTHONPATH": os.pathsep.join(map(str, places))}

    result = installed_python("-S", *MODULE, "a.wav", "--backend", "echo", **path)
    assert result.returncode == 2
    assert result.stderr.endswith("error: unrecognized arguments: --backend echo\n")
    assert printed(installed_python("-S", *MODULE, "a.wav", WHISPER_BACKEND="echo", **path))[0][0] == "upstream"

    command = ["-S", "-m", "whisper_max_plugin", *MODULE, "a.wav", "--backend", "echo"]
    assert printed(installed_python(*command, **path))[0] == ["echo", "turbo"]
    code = (
        "import json, whisper_max_plugin, whisper; whisper_max_plugin.install('echo');"
        "print(json.dumps(whisper.load_model('a')))"
    )
    assert printed(installed_python("-S", "-c", code, **path)) == ["echo", "a"]


# Test runners

XDIST_TESTS = """
    import pytest, torch, whisper
    import whisper_max_plugin

    @pytest.mark.parametrize("seed", range(4))
    def test_on_graphs(seed, worker_id):
        whisper_max_plugin.install()
        model = whisper.load_model({path!r})
        mel = torch.randn(80, 3000, generator=torch.Generator().manual_seed(seed)) / 2
        result = model.decode(mel, language="en", fp16=False, sample_len=4)
        status = whisper_max_plugin.status()
        assert status["graph_runs"]["step"] >= 3 and not status["fallbacks"]
        print(f"\\n{{worker_id}} seed {{seed}} tokens {{result.tokens}}")
"""


def test_each_worker_of_pytest_xdist_runs_graphs(nano: Pair, tmp_path: Path) -> None:
    pytest.importorskip("xdist", reason="pytest-xdist is not installed, which this test starts")
    (tmp_path / "test_generated.py").write_text(inspect.cleandoc(XDIST_TESTS).format(path=str(NANO)))
    command = [sys.executable, "-m", "pytest", "-q", "-rP", "-n", "2", "--dist", "load", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("gw")]
    assert {line.split()[0] for line in lines} == {"gw0", "gw1"}
    tokens = {int(line.split()[2]): line.partition("tokens ")[2] for line in lines}
    for seed in range(4):
        mel = torch.randn(80, 3000, generator=torch.Generator().manual_seed(seed)) / 2
        assert tokens[seed] == str(nano.torch.decode(mel, language="en", fp16=False, sample_len=4).tokens)
