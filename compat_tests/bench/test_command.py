"""`whisper-max bench` from the command line: what it measures, writes and refuses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from whisper_max_plugin.bench import command, subjects
from whisper_max_plugin.cli import main

from ..data import NANO, SAMPLE, reference_text

STAGES = {"mel", "encoder", "cross_kv", "prefill", "step", "beam_step", "alignment"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One short run against upstream: its output, and what it wrote as JSON."""
    folder = tmp_path_factory.mktemp("bench")
    reference, results = folder / "reference.txt", folder / "results.json"
    reference.write_text(reference_text(SAMPLE))
    arguments = ["bench", NANO, "--audio", SAMPLE, "--reference", reference, "--peers", "none", "--json", results]
    arguments = [str(one) for one in [*arguments, "--rounds", 1, "--tokens", 20, "--threads", 1]]
    done = subprocess.run(
        [sys.executable, "-m", "whisper_max_plugin.cli", *arguments], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("$ whisper-max " + " ".join(arguments))
    return done.stdout, json.loads(results.read_text())


def test_every_stage_of_upstream_and_of_this_plugin_is_timed(run):
    _, results = run
    assert [(stage["stage"], stage["subject"]) for stage in results["stages"]] == [
        (stage, subject) for stage in command.stages.TITLES for subject in ("upstream", "max")
    ]
    assert {stage["stage"] for stage in results["stages"]} == STAGES
    assert all(stage["times"]["min"] > 0 and stage["threads"] == 1 for stage in results["stages"])


def test_this_plugin_decodes_upstreams_tokens(run):
    _, results = run
    upstream, accelerated = results["transcriptions"]
    assert accelerated["text"] == upstream["text"]
    assert accelerated["common_tokens"] == 1
    assert accelerated["tokens"] == upstream["tokens"] > 50
    assert upstream["word_error_rate"] < 0.05


def test_the_results_tell_how_they_were_made(run):
    output, results = run
    assert output.startswith(f"$ {results['command']}\n")
    assert results["device"] == "cpu"
    assert results["machine"]["torch"] in output
    assert results["limits"]["read_bytes_per_second"] > 0
    upstream, accelerated = results["subjects"]
    assert upstream["compile_seconds"] is None
    assert accelerated["compile_seconds"] is not None
    assert all(subject["peak_bytes"] > 100e6 and subject["version"] for subject in results["subjects"])


def test_a_peer_that_is_not_installed_is_left_out_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(subjects, "is_installed", lambda kind: kind.name == "whisper.cpp")
    kinds, missing = subjects.choose([kind.name for kind in subjects.PEERS], "cpu")
    assert [kind.name for kind in kinds] == ["upstream", "max", "whisper.cpp"]
    (line,) = missing
    assert line.startswith("faster-whisper is not installed and was left out: ")
    assert line.endswith("install faster-whisper")


BAD = {
    "no model": ([], "name a model or a .pt file, or take random weights by --random tiny"),
    "two models": ([str(NANO), "--random", "tiny"], "(one of the two)"),
    "unknown size": (["--random", "huge"], "no size 'huge': give one of tiny, base"),
    "unknown model": (["nosuch.pt"], "no model 'nosuch.pt': give the path of a checkpoint, or one of tiny"),
    "no checkpoint": ([str(SAMPLE)], "is not a checkpoint"),
    "nothing to do": ([str(NANO), "--stages", "none"], "nothing to measure: give a recording by --audio"),
    "unknown stage": ([str(NANO), "--stages", "step,walk"], "no stage 'walk': give some of mel,encoder"),
    "unknown peer": ([str(NANO), "--peers", "vosk"], "no peer 'vosk': give some of faster-whisper,"),
    "no recording to beam": ([str(NANO), "--beam_size", "5"], "--beam_size is about transcribe()"),
    "no such recording": ([str(NANO), "--audio", "nosuch.wav"], "nosuch.wav cannot be read"),
    "no such language": ([str(NANO), "--language", "xx"], "no language 'xx'"),
    "too many tokens": ([str(NANO), "--tokens", "201"], "more than the 200"),
    "no such folder": ([str(NANO), "--json", "nosuch/a.json"], "there is no folder nosuch"),
    "no picture": ([str(NANO), "--plot", "a.doc"], "should end in one of .png"),
    "no such reference": (
        [str(NANO), "--audio", str(SAMPLE), "--reference", "nosuch.txt"],
        "nosuch.txt cannot be read",
    ),
    "words of random weights": (["--random", "tiny", "--audio", str(SAMPLE), "--reference", "a"], "say nothing"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_wrong_input_is_one_sentence_and_exit_status_2(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("whisper-max: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_counts_are_numbers_from_1_on(number, capsys):
    with pytest.raises(SystemExit) as exit_status:
        main(["bench", "--rounds", number])
    assert exit_status.value.code == 2
    assert "is not a number from 1 on" in capsys.readouterr().err
