"""What `whisper-max doctor` prints and returns."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from whisper_max_plugin.cli import main
from whisper_max_plugin.doctor import checks


@pytest.fixture
def findings(monkeypatch):
    found = []
    monkeypatch.setattr(checks, "run_checks", lambda: found)
    return found


def test_it_is_content_when_nothing_needs_mending(findings, capsys):
    findings += [checks.Check("python", True, "3.11.2"), checks.Check("nvidia driver", None, "none")]
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ok  python         3.11.2",
        "--  nvidia driver  none",
        "",
        "Everything is in order.",
    ]


def test_it_names_the_command_that_mends_a_problem(findings, capsys):
    findings += [
        checks.Check("python", True, "3.11.2"),
        checks.Check("max", False, "not installed", "pip install max"),
    ]
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok  python  3.11.2",
        "!!  max     not installed",
        "      mend: pip install max",
        "",
        "1 problem.",
    ]


@pytest.mark.parametrize("ok", [True, False])
def test_as_json(findings, capsys, ok):
    findings.append(checks.Check("max", ok, "a value", None if ok else "pip install max"))
    assert main(["doctor", "--json"]) == (0 if ok else 1)
    assert json.loads(capsys.readouterr().out) == {
        "ok": ok,
        "checks": [{"name": "max", "ok": ok, "value": "a value", "remedy": None if ok else "pip install max"}],
    }


def test_it_runs_in_a_process_of_its_own():
    command = [sys.executable, "-m", "whisper_max_plugin.cli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1), done.stderr
    assert done.stderr == ""
    assert report["ok"] is not any(check["ok"] is False for check in report["checks"])
    assert all(check["remedy"] for check in report["checks"] if check["ok"] is False)
    assert {"python", "max", "torch", "openai-whisper", "cache folder"} <= {c["name"] for c in report["checks"]}


def test_it_reports_where_neither_max_nor_torch_nor_whisper_can_be_imported():
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['max', 'torch', 'whisper'])); "
        "from whisper_max_plugin.cli import main; sys.exit(main(['doctor', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    problems = {check["name"] for check in json.loads(done.stdout)["checks"] if check["ok"] is False}
    assert {"whisper package", "devices", "backend max", "backend torch"} <= problems
