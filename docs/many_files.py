"""Prints the table of many-files.md: eight recordings one by one, together, and by upstream. On an idle machine.

python docs/many_files.py [SIZE]

The weights are random, of the real dimensions of SIZE (tiny), so that nothing is downloaded. With them a text would end
anywhere, so every window is decoded for exactly N_TOKENS tokens, about as many as 30 s of speech have.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import whisper

import whisper_max_plugin
from whisper_max_plugin.bench.weights import random_checkpoint
from whisper_max_plugin.checkpoints.sizes import OFFICIAL_DIMS

ROUNDS = 3
N_TOKENS = 100
EOT = 50257  # of the multilingual vocabulary
SEARCHES = {"greedy": {}, "beam 5": {"beam_size": 5}}
AT_A_TIME = (1, 4, 8)


def main(size: str = "tiny") -> None:
    """Measure in turns, and print medians."""
    samples = whisper.load_audio(str(Path(__file__).parent.parent / "weights" / "sample_long.flac"))
    recordings = [samples[begin * 16000 : (begin + 60) * 16000] for begin in range(0, 120, 15)]
    with tempfile.TemporaryDirectory() as folder:
        path = random_checkpoint(Path(folder) / f"{size}.pt", OFFICIAL_DIMS[size])
        model, upstreams = (whisper.load_model(str(path), backend=backend) for backend in ("max", "torch"))
    options = {
        **{"language": "en", "fp16": False, "temperature": 0.0, "condition_on_previous_text": False},
        **{"sample_len": N_TOKENS, "suppress_tokens": f"-1,{EOT}"},
    }
    print(f"{size}, {len(recordings)} recordings of 60 s, {N_TOKENS} tokens a window, median of {ROUNDS} rounds")
    print("search  at a time   seconds  ratio  x real time  runs of the step  upstream, one at a time")
    for search, further in SEARCHES.items():
        seconds: dict[int, list[float]] = {n: [] for n in AT_A_TIME}
        steps: dict[int, int] = {}
        for _ in range(1 + ROUNDS):
            for n in AT_A_TIME:
                before, begin = _steps(), time.perf_counter()
                if n == 1:
                    for recording in recordings:
                        whisper.transcribe(model, recording, **options, **further)
                else:
                    done = whisper_max_plugin.transcribe_many(model, recordings, batch_size=n, **options, **further)
                    assert all(each.error is None for each in done)
                seconds[n].append(time.perf_counter() - begin)
                steps[n] = _steps() - before
        begin = time.perf_counter()
        for recording in recordings:  # once: it takes as long as all the rest
            whisper.transcribe(upstreams, recording, **options, **further)
        of_upstream = time.perf_counter() - begin
        for n in AT_A_TIME:
            median = statistics.median(seconds[n][1:])  # the first round warms up
            ratio = statistics.median(seconds[1][1:]) / median
            speed = 60 * len(recordings) / median
            gain = f"{of_upstream:.2f} s, {of_upstream / median:.2f}x"
            print(f"{search:7} {n:9}  {median:8.2f}  {ratio:4.2f}x  {speed:10.1f}x  {steps[n]:16}  {gain:>23}")


def _steps() -> int:
    return whisper_max_plugin.status()["graph_runs"].get("step", 0)  # type: ignore[attr-defined, no-any-return]


if __name__ == "__main__":
    whisper_max_plugin.install()
    main(*sys.argv[1:])
