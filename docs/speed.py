"""Times the model's parts on upstream and on graphs, in one run: `python docs/speed.py tiny`.

Random weights of the named size, so that nothing is downloaded; both sides compute the same, in float32, in turns.
A step includes upstream's logit filters and its search. Medians, with the ratio upstream / graphs.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import whisper
from whisper.model import Whisper

import whisper_max_plugin
from whisper_max_plugin.sizes import OFFICIAL_DIMS

ROUNDS = 7
PROMPT_LENGTH = 200
STEPS = 50


def random_checkpoint(path: Path, size: str) -> None:
    """Write a checkpoint of seeded random weights."""
    torch.manual_seed(0)
    model = Whisper(OFFICIAL_DIMS[size])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    torch.save({"dims": vars(model.dims), "model_state_dict": state}, path)


def decode_seconds(model: Whisper, audio_features: torch.Tensor, n_steps: int, **options: object) -> float:
    """Time one decode of `n_steps` tokens, which random weights do not end before."""
    eot = whisper.tokenizer.get_tokenizer(model.is_multilingual).eot
    task = whisper.DecodingOptions(
        language="en", fp16=False, without_timestamps=True, suppress_tokens=[eot], sample_len=n_steps, **options
    )
    started = time.perf_counter()
    model.decode(audio_features, task)
    return time.perf_counter() - started


def step_milliseconds(model: Whisper, audio_features: torch.Tensor, **options: object) -> float:
    """Time of one more step: what a long decode takes beyond the first pass."""
    longer = decode_seconds(model, audio_features, STEPS + 1, **options)
    return 1e3 * (longer - decode_seconds(model, audio_features, 1, **options)) / STEPS


def milliseconds(call: Callable[[], object]) -> float:
    """Time one call."""
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


@torch.no_grad()
def main() -> None:
    """Print the table for the size named on the command line."""
    size = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    whisper_max_plugin.install()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pt"
        random_checkpoint(path, size)
        models = [whisper.load_model(str(path), backend=backend).eval() for backend in ("torch", "max")]
    dims = models[0].dims
    mels = [torch.randn(1, dims.n_mels, 2 * dims.n_audio_ctx) for _ in range(ROUNDS + 1)]  # no window comes twice
    features = [models[0].encoder(mel)[0] for mel in mels]
    prompt = torch.randint(0, 50000, (1, PROMPT_LENGTH)).flatten().tolist()

    rows: dict[str, Callable[[Whisper, int], float]] = {
        "encoder, 30 s": lambda model, i: milliseconds(lambda: model.encoder(mels[i])),
        f"first pass, {PROMPT_LENGTH} tokens": lambda model, i: (
            1e3 * decode_seconds(model, features[i], 1, prompt=prompt)
        ),
        "greedy step": lambda model, i: step_milliseconds(model, features[i]),
        "beam-5 step": lambda model, i: step_milliseconds(model, features[i], beam_size=5),
    }
    print(f"{size}, {torch.get_num_threads()} threads, median of {ROUNDS}")
    print(f"{'':26}{'upstream':>12}{'graphs':>12}{'ratio':>8}")
    for name, measure in rows.items():
        times = [[measure(model, i) for model in models] for i in range(ROUNDS + 1)][1:]
        upstream, graphs = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{name:26}{upstream:9.1f} ms{graphs:9.1f} ms{upstream / graphs:7.1f}x", flush=True)


if __name__ == "__main__":
    main()
