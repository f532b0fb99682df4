"""The steps of validate.py that are no command of this package, each of which prints what it found as JSON.

steps.py facts DEVICE NANO SIZES | copy DEVICE | transcripts DEVICE CHECKPOINT RECORDING PRECISION |
replay DEVICE CHECKPOINT PRECISION | checkpoints OUT SIZES | recording SOURCE SECONDS FILE COMMAND…
"""

from __future__ import annotations

import json
import os
import sys
import time
import wave
from collections import Counter
from pathlib import Path
from typing import Any

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam 5": {"beam_size": 5},
    "prompt": {"initial_prompt": "The old man.", "beam_size": 3},
    "word timestamps": {"word_timestamps": True},
    "sampling": {"temperature": 1e-3, "best_of": 3},  # hotter, the random numbers decide, which are not torch's there
}
SCORE_ERROR = {"float32": 1e-3, "float16": 2e-2}
N_REPLAYS = 64
WORD_TIME_ERROR = 0.02 + 1e-6  # seconds: a frame of the encoder's output


def facts(device: str, nano: str, sizes: str) -> dict[str, Any]:
    """What this machine is, who sees its GPU, and of which sizes graphs for it were brought along."""
    import torch

    from whisper_max_plugin import environment
    from whisper_max_plugin.checkpoints import openai
    from whisper_max_plugin.checkpoints.sizes import OFFICIAL_DIMS
    from whisper_max_plugin.doctor import parity
    from whisper_max_plugin.execution import artifacts, devices
    from whisper_max_plugin.execution.weights import types_for

    found: dict[str, Any] = {**parity.machine(), "processors": os.cpu_count(), "cublas": environment.find_cublas()}
    found["torch_cuda"] = torch.version.cuda if torch.cuda.is_available() else None
    opened = devices.find(device)
    found["device"] = opened.name
    found["driver"] = environment.nvidia_driver_version()
    stats = opened.driver.stats
    found["memory"], found["free_memory"] = stats["total_memory"], stats["free_memory"]
    if opened.index is not None:
        found["gpu"], found["architecture"] = opened.driver.model_name, opened.driver.architecture_name
        found["compatible"] = opened.driver.is_compatible
    compiled = []
    for size in sizes.split(","):
        dims = openai.read(nano).dims if size == "nano" else OFFICIAL_DIMS[size]
        for precision in ("float16", "float32") if opened.computes_in_half else ("float32",):
            if artifacts.is_cached(dims, str(types_for({}, precision, opened)), opened.kind):
                compiled.append(f"{size} in {precision}")
    found["compiled_for"], found["compiled"] = opened.kind, ", ".join(compiled) or "nothing"
    return found


