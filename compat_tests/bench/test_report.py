"""What `whisper-max bench` makes of what was measured: error rates, the table, the picture."""

from __future__ import annotations

import random

import pytest

from whisper_max_plugin.bench import accuracy, plot, table
from whisper_max_plugin.bench.errors import BenchError
from whisper_max_plugin.bench.machine import Limits
from whisper_max_plugin.bench.results import Report, StageResult, SubjectResult, Times, TranscriptionResult

REPORT = Report(
    command="whisper-max bench nano.pt --audio a.wav",
    device="cpu",
    machine={"cpu": "a processor", "processors": 2, "torch": "2.13.0", "max": "26.7.0"},
    limits=Limits(40e9, 30e9, 200e9),
    model="nano.pt",
    dims={"n_audio_layer": 2, "n_audio_state": 128, "n_text_layer": 2, "n_text_state": 128},
    rounds=3,
    n_tokens=50,
    audio="a.wav",
    audio_seconds=33.5,
    transcription={"beam_size": 5, "word_timestamps": True, "n_tokens": None},
    subjects=[
        SubjectResult("upstream", "upstream (torch)", "20250625", [1, 2], 1.0, 0.25, None, 500_000_000, None),
        SubjectResult("max", "whisper-max", "0.1.0", None, 1.5, 0.5, 0.0, 700_000_000, "it is new"),
    ],
    transcriptions=[
        TranscriptionResult("upstream", 2, Times.of([1.5, 1.0, 1.25]), 1.0, 26.8, 107, 1.0, 0.0, "text"),
        TranscriptionResult("max", None, Times.of([0.5, 0.5, 0.75]), 2.5, 67.0, 107, 0.5, 0.125, "text"),
    ],
    stages=[
        StageResult("step", "greedy step", "upstream", 1, Times.of([0.012]), None, 1.0, 75e6, 7e7, 0.15),
        StageResult("step", "greedy step", "max", None, Times.of([0.003]), None, 4.0, 75e6, 7e7, 0.625),
    ],
    missing=["a-peer is not installed and was left out: pip install a-peer"],
)


def slow_edit_distance(words, expected):
    row = list(range(len(expected) + 1))
    for i, word in enumerate(words, start=1):
        before, row = row, [i]
        for j, wanted in enumerate(expected, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (word != wanted)))
    return row[-1]


def test_edit_distance_is_the_textbooks():
    chance = random.Random(0)
    for _ in range(200):
        words, expected = (chance.choices("abc", k=chance.randrange(9)) for _ in range(2))
        assert accuracy.edit_distance(words, expected) == slow_edit_distance(words, expected)


def test_word_error_rate_counts_words_as_upstream_normalises_them():
    assert accuracy.word_error_rate("It's 20 dogs, Sir!", "it is twenty dogs sir", "en") == 0
    assert accuracy.word_error_rate("ein Hund läuft", "Der Hund läuft schnell.", "de") == 2 / 4


def test_common_tokens_are_all_or_a_part():
    assert accuracy.common_tokens([1, 2, 3], [1, 2, 3]) == 1
    assert accuracy.common_tokens([1, 2], [1, 3]) == 0.5
    assert accuracy.common_tokens([], []) == 1


def test_the_table_starts_with_the_command_that_made_it():
    assert table.lines(REPORT)[0] == "$ whisper-max bench nano.pt --audio a.wav"


def test_the_table_shows_each_subject_with_its_spread_and_ratio():
    lines = table.lines(REPORT)
    assert [" ".join(line.split()) for line in lines if line.lstrip().startswith("whisper-max ")] == [
        "whisper-max 0.500 s 0.500 - 0.750 2.50x 67.0x own 107 50.0 % 12.5 %",
        "whisper-max 3.00 ms 3.00 - 3.00 4.00x own 75.0 MB 0.07 GFLOP 62 %",
        "whisper-max 0.1.0 1.50 s 0.50 s cached 700 MB",
    ]


def test_the_table_ends_with_notes_and_what_is_not_installed():
    assert "whisper-max: it is new." in table.lines(REPORT)
    assert table.lines(REPORT)[-1] == REPORT.missing[0]


def test_the_picture_has_the_format_of_its_name(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed, which --plot draws with")
    plot.draw(REPORT, tmp_path / "a.png")
    plot.draw(REPORT, tmp_path / "a.svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "a.svg").read_text()


def test_without_matplotlib_a_picture_is_refused_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"--plot needs matplotlib: .*install.* matplotlib"):
        plot.check(tmp_path / "a.png")
