"""Makes nano.pt from nothing: the corpus, then the stages of `recipe.stages`, one after another.

    apt-get install espeak-ng
    python -m recipe.train --work DIR --jfk jfk.flac            # about 90 minutes on two cores
    python -m recipe.train --work DIR --jfk jfk.flac --smoke    # all of it in two minutes; learns nothing

It needs torch, numpy, openai-whisper and espeak-ng. The seeds of the corpus, the windows and the weights are
fixed; still, another machine rounds otherwise and ends with other bytes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import whisper
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from .corpus import UTTERANCES_FILE, Corpus
from .evaluate import measure_windows
from .network import Network
from .stages import CORPUS_SIZES, SMOKE_CORPUS_SIZES, STAGES, Stage, shortened
from .synthesis import synthesise
from .windows import WindowSource, draw_batches

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 60
AVERAGE_DECAY = 0.998  # of the moving average of the weights, which is what is exported
EVALUATION_WINDOWS = 24


@dataclass(frozen=True)
class Paths:
    """Where the training reads and writes."""

    work: Path
    jfk: Path

    @property
    def checkpoint(self) -> Path:
        """The result of the latest stage, in OpenAI's format."""
        return self.work / "nano.pt"

    def state(self, stage: Stage) -> Path:
        """Return where a stage leaves its raw weights for the next one."""
        return self.work / f"stage-{stage.name}.pt"


class BatchStream(torch.utils.data.IterableDataset[dict[str, Tensor]]):
    """The batches of a stage, drawn by a worker process."""

    def __init__(self, paths: Paths, stage: Stage, rank: int) -> None:
        self.paths, self.stage, self.rank = paths, stage, rank

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Open the corpus in the worker, and draw."""
        torch.set_num_threads(1)
        source = open_source(self.paths)
        return draw_batches(source, self.stage.schedule, self.stage.seed + 1000 * self.rank)


class WeightAverage:
    """A moving average of a network's weights, which reaches its decay slowly."""

    def __init__(self, network: Network) -> None:
        self.weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: Network, step: int) -> None:
        """Move towards the weights of a step."""
        decay = min(AVERAGE_DECAY, (step + 1) / (step + 50))
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                self.weights[name].lerp_(tensor, 1 - decay)


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the corpus and the results")
    parser.add_argument("--jfk", type=Path, required=True, help="jfk.flac of openai-whisper's tests")
    parser.add_argument("--smoke", action="store_true", help="60 sentences and two steps per stage")
    names = [stage.name for stage in STAGES]
    parser.add_argument("--from-stage", choices=names, default="1", help="go on after an interruption")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that are started
    paths = Paths(arguments.work, arguments.jfk)
    if not (paths.work / UTTERANCES_FILE).exists():
        started = time.time()
        corpus = synthesise(SMOKE_CORPUS_SIZES if arguments.smoke else CORPUS_SIZES)
        corpus.save(paths.work)
        seconds = sum(utterance.seconds for utterance in corpus.utterances)
        logger.info("corpus: %.2f h of speech in %.0f s", seconds / 3600, time.time() - started)
    stages = shortened(STAGES) if arguments.smoke else STAGES
    first = names.index(arguments.from_stage)
    for i in range(first, len(stages)):
        run_stage(paths, stages[i], paths.state(stages[i - 1]) if i else None)
        report(paths, stages[i], n_windows=1 if arguments.smoke else EVALUATION_WINDOWS)


def run_stage(paths: Paths, stage: Stage, initial: Path | None) -> None:
    """Run a stage in as many processes as it wants."""
    rendezvous = paths.work / "rendezvous"
    rendezvous.unlink(missing_ok=True)
    spawn(  # type: ignore[no-untyped-call]
        run_process, (paths, stage, initial, rendezvous.resolve().as_uri()), nprocs=stage.processes
    )


def run_process(rank: int, paths: Paths, stage: Stage, initial: Path | None, rendezvous: str) -> None:
    """Run a stage's part of one process; the first one writes the results."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    torch.manual_seed(stage.seed)
    if stage.processes > 1:
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=stage.processes)
    network = Network(open_source(paths))
    if initial:
        network.load_state_dict(torch.load(initial, weights_only=True))
    average = optimise(network, paths, stage, rank)
    if rank == 0:
        torch.save(network.state_dict(), paths.state(stage))
        network.load_state_dict(average.weights)
        network.export(paths.checkpoint)
    if stage.processes > 1:
        dist.destroy_process_group()


def optimise(network: Network, paths: Paths, stage: Stage, rank: int) -> WeightAverage:
    """Take the stage's steps, and return the average of the weights."""
    batches = torch.utils.data.DataLoader(
        BatchStream(paths, stage, rank), batch_size=None, num_workers=1, prefetch_factor=6
    )
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": 0.02},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, stage.learning_rate, betas=(0.9, 0.98), fused=True)
    average = WeightAverage(network)
    reported = time.time()
    for step, batch in zip(range(stage.steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = stage.rate(step)
        loss, parts = network(batch, stage.loss_weights(step))
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        if stage.processes > 1:
            average_gradients(network, stage.processes)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update(network, step)
        is_last = step + 1 == stage.steps
        if rank == 0 and (is_last or time.time() - reported > SECONDS_BETWEEN_REPORTS):
            reported = time.time()
            losses = ", ".join(f"{name} {value:.3f}" for name, value in parts.items())
            logger.info("stage %s, step %d of %d: %s", stage.name, step + 1, stage.steps, losses)
    return average


def average_gradients(network: Network, processes: int) -> None:
    """Replace each gradient by its mean over the processes."""
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= processes
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def report(paths: Paths, stage: Stage, n_windows: int) -> None:
    """Keep the stage's checkpoint, and log how upstream's whisper does with it."""
    shutil.copy(paths.checkpoint, paths.work / f"nano-{stage.name}.pt")
    torch.set_num_threads(1)
    model = whisper.load_model(str(paths.checkpoint), device="cpu")
    figures = measure_windows(model, Corpus.load(paths.work), load_recording(paths), n_windows)
    logger.info("after stage %s: %s", stage.name, json.dumps(figures, ensure_ascii=False))


def open_source(paths: Paths) -> WindowSource:
    """Return the windows of the training sentences."""
    return WindowSource(Corpus.load(paths.work), load_recording(paths))


def load_recording(paths: Paths) -> np.ndarray:
    """Return jfk.flac, float32 at 16 kHz."""
    audio: np.ndarray = whisper.load_audio(str(paths.jfk))
    return audio


if __name__ == "__main__":
    main()
