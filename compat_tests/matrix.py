"""The table of the last run of tox: python compat_tests/matrix.py [exit status of tox].

Reads what each environment left in .tox/results (toxfile.py tells how it ended, pytest what its tests did), prints a
table and the totals, and writes the table into docs/compatibility.md when every declared environment took part.
The exit status is that of tox, or 1 if anything failed or an environment left nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".tox" / "results"
PAGE = ROOT / "docs" / "compatibility.md"
BEGIN = "<!-- written by compat_tests/matrix.py -->\n"
END = "<!-- end -->\n"
OUTCOMES = ("passed", "failed", "skipped", "deselected")
HEADINGS = (
    *("environment", "Python", "openai-whisper", "torch", "max", *OUTCOMES),
    *("upstream's own tests", "graph runs", "fallbacks", "date"),
)


@dataclass(frozen=True)
class Environment:
    """How one environment of tox ended, and what its tests did."""

    name: str
    ended: str  # "ok", "failed", "skipped" or "no result"
    reason: str = ""  # of a skip or a failure
    counts: Counter[str] = field(default_factory=Counter)  # by OUTCOMES
    facts: dict[str, str] = field(default_factory=dict)  # what conftest.py recorded
    skips: Counter[str] = field(default_factory=Counter)  # of tests, by reason
    date: str = ""

    def row(self) -> list[str]:
        """Return the cells of its line in the table."""
        facts = self.facts
        versions = [facts[name] for name in ("python", "openai-whisper", "torch", "max")]
        upstream = "-"
        if "upstream_total" in facts:
            upstream = f"{facts['upstream_passed']} of {facts['upstream_total']} passed, "
            upstream += f"{facts['upstream_deselected']} deselected, {facts['upstream_graph_runs']} graph runs"
        counts = [str(self.counts[outcome]) for outcome in OUTCOMES]
        return [self.name, *versions, *counts, upstream, facts["graph_runs"], facts["fallbacks"], self.date]


def read(name: str, results: Path) -> Environment:
    """Return what the environment `name` left in the folder `results`."""
    record_file, tests_file = results / f"{name}.json", results / f"{name}.xml"
    if not record_file.exists():
        return Environment(name, "no result", "it took no part")
    record = json.loads(record_file.read_text())
    if record["skipped"]:
        return Environment(name, "skipped", record["skipped"])
    if record["exit_code"] is None:
        return Environment(name, "failed", "it could not be made")
    ended, reason = ("ok", "") if record["exit_code"] == 0 else ("failed", f"exit status {record['exit_code']}")
    if not tests_file.exists():
        if name == "lint":
            return Environment(name, ended, reason)
        running = results / f"{name}.running"
        during = where_it_ended(running.read_text()) if running.exists() else ""
        return Environment(name, "failed", (reason or "its tests left no results") + during)
    (suite,) = ElementTree.parse(tests_file).iter("testsuite")
    facts = {fact.attrib["name"]: fact.attrib["value"] for fact in suite.iter("property")}
    if ROOT / "whisper_max_plugin" in Path(facts.get("package", "")).parents:
        ended, reason = "failed", "its tests imported the source tree and not the wheel"
    skips = Counter(skip.attrib["message"] for skip in suite.iter("skipped"))
    tests, errors, failures = (int(suite.attrib[count]) for count in ("tests", "errors", "failures"))
    failed = errors + failures
    reason += "".join(f"\n  {test.attrib['classname']}::{test.attrib['name']}" for test in failing(suite))
    counts = Counter(passed=tests - failed - skips.total(), failed=failed, skipped=skips.total())
    counts["deselected"] = int(facts.get("deselected", 0))
    return Environment(name, ended, reason, counts, facts, skips, suite.attrib["timestamp"][:10])


def where_it_ended(running: str) -> str:
    """Return what is left of a test in which a process ended: its name and each thread's calls, without pytest's."""
    test, *stacks = running.splitlines()
    lines, is_the_tests = [f" (it ended in {test})"], True
    for line in stacks:
        is_the_tests = "/_pytest/" not in line and (is_the_tests or not line.startswith("  "))
        if is_the_tests and line and not line.startswith("Extension modules:"):
            lines.append(f"  {line}")
    return "\n".join(lines)


def failing(suite: ElementTree.Element) -> list[ElementTree.Element]:
    """Return the tests of a run that failed, or could not begin or end."""
    return [test for test in suite.iter("testcase") if any(outcome.tag in ("failure", "error") for outcome in test)]


def table(environments: list[Environment]) -> str:
    """Return the table in Markdown, with the reasons of what was left out below it."""
    rows = [environment.row() for environment in environments if environment.facts]
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEADINGS, ["---"] * len(HEADINGS), *rows)]
    skipped: dict[str, list[str]] = {}
    for environment in environments:
        if environment.ended == "skipped":
            skipped.setdefault(environment.reason, []).append(f"`{environment.name}`")
    if skipped:
        lines += ["", "Environments that were skipped:", ""]
        lines += [f"- {', '.join(names)}: {reason}" for reason, names in skipped.items()]
    skips = sum((environment.skips for environment in environments), Counter())
    if skips:
        lines += ["", "Tests that were skipped:", "", *(f"- {number}: {reason}" for reason, number in skips.items())]
    return "\n".join(lines) + "\n"


def totals(environments: list[Environment]) -> str:
    """Return the sums of all environments in the words of pytest."""
    counts = sum((environment.counts for environment in environments), Counter())
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)


def problems(environments: list[Environment]) -> list[str]:
    """Return a line for each environment that is neither well nor skipped, and one for each test that failed there."""
    wrong = [environment for environment in environments if environment.ended not in ("ok", "skipped")]
    return [f"{environment.name}: {environment.ended}, {environment.reason}" for environment in wrong]


def write(page: Path, text: str) -> None:
    """Put `text` between the marks of `page`."""
    before, _, rest = page.read_text(encoding="utf8").partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf8")


def declared() -> list[str]:
    """Return the environments that a plain `tox` runs; gpu-targets is one that is asked for by its name."""
    command = [sys.executable, "-m", "tox", "--conf", str(ROOT / "tox.ini"), "list", "-d", "--no-desc", "-q"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def main(tox_status: int) -> int:
    """Print the table, the problems and, last, the totals; return the exit status."""
    environments = [read(name, RESULTS) for name in declared()]
    text = table(environments)
    wrong = problems(environments)
    if all(environment.ended != "no result" for environment in environments):
        write(PAGE, text)
    sys.stdout.write("\n".join([text, *wrong, totals(environments), ""]))
    return tox_status or int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
