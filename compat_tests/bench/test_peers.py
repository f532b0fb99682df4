"""The subjects of `whisper-max bench`, each in its own process: peers get upstream's weights, and failures are told."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import whisper
from whisper.audio import SAMPLE_RATE

import whisper_max_plugin
from whisper_max_plugin.bench import command, subjects
from whisper_max_plugin.bench.errors import SubjectError
from whisper_max_plugin.bench.protocol import Kind, Transcription
from whisper_max_plugin.bench.subjects import vocabulary
from whisper_max_plugin.bench.worker import Worker, in_child
from whisper_max_plugin.checkpoints.sizes import OFFICIAL_DIMS

from ..data import NANO, SAMPLE

SECONDS = 12  # within one window
PEERS = {kind.name: kind for kind in subjects.PEERS}


@pytest.fixture(scope="module")
def upstream():
    """Upstream's model of the same weights; not the fixture `nano`, for no graph runs in this process."""
    whisper_max_plugin.install()
    return whisper.load_model(str(NANO), device="cpu", backend="torch").eval()


@pytest.fixture
def worker_of(upstream, tmp_path):
    """Return a function that starts a peer's process with the weights of nano, or skips the test without the peer."""
    workers = []

    def start(name):
        kind = PEERS[name]
        if not subjects.is_installed(kind):
            pytest.skip(f"{kind.requirement} is not installed")
        samples, _ = command._recording(str(SAMPLE), tmp_path)
        setup = command._setup(str(NANO), vars(upstream.dims), samples, tmp_path)
        with Worker(kind, setup) as worker:
            worker.prepare()
        workers.append(Worker(kind, setup))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def transcribe(upstream, **options):
    samples = whisper.load_audio(str(SAMPLE))[: SECONDS * SAMPLE_RATE]
    return upstream.transcribe(samples, language="en", temperature=0.0, fp16=False, **options)


@pytest.mark.parametrize("beam_size", [None, 5], ids=["greedy", "beam"])
def test_faster_whisper_decodes_upstreams_tokens_from_the_converted_weights(upstream, worker_of, beam_size):
    worker = worker_of("faster-whisper")
    worker.load()
    decoded = worker.transcribe(Transcription("en", beam_size, word_timestamps=False, seconds=SECONDS))
    expected = transcribe(upstream, beam_size=beam_size)
    assert decoded.text == expected["text"]
    assert decoded.tokens == [token for segment in expected["segments"] for token in segment["tokens"]]


def test_whisper_cpp_decodes_upstreams_text_from_the_converted_weights(upstream, worker_of):
    worker = worker_of("whisper.cpp")
    worker.load()
    decoded = worker.transcribe(Transcription("en", None, word_timestamps=False, seconds=SECONDS))
    assert decoded.text == transcribe(upstream, without_timestamps=True)["text"]  # it decodes two layers without


@pytest.mark.parametrize("name", PEERS)
def test_every_stage_that_a_peer_tells_apart_can_be_timed(worker_of, name):
    worker = worker_of(name)
    worker.load()
    timed = {stage: worker.turn(stage, 3) for stage in worker.stages()}
    assert {"mel", "encoder", "step"} <= timed.keys()
    assert all(seconds > 0 for seconds in timed.values())


def test_a_length_is_the_same_for_upstream_and_faster_whisper(upstream, worker_of, tmp_path):
    task = Transcription("en", None, word_timestamps=False, n_tokens=7, seconds=SECONDS)
    peer = worker_of("faster-whisper")
    peer.load()
    samples, _ = command._recording(str(SAMPLE), tmp_path)
    with Worker(subjects.UPSTREAM, command._setup(str(NANO), vars(upstream.dims), samples, tmp_path)) as other:
        other.load()
        decoded = [worker.transcribe(task) for worker in (other, peer)]
    assert [len(one.tokens) for one in decoded] == [7, 7]
    assert decoded[0].tokens == decoded[1].tokens


@pytest.mark.parametrize("size", ["tiny", "tiny.en", "turbo"])
def test_merges_make_upstreams_tokens(size):
    """Joined in this order, the bytes of a text become the tokens that upstream makes of it."""
    dims = vars(OFFICIAL_DIMS[size])
    tokens = vocabulary.text_tokens(dims)
    order = {pair: rank for rank, pair in enumerate(vocabulary.merges(tokens))}
    for word in (" transcription", " naïve", "日本語", " 1234567", " ♪♪♪"):
        parts = [bytes([byte]) for byte in word.encode()]
        while True:
            pairs = [order.get(pair, len(order)) for pair in pairwise(parts)]
            if not pairs or min(pairs) == len(order):
                break
            first = pairs.index(min(pairs))
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        assert parts == [tokens[token] for token in vocabulary.tokenizer_of(dims).encode(word)]


def test_every_id_of_the_vocabulary_has_a_name():
    for dims in (vars(OFFICIAL_DIMS[size]) for size in ("tiny", "tiny.en", "turbo")):
        names = [*map(vocabulary.printable, vocabulary.text_tokens(dims)), *vocabulary.special_tokens(dims)]
        assert len(set(names)) == dims["n_vocab"]


def broken(cls):
    return Kind("broken", "a broken subject", "os" if cls == "abort" else "builtins", cls, "os", "nothing")


def test_a_subject_that_fails_is_an_error_with_its_own_message(tmp_path):
    setup = command._setup(str(NANO), vars(OFFICIAL_DIMS["tiny"]), None, tmp_path)
    with Worker(broken("object"), setup) as worker, pytest.raises(SubjectError, match="a broken subject failed: Attr"):
        worker.load()


def test_a_process_that_dies_is_an_error_that_names_the_signal(tmp_path):
    setup = command._setup(str(NANO), vars(OFFICIAL_DIMS["tiny"]), None, tmp_path)
    with Worker(broken("abort"), setup) as worker, pytest.raises(SubjectError, match=r"a broken .* ended by SIGABRT"):
        worker.load()


def test_what_fails_in_a_child_is_told():
    with pytest.raises(SubjectError, match="sqrt failed: ValueError: "):
        in_child(math.sqrt, -1.0)
