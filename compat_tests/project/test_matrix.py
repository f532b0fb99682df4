"""The table of the matrix: what counts as wrong, and what it shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .. import matrix

FACTS = {
    "python": "3.11.7",
    "openai-whisper": "20250625",
    "torch": "2.13.0+cpu",
    "max": "26.7.0",
    "graph_runs": 80,
    "fallbacks": 0,
    "deselected": 4,
    "upstream_passed": 18,
    "upstream_total": 18,
    "upstream_deselected": 8,
    "upstream_graph_runs": 30,
    "package": "/environment/site-packages/whisper_max_plugin/__init__.py",
}


def leave(
    folder: Path,
    name: str,
    exit_code: int | None = 0,
    skipped: str | None = None,
    tests: str | None = None,
    running: str | None = None,
):
    """Write what tox and pytest leave of an environment."""
    (folder / f"{name}.json").write_text(json.dumps({"exit_code": exit_code, "skipped": skipped}))
    if tests is not None:
        (folder / f"{name}.xml").write_text(tests)
    if running is not None:
        (folder / f"{name}.running").write_text(running)


def results(tests: int = 9, failures: int = 0, errors: int = 0, skips: tuple[str, ...] = ()) -> str:
    """Return pytest's results of a run."""
    facts = "".join(f'<property name="{name}" value="{value}" />' for name, value in FACTS.items())
    cases = "".join(f'<testcase><skipped message="{reason}" /></testcase>' for reason in skips)
    for outcome, number in (("failure", failures), ("error", errors)):
        cases += f'<testcase classname="tests.test_a" name="test_{outcome}[1]"><{outcome} /></testcase>' * number
    return (
        f'<testsuites><testsuite tests="{tests}" failures="{failures}" errors="{errors}" skipped="{len(skips)}" '
        f'timestamp="2026-11-21T10:00:00"><properties>{facts}</properties>{cases}</testsuite></testsuites>'
    )


SOURCE_TREE = results().replace(str(FACTS["package"]), str(matrix.ROOT / "whisper_max_plugin" / "__init__.py"))


def test_a_row_shows_versions_counts_upstreams_tests_and_what_ran_where(tmp_path: Path):
    leave(tmp_path, "py311", tests=results(9, failures=1, errors=1, skips=("no ffmpeg",)), exit_code=1)
    text = matrix.table([matrix.read("py311", tmp_path)])
    heading, _, row, *rest = text.splitlines()
    assert heading.count("|") == row.count("|")
    assert row == (
        "| py311 | 3.11.7 | 20250625 | 2.13.0+cpu | 26.7.0 | 6 | 2 | 1 | 4 | 18 of 18 passed, 8 deselected, "
        "30 graph runs | 80 | 0 | 2026-11-21 |"
    )
    assert rest[-1] == "- 1: no ffmpeg"


def test_totals_are_in_pytests_words(tmp_path: Path):
    leave(tmp_path, "a", tests=results(9, failures=1), exit_code=1)
    leave(tmp_path, "b", tests=results(3, skips=("why",)))
    leave(tmp_path, "c", exit_code=None, skipped="no interpreter")
    environments = [matrix.read(name, tmp_path) for name in "abc"]
    assert matrix.totals(environments) == "10 passed, 1 failed, 1 skipped, 8 deselected"


def test_skipped_environments_are_listed_with_the_reason_and_are_no_problem(tmp_path: Path):
    leave(tmp_path, "py312", exit_code=None, skipped="torch has no CPU wheel")
    leave(tmp_path, "py313", exit_code=None, skipped="torch has no CPU wheel")
    environments = [matrix.read(name, tmp_path) for name in ("py312", "py313")]
    assert "- `py312`, `py313`: torch has no CPU wheel\n" in matrix.table(environments)
    assert matrix.problems(environments) == []


@pytest.mark.parametrize(
    ("left", "problem"),
    [
        (None, "py311: no result, it took no part"),
        ({"exit_code": None}, "py311: failed, it could not be made"),
        ({"exit_code": 0}, "py311: failed, its tests left no results"),
        (
            {"exit_code": 1, "running": "test_a.py::test_b"},
            "py311: failed, exit status 1 (it ended in test_a.py::test_b)",
        ),
        (
            {"exit_code": 1, "tests": results(failures=1, errors=1)},
            "py311: failed, exit status 1\n  tests.test_a::test_failure[1]\n  tests.test_a::test_error[1]",
        ),
        ({"exit_code": 0, "tests": SOURCE_TREE}, "py311: failed, its tests imported the source tree and not the wheel"),
        ({"exit_code": 0, "tests": results()}, None),
    ],
    ids=["nothing", "no environment", "no tests", "crashed", "failed", "source tree", "well"],
)
def test_what_counts_as_a_problem(tmp_path: Path, left, problem: str | None):
    if left is not None:
        leave(tmp_path, "py311", **left)
    assert matrix.problems([matrix.read("py311", tmp_path)]) == ([problem] if problem else [])


