"""``whisper-max doctor``: its arguments, and what it prints about an installation and about models."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from whisper_max_plugin import precision as precisions
from whisper_max_plugin.console import aligned, size_of_model
from whisper_max_plugin.errors import CommandLineError, MemoryFullError

if TYPE_CHECKING:
    from whisper_max_plugin.doctor.checks import Check
    from whisper_max_plugin.doctor.comparison import Row
    from whisper_max_plugin.doctor.parity import Parity

EXIT_OK = 0
EXIT_PROBLEM = 1


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    command = commands.add_parser("doctor", help="check this environment; names the command that mends a problem")
    add = command.add_argument
    add("--json", action="store_true", help="print JSON")
    parity_help = (
        "also compare what models compute on MAX with torch: a name, downloaded if it is not there yet, a .pt file or "
        "a folder of Hugging Face; by default the smallest model that whisper has downloaded"
    )
    add("--parity", nargs="*", metavar="MODEL", help=parity_help)
    add("--audio", metavar="FILE", help="the recording to compare on, by default synthetic sound")
    add("--device", help="what MAX runs on in the comparison; by default the one load_model chooses")
    precision_help = f"what it computes in there; {precisions.DEFAULT} by default, which is torch's in any case"
    add("--precision", metavar="NAME", help=precision_help)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check the environment and, with ``--parity``, models; 1 when anything is wrong.

    Raises
    ------
    WhisperMaxError
        if there is no such model, recording, device or precision, or ``--parity`` is missing; nothing is printed then
    """
    if options.parity is not None:
        chosen = precisions.checked(options.precision or precisions.DEFAULT)
        given = {"audio": options.audio, "device": options.device, "precision": chosen}
        return _doctor_with_parity(options.parity, **given, as_json=options.json)
    for option in ("audio", "device", "precision"):
        if vars(options)[option] is not None:
            raise CommandLineError(f"--{option} goes with --parity")
    return _doctor(as_json=options.json)


def _doctor(*, as_json: bool) -> int:
    """Print what `whisper_max_plugin.doctor.checks` found; 1 when something needs mending."""
    from whisper_max_plugin.doctor.checks import run_checks

    checks = run_checks()
    report = _doctors_report(checks)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _print_checks(checks)
    return EXIT_OK if report["ok"] else EXIT_PROBLEM


def _doctor_with_parity(
    models: Sequence[str], *, audio: str | None, device: str | None, precision: str, as_json: bool
) -> int:
    """Print what `_doctor` prints, and how models on MAX compare with torch; 1 when anything is wrong.

    Parameters
    ----------
    models : Sequence[str]
        names or paths; if empty, the smallest model that whisper has downloaded
    audio : str | None
        the recording to compare on; None for synthetic sound
    device : str | None
        what MAX runs on, as `whisper.load_model` takes it
    precision : str
        what MAX computes in
    as_json : bool

    Raises
    ------
    WhisperMaxError
        if there is no such model, recording or device; nothing is printed then
    """
    from whisper_max_plugin.doctor.checks import NEEDED_TO_RUN_MODELS, run_checks

    checks = run_checks()
    report = _doctors_report(checks)
    unmet = [check.name for check in checks if check.ok is False and check.name in NEEDED_TO_RUN_MODELS]
    if unmet:
        problem = f"no model was compared with torch: mend {', '.join(unmet)} first"
        report["parity"] = {"ok": False, "problem": problem, "machine": None, "audio": audio, "models": []}
        if not as_json:
            _print_checks(checks)
            print(f"FAIL: {problem}")
    else:
        from whisper_max_plugin import loading
        from whisper_max_plugin.doctor import parity

        loading.device_for(device, precision)  # which is refused before anything is printed
        names, samples = parity.choose_models(models), parity.load_audio(audio)
        if not as_json:
            _print_checks(checks)
        machine = parity.machine()
        results = []
        for name in names:
            try:
                results.append(parity.check_model(name, samples, device, precision))
            except MemoryFullError as error:
                results.append(parity.Parity(name, False, str(error)))
            if not as_json:
                _print_parity(results[-1], machine, audio)
        ok = all(result.ok for result in results)
        listed = [dataclasses.asdict(result) for result in results]
        report["parity"] = {"ok": ok, "problem": None, "machine": machine, "audio": audio, "models": listed}
    report["ok"] = report["ok"] and report["parity"]["ok"]
    if as_json:
        print(json.dumps(report, indent=2))
    return EXIT_OK if report["ok"] else EXIT_PROBLEM


def _doctors_report(checks: Sequence[Check]) -> dict[str, Any]:
    ok = not any(check.ok is False for check in checks)
    return {"ok": ok, "checks": [dataclasses.asdict(check) for check in checks]}


def _print_checks(checks: Sequence[Check]) -> None:
    marks = {True: "ok", None: "--", False: "!!"}
    lines = aligned([[marks[check.ok], check.name, check.value] for check in checks])
    for check, line in zip(checks, lines, strict=True):
        print(line)
        if check.remedy is not None:
            print(f"      {'mend' if check.ok is False else 'to change'}: {check.remedy}")
    problems = sum(check.ok is False for check in checks)
    print()
    print({0: "Everything is in order.", 1: "1 problem."}.get(problems, f"{problems} problems."), flush=True)


def _print_parity(result: Parity, machine: dict[str, str | None], audio: str | None) -> None:
    """Print the table of one model, what is wrong or notable, and the verdict in one line."""
    print()
    if result.rows:
        print(f"{result.model} ({size_of_model(result.dims)}) against torch, input: {audio or 'synthetic sound'}")
        _print_rows(result.rows)
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    if result.problem is not None:
        named = result.problem.startswith(result.model)
        print(f"FAIL: {'' if named else f'{result.model}: '}{result.problem} ({facts})", flush=True)
        return
    failed = [row.name for row in result.rows if not row.ok]
    verdict = f"FAIL: {result.model}: {', '.join(failed)}" if failed else f"pass: {result.model}"
    graph_runs, fallbacks = sum(result.graph_runs.values()), sum(result.fallbacks.values())
    ran = f"{result.precision} on {result.device}, {graph_runs} graph runs, {fallbacks} fallbacks"
    print(f"{verdict} ({ran}, {facts})", flush=True)


def _print_rows(rows: Sequence[Row]) -> None:
    table = [["", "CHECK", "COMPARED", "MAX REL. ERROR", "LIMIT", "TOKENS"]]
    for row in rows:
        error = "-" if row.error is None else f"{row.error:.1e}"
        tokens = "-" if row.tokens is None else f"{row.equal_tokens}/{row.tokens} equal"
        table.append(["ok" if row.ok else "!!", row.name, row.compared, error, f"{row.limit:.0e}", tokens])
    header, *lines = aligned(table)
    print(header)
    for row, line in zip(rows, lines, strict=True):
        print(line)
        if row.note is not None:
            print(textwrap.indent(row.note, 6 * " "))
