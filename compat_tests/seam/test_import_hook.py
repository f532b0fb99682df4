"""when_imported() calls back when a module has been imported, and leaves imports as they are."""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
import time
from pathlib import Path

import pytest

from whisper_max_plugin import import_hook


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
    import_hook.when_imported("imported_later", callback)
    yield calls
    import_hook.forget("imported_later", callback)


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
        import_hook.when_imported("imported_later", callback)
    module_file.write_text("value = 22\n")
    importlib.reload(module)
    import_hook.forget("imported_later", callback)
    importlib.reload(module)
    assert values == [1, 22]


def test_a_module_that_another_thread_is_importing_is_waited_for(module_file):
    module_file.write_text("import time\ntime.sleep(0.3)\nvalue = 1\n")
    importing = threading.Thread(target=importlib.import_module, args=("imported_later",))
    importing.start()
    while "imported_later" not in sys.modules:
        time.sleep(0.01)
    values = []
    callback = lambda imported: values.append(imported.value)  # noqa: E731
    import_hook.when_imported("imported_later", callback)
    importing.join()
    import_hook.forget("imported_later", callback)
    assert values == [1]


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
