"""`whisper-max ray`: which recordings it finds, what it prints, and its exit codes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from whisper_max_plugin.cli import main
from whisper_max_plugin.ray import command

from ..conftest import Pair
from ..data import NANO
from .fixtures import assert_upstreams, cluster, copies, hold_results, lines

__all__ = ["cluster"]  # a fixture, found by its name

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of Ray


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what the command does to keep Ray from talking."""
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    loggers = [logging.getLogger(name) for name in ("ray.data", "whisper_max_plugin.ray")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_it_continues_and_says_what_failed(
    nano: Pair, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first, *others = copies(tmp_path / "recordings", 3)
    text = tmp_path / "notes.txt"
    text.write_text("no audio")
    output = Path("texts.jsonl")
    hold_results(output, [first])
    options = ["--model", str(NANO), "--output", str(output), "--options", '{"temperature": 0.0}']
    assert main(["ray", "recordings/*.flac", "notes.txt", *options]) == 1
    printed = capsys.readouterr()
    assert "4/4 " in printed.err.splitlines()[-1]
    summary, *failed = printed.out.splitlines()
    assert re.fullmatch(
        r"texts.jsonl: 2 recordings transcribed \(\d+ s of audio in \d+ s\), 1 were there before, 1 failed", summary
    )
    assert failed == [
        f"{text}: Invalid data found when processing input",
        "texts.failed.jsonl lists them; the same command tries them again",
    ]
    assert_upstreams(nano, lines(output)[1:], others)
    assert main(["ray", first, *others, *options]) == 0
    assert capsys.readouterr().out == (
        "texts.jsonl: 0 recordings transcribed (0 s of audio in 0 s), 3 were there before, 0 failed\n"
    )


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Return the line that the command ends with."""

    def refused(*arguments: str) -> str:
        try:
            code = main(["ray", *arguments, "--output", "texts"])
        except SystemExit as exit:  # argparse's
            code = exit.code
        assert code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return refused


def test_what_is_refused_is_one_line(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed, the extra ray")
    monkeypatch.chdir(tmp_path)
    Path("a.wav").touch()
    Path("folder").mkdir()
    for named in ("nowhere.wav", "*.mp3", "folder"):
        assert refused(named) == f"whisper-max: error: {named}: there is no such recording, nor a folder of recordings"
    assert "--options: this is no JSON" in refused("a.wav", "--options", "beam_size=5")
    assert "--options: this is no JSON of names and values" in refused("a.wav", "--options", "5")
    assert "--device" in refused("a.wav", "--device", "tpu")
    with monkeypatch.context() as without_ray:  # which it takes seconds to start
        without_ray.setattr(command, "_connect", lambda: pytest.fail("Ray was started"))
        assert "batch_size=0: give how many" in refused("a.wav", "--batch_size", "0")
        assert "concurrency=0: give how many" in refused("a.wav", "--concurrency", "0")
    assert not Path("texts").exists()


def test_folders_patterns_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("talks/one.MP3", "talks/notes.txt", "talks/more/two.wav", "other.bin"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert list(command._find("talks")) == ["talks/more/two.wav", "talks/one.MP3"]
    assert list(command._find("talks/*")) == ["talks/notes.txt", "talks/one.MP3"]
    assert list(command._find("**/*.wav")) == ["talks/more/two.wav"]
    assert list(command._find("other.bin")) == ["other.bin"]
    assert list(command._find("http://example.org/a.mp3")) == ["http://example.org/a.mp3"]
