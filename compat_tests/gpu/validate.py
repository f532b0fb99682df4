"""Validates this package on a machine with a GPU: one step after the other, each in a process of its own, in a budget.

It uses nothing but the standard library and this package's commands, so that a step that dies ends nothing but itself.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import report  # noqa: E402  beside this file, wherever it is started from

WEIGHTS = HERE.parent.parent / "weights"
NANO = WEIGHTS / "nano.pt"
SIZES = "nano,tiny,base,small,turbo,large-v3"
BENCH_SIZES = "tiny,small,turbo,large-v3"
RECORDINGS = "nano:161.5,tiny:161.5,turbo:3600"
BENCH_OPTIONS = "--rounds 3 --peers faster-whisper"
COMMAND = [sys.executable, "-m", "whisper_max_plugin.cli"]
STEPS = [sys.executable, str(HERE / "steps.py")]


@dataclass
class Step:
    """One step, and how it ended.

    Attributes
    ----------
    name : str
    about : str
        "facts", "correctness" or "speed"
    command : list[str]
    least_seconds : float
        with less of the budget left it is not begun
    result : str
        "pass", "FAIL" or "not run"
    seconds : float
    problem : str | None
    found : dict[str, Any]
        what the command wrote
    """

    name: str
    about: str
    command: list[str]
    least_seconds: float
    result: str = "not run"
    seconds: float = 0.0
    problem: str | None = None
    found: dict[str, Any] = field(default_factory=dict)


def main(arguments: list[str] | None = None) -> int:
    """Run all steps; 0 if every step about correctness passed."""
    options = _parser().parse_args(arguments)
    out = Path(options.out).resolve()
    (out / "logs").mkdir(parents=True, exist_ok=True)
    environment = _environment(options, out)
    steps = plan(options, out)
    ends = time.monotonic() + 60 * options.minutes
    with (out / "logs" / "checkpoints.log").open("w") as log:
        writing = [*STEPS, "checkpoints", str(out), ",".join(_to_write(options))]
        writer = subprocess.Popen(writing, env=environment, stdout=log, stderr=log)
    waiting = list(steps)
    try:
        while waiting:
            step = waiting.pop(0)
            run(step, out, environment, ends)
            sys.stdout.write(f"{step.result:8} {step.seconds:7.1f} s  {step.name}{_because(step)}\n")
            sys.stdout.flush()
            if re.search("faster-whisper .*failed", step.problem or ""):
                waiting.insert(0, without_peers(step))
                steps.insert(steps.index(step) + 1, waiting[0])
            write(steps, options, out)
    finally:
        writer.kill()
        writer.wait()
        if not options.keep:
            shutil.rmtree(out / "weights", ignore_errors=True)
    return 0 if all(step.result == "pass" for step in steps if step.about == "correctness") else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Validate whisper_max_plugin on this machine.")
    add = parser.add_argument
    add("out", help="folder for validation.json, validation.md and logs")
    add("--device", default="cuda", help="as whisper takes it (cuda)")
    add("--minutes", type=float, default=9.0, help="steps that no longer fit are recorded as not run (9)")
    add("--artifacts", metavar="FOLDER", help="graphs that `whisper-max warmup --target` compiled elsewhere")
    add("--sizes", default=SIZES, help=f"whose graphs are compared with torch, or none ({SIZES})")
    add("--bench-sizes", default=BENCH_SIZES, help=f"whose parts are timed, or none ({BENCH_SIZES})")
    add("--recordings", default=RECORDINGS, help=f"sizes and seconds of whole transcriptions, or none ({RECORDINGS})")
    add("--bench-options", default=BENCH_OPTIONS, help=f"more options of `whisper-max bench` ({BENCH_OPTIONS})")
    add("--keep", action="store_true", help="keep the random checkpoints")
    return parser


def _list(text: str) -> list[str]:
    return [] if text == "none" else text.split(",")


def _to_write(options: argparse.Namespace) -> list[str]:
    """Return the sizes of which random checkpoints are needed, the first that is needed first."""
    sizes = [*_list(options.sizes), *_list(options.bench_sizes)]
    return list(dict.fromkeys(size for size in sizes if size != "nano"))


def _environment(options: argparse.Namespace, out: Path) -> dict[str, str]:
    """Return the environment of all steps: compiled graphs that were brought along lie where they are looked for."""
    environment = dict(os.environ)
    if options.artifacts is not None:
        cache = out / "cache"
        environment["MODULAR_MAX_CACHE_DIR"] = str(cache)
        (cache / "whisper_max_plugin").mkdir(parents=True, exist_ok=True)
        for path in Path(options.artifacts).rglob("*x*-mel*"):  # artifacts and their manifests
            if path.suffix in (".mef", ".json"):
                shutil.copy2(path, cache / "whisper_max_plugin")
    # MAX may lie in a folder without the metadata that its installation would have left
    named = "from importlib import metadata; metadata.version('max')"
    if subprocess.run([sys.executable, "-c", named], stderr=subprocess.DEVNULL, check=False).returncode != 0:
        asked = [sys.executable, "-c", "import max.engine; print(max.engine.__version__)"]
        version = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
        folder = out / "metadata" / f"max-{version}.dist-info"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: max\nVersion: {version}\n")
        environment["PYTHONPATH"] = os.pathsep.join([environment.get("PYTHONPATH", ""), str(folder.parent)])
    return environment


def plan(options: argparse.Namespace, out: Path) -> list[Step]:
    """Return the steps, those first that tell the most."""
    device = ["--device", options.device]
    sizes = list(dict.fromkeys([*_list(options.sizes), "nano"]))
    steps = [
        Step("facts", "facts", [*STEPS, "facts", options.device, str(NANO), ",".join(sizes)], 1),
        Step("copy", "correctness", [*STEPS, "copy", options.device], 1),
    ]
    # the CPU computes in float32, whatever it is asked for
    precisions = ["float32"] if options.device == "cpu" else ["float16", "float32"]
    for size in _list(options.sizes):
        command = [*COMMAND, "doctor", "--parity", str(checkpoint(size, out)), *device, "--json", "--precision"]
        steps += [Step(f"parity {size} {name}", "correctness", [*command, name], 10) for name in precisions]
    transcripts = [*STEPS, "transcripts", options.device, str(NANO), str(WEIGHTS / "sample.flac")]
    steps += [Step(f"transcripts {name}", "correctness", [*transcripts, name], 10) for name in precisions]
    if options.device != "cpu":  # which records nothing
        for size in dict.fromkeys(["nano", *_list(options.bench_sizes)]):
            command = [*STEPS, "replay", options.device, str(checkpoint(size, out)), "float16"]
            steps.append(Step(f"replay {size}", "correctness", command, 10))
    bench = [*COMMAND, "bench", *device, *shlex.split(options.bench_options)]
    for size in _list(options.bench_sizes):
        results = str(out / f"bench-{size}.json")
        steps.append(Step(f"bench {size}", "speed", [*bench, str(checkpoint(size, out)), "--json", results], 20))
    for recording in _list(options.recordings):
        size, seconds = recording.split(":")
        model = [str(NANO)] if size == "nano" else ["--random", size]
        results = str(out / f"transcribe-{size}-{seconds}.json")
        audio = [sys.executable, str(HERE / "steps.py"), "recording", str(WEIGHTS / "sample_long.flac"), seconds]
        command = [*audio, str(out / f"{seconds}.wav"), *bench, *model, "--stages", "none", "--json", results]
        steps.append(Step(f"transcribe {size} {seconds} s", "speed", command, 30))
    return steps


def without_peers(step: Step) -> Step:
    """Return the step again, for when a peer does not run on this machine."""
    return Step(f"{step.name} without peers", step.about, [*step.command, "--peers", "none"], step.least_seconds)


def checkpoint(size: str, out: Path) -> Path:
    """Return where the weights of `size` lie, or will when they are needed."""
    return NANO if size == "nano" else out / "weights" / f"{size}.pt"


def run(step: Step, out: Path, environment: dict[str, str], ends: float) -> None:
    """Run a step, if it still fits, and note how it ended."""
    started = time.monotonic()
    for file in _awaited(step, out):
        while not file.exists() and time.monotonic() < ends - step.least_seconds:
            time.sleep(0.1)
    left = ends - time.monotonic()
    if left < step.least_seconds:
        step.problem = f"{max(left, 0):.0f} s were left, and it needs {step.least_seconds:.0f}"
        return
    log = out / "logs" / f"{step.name.replace(' ', '-')}.log"
    with log.open("w") as errors:
        errors.write(f"$ {shlex.join(step.command)}\n")
        errors.flush()
        process = subprocess.Popen(
            step.command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # so that what it started ends with it
        )
        try:
            output, _ = process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            _end(process)
            output, _ = process.communicate()
            step.problem = f"it was ended after {left:.0f} s, when the time was over"
        finally:
            _end(process)
        errors.write(output)
    step.seconds = time.monotonic() - started
    _judge(step, process.returncode, output, log)


def _awaited(step: Step, out: Path) -> list[Path]:
    """Return the checkpoints that another process writes for the step."""
    return [Path(word) for word in step.command if word.startswith(str(out / "weights")) and word.endswith(".pt")]


def _end(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _judge(step: Step, code: int, output: str, log: Path) -> None:
    """Read what the step found; what it printed last is its problem, if it found none itself."""
    if "--json" in step.command and "--parity" not in step.command:
        results = Path(step.command[step.command.index("--json") + 1])
        text = results.read_text() if code == 0 else "{}"
    else:
        text = output[output.find("{") :] if "{" in output else "{}"
    try:
        step.found = json.loads(text)
    except ValueError:
        step.found = {}
    parity = step.found.get("parity")
    passed = parity["ok"] if parity else code == 0
    if step.problem is None and not passed:
        step.problem = report.problem_of(step.found) or _ending(code, log)
    step.result = "FAIL" if step.problem else "pass"


def _ending(code: int, log: Path) -> str:
    if code < 0:
        return f"it was ended by {signal.Signals(-code).name}, see {log.name}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if len(lines) > 1 else f"it ended with exit status {code}"


def _because(step: Step) -> str:
    return f": {step.problem}" if step.problem else ""


def write(steps: list[Step], options: argparse.Namespace, out: Path) -> None:
    """Write both files; after each step, so that whatever ends this process leaves what was found so far."""
    told = {"device": options.device, "minutes": options.minutes, "steps": [asdict(step) for step in steps]}
    (out / "validation.json").write_text(json.dumps(told, indent=1) + "\n")
    (out / "validation.md").write_text(report.markdown(told))


if __name__ == "__main__":
    sys.exit(main())