def test_linting_needs_no_test_results(tmp_path: Path):
    leave(tmp_path, "lint", exit_code=1)
    assert matrix.problems([matrix.read("lint", tmp_path)]) == ["lint: failed, exit status 1"]
    leave(tmp_path, "lint")
    assert matrix.problems([matrix.read("lint", tmp_path)]) == []


@pytest.mark.parametrize(("tox_status", "status"), [(0, 0), (3, 3)])
def test_the_exit_status_is_that_of_tox(tmp_path: Path, monkeypatch, capsys, tox_status: int, status: int):
    leave(tmp_path, "py311", tests=results())
    page = tmp_path / "page.md"
    page.write_text(f"before\n{matrix.BEGIN}old\n{matrix.END}after\n")
    monkeypatch.setattr(matrix, "RESULTS", tmp_path)
    monkeypatch.setattr(matrix, "PAGE", page)
    monkeypatch.setattr(matrix, "declared", lambda: ["py311"])

    assert matrix.main(tox_status) == status

    assert capsys.readouterr().out.splitlines()[-1] == "9 passed, 0 failed, 0 skipped, 4 deselected"
    assert page.read_text().startswith(f"before\n{matrix.BEGIN}\n| environment |")
    assert page.read_text().endswith(f"|\n\n{matrix.END}after\n")


def test_a_problem_is_an_exit_status_and_an_incomplete_run_leaves_the_page_alone(tmp_path: Path, monkeypatch, capsys):
    leave(tmp_path, "py311", tests=results())
    page = tmp_path / "page.md"
    page.write_text("as it was")
    monkeypatch.setattr(matrix, "RESULTS", tmp_path)
    monkeypatch.setattr(matrix, "PAGE", page)
    monkeypatch.setattr(matrix, "declared", lambda: ["py311", "py312"])

    assert matrix.main(0) == 1

    assert "py312: no result, it took no part\n9 passed, " in capsys.readouterr().out
    assert page.read_text() == "as it was"


@pytest.mark.parametrize(
    ("ends", "why"),
    [
        ("os._exit(1)", []),
        ("os.abort()", ["Fatal Python error: Aborted", "Current thread "]),
        ("threading.Event().wait()", ["Timeout (0:00:01)!", "Thread "]),
    ],
    ids=["silently", "with a signal", "since it hangs"],
)
def test_a_process_that_ends_in_a_test_leaves_its_name_and_where(tmp_path: Path, ends: str, why: list[str]):
    tests = f"import os, threading\n\ndef test_well(): pass\n\ndef inner(): {ends}\n\ndef test_ends(): inner()\n"
    (tmp_path / "test_a.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "compat_tests.conftest", "--rootdir", str(tmp_path)]
    command += ["-c", os.devnull, "-o", "faulthandler_timeout=1", "--junitxml", str(tmp_path / "py311.xml")]
    done = subprocess.run([*command, str(tmp_path)], cwd=matrix.ROOT, capture_output=True, text=True)
    assert done.returncode != 0, done.stdout + done.stderr
    leave(tmp_path, "py311", exit_code=1)

    (problem,) = matrix.problems([matrix.read("py311", tmp_path)])

    first, *rest = problem.splitlines()
    assert first == "py311: failed, exit status 1 (it ended in test_a.py::test_ends)"
    assert len(rest) < 20
    for line, begin in zip(rest, why, strict=False):
        assert line.startswith(f"  {begin}")
    frames = [line for line in rest if str(tmp_path / "test_a.py") in line]
    assert [line.rpartition(" in ")[2] for line in frames] == (["inner", "test_ends"] if why else [])
    assert not any("_pytest" in line for line in rest)


def test_environments_that_are_asked_for_by_name_need_not_take_part():
    declared = matrix.declared()
    assert {"lint", "py311-whisper20250625"} <= set(declared)
    assert "gpu-targets" not in declared