def copy(device: str) -> dict[str, Any]:
    """Bring memory to the device and back, bit by bit the same."""
    import torch

    from whisper_max_plugin.execution import devices

    opened = devices.find(device)
    bits = torch.randint(2**31, (2**22,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    buffer = opened.put(bits.clone())
    back = opened.get(buffer)
    seconds = time.perf_counter() - started
    assert torch.equal(back, bits), "what came back from the device is not what was put there"
    opened.write(buffer, bits.flip(0))
    assert torch.equal(opened.get(buffer), bits.flip(0)), "what was written to a buffer of the device is not there"
    return {"bytes": 2 * bits.nbytes, "copy_seconds": seconds}


def transcripts(device: str, checkpoint: str, recording: str, precision: str) -> dict[str, Any]:
    """Compare transcripts with upstream's, by torch on the CPU in float32, token by token."""
    import torch
    import whisper

    import whisper_max_plugin

    whisper_max_plugin.install()
    upstream = whisper.load_model(checkpoint, device="cpu", backend="torch")
    ours = whisper.load_model(checkpoint, device=device, backend="max")
    rows = []
    for name, options in OPTIONS.items():
        results, seconds = [], []
        for model in (upstream, ours):
            torch.manual_seed(0)
            started = time.perf_counter()
            half = precision == "float16" and model is ours
            results.append(model.transcribe(recording, language="en", fp16=half, **options))
            seconds.append(time.perf_counter() - started)
        rows.append({"options": name, **_compared(*results, SCORE_ERROR[precision]), "seconds": seconds[1]})
    status = whisper_max_plugin.status()
    problems = [f"{row['options']}: {row['problem']}" for row in rows if row["problem"]]
    if status["fallbacks"]:
        problems.append(f"fell back to torch: {'; '.join(status['fallbacks'])}")
    return {
        "problem": "; ".join(problems) or None,
        "transcripts": rows,
        "graph_runs": status["graph_runs"],
        "steps_replayed": status["steps_replayed"],
    }


def _compared(upstream: dict[str, Any], ours: dict[str, Any], score_error: float) -> dict[str, Any]:
    expected = [token for segment in upstream["segments"] for token in segment["tokens"]]
    tokens = [token for segment in ours["segments"] for token in segment["tokens"]]
    equal = sum(one == other for one, other in zip(tokens, expected, strict=False))
    found = {"tokens": len(expected), "equal_tokens": equal, "score_error": None, "word_time_error": None}
    if tokens != expected:
        return {**found, "problem": f"{equal} of {len(expected)} tokens are upstream's, of {len(tokens)}"}
    pairs = list(zip(ours["segments"], upstream["segments"], strict=True))
    scores = [abs(mine[key] - theirs[key]) for mine, theirs in pairs for key in ("avg_logprob", "no_speech_prob")]
    times = [
        abs(mine[key] - theirs[key])
        for segment, wanted in pairs
        for mine, theirs in zip(segment.get("words", []), wanted.get("words", []), strict=True)
        for key in ("start", "end")
    ]
    found["score_error"], found["word_time_error"] = max(scores), max(times, default=None)
    problem = None
    if max(scores) > score_error or max(times, default=0.0) > WORD_TIME_ERROR:
        problem = f"scores are off by {max(scores):.1e}, times of words by {max(times, default=0.0):.2f} s"
    return {**found, "problem": problem}


def replay(device: str, checkpoint: str, precision: str) -> dict[str, Any]:
    """Look into the recorded step: that it launches what the graph does, what that is, and how long it takes."""
    import torch
    from max import driver

    from whisper_max_plugin.bench import cost, machine
    from whisper_max_plugin.doctor import parity, parity_checks
    from whisper_max_plugin.execution import devices
    from whisper_max_plugin.inference.model import accelerate

    found_device = devices.find(device)
    model = accelerate(parity._load(checkpoint), found_device, precision)
    window = parity_checks.prepare(model, parity_checks.synthetic_audio())
    with torch.no_grad():
        features = model.encoder(window.mel)
        with parity_checks.greedy_search(model, window, features) as (inference, search):
            for _ in range(3):
                inference.step(search, features, search.n_ahead)
            replay = search.inputs.steps_of(1, model.dims.n_text_layer).replay
            if replay is None or not replay.is_recorded:
                return {"problem": f"{found_device.name} has recorded no step"}
            with found_device.at_work():
                problem = _difference(replay)
                with driver.launch_trace() as launches:
                    replay._model.execute(*replay._buffers)
                    found_device.driver.synchronize()
                by_clock, by_events = _replay_seconds(replay, found_device)
        storage = cost.Storage.of_graphs(inference.runtime.engine().types)
    n_bytes = cost.of_step(model.dims, storage, len(search.sequences[0]) + N_REPLAYS / 2, 1).n_bytes
    kernels = [each.name for each in launches if each.kind == driver.LaunchTraceEntry.OperationKind.KERNEL_LAUNCH]
    others = [each.name for each in launches if each.kind != driver.LaunchTraceEntry.OperationKind.KERNEL_LAUNCH]
    n_expected = 9 * model.dims.n_text_layer + 5
    if problem is None and (len(kernels) != n_expected or others):
        problem = f"a step is {len(kernels)} kernels, not {n_expected}, and {', '.join(others) or 'nothing'} else"
    return {
        "problem": problem,
        "kernels": dict(Counter(kernels)),
        "replay_seconds": by_events,
        "replay_seconds_by_clock": by_clock,
        "bytes": n_bytes,
        "limit_part": n_bytes / machine.measure_limits(found_device.name).read_bytes_per_second / by_events,
    }


def _difference(replay: Any) -> str | None:
    """Return what MAX says if a step launches anything else than what was recorded of it."""
    try:
        replay._model.debug_verify_replay(replay._key, *replay._buffers)
    except RuntimeError as error:
        return f"a step is not what was recorded of it: {error}"
    return None


def _replay_seconds(replay: Any, device: Any) -> tuple[float, float]:
    """Return how long one of many steps takes by the clock, and by the device's events."""
    from max import driver

    before, behind = (driver.DeviceEvent(device.driver, enable_timing=True) for _ in range(2))
    device.driver.synchronize()
    started = time.perf_counter()
    device.driver.default_queue.record_event(before)
    for _ in range(N_REPLAYS):
        replay.run()
    device.driver.default_queue.record_event(behind)
    device.driver.synchronize()
    by_clock = time.perf_counter() - started
    return by_clock / N_REPLAYS, before.elapsed_time(behind) / 1e3 / N_REPLAYS


def checkpoints(out: str, sizes: str) -> dict[str, Any]:
    """Write random checkpoints, one after the other, each complete when it appears."""
    from whisper_max_plugin.bench.weights import random_checkpoint
    from whisper_max_plugin.checkpoints.sizes import OFFICIAL_DIMS

    folder = Path(out, "weights")
    folder.mkdir(exist_ok=True)
    for size in filter(None, sizes.split(",")):
        path = folder / f"{size}.pt"
        if not path.exists():
            os.replace(random_checkpoint(path.with_suffix(".part"), OFFICIAL_DIMS[size]), path)
    return {}


def recording(source: str, seconds: str, file: str, *command: str) -> None:
    """Write so many seconds of a recording, over and over if it is shorter, and become `command` with it as --audio."""
    import numpy as np

    from whisper_max_plugin.audio import load_audio

    samples = np.resize(load_audio(source), round(16_000 * float(seconds)))
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(16_000)
        written.writeframes((32767 * samples.clip(-1, 1)).astype("<i2").tobytes())
    os.execv(command[0], [*command, "--audio", file])


def main() -> int:
    """Run the step that the first argument names."""
    name, *arguments = sys.argv[1:]
    if name == "recording":
        recording(*arguments)
    steps = {"facts": facts, "copy": copy, "transcripts": transcripts, "replay": replay, "checkpoints": checkpoints}
    found = steps[name](*arguments)
    sys.stdout.write(json.dumps(found) + "\n")
    return 1 if found.get("problem") else 0


if __name__ == "__main__":
    sys.exit(main())
