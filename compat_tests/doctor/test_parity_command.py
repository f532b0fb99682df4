"""What `whisper-max doctor --parity` takes and prints: models, recordings, the report, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from max.driver import Buffer
from whisper.model import ModelDimensions

from whisper_max_plugin.checkpoints.sizes import OFFICIAL_DIMS
from whisper_max_plugin.cli import main
from whisper_max_plugin.doctor import checks as doctor
from whisper_max_plugin.doctor import parity
from whisper_max_plugin.errors import UnknownModelError
from whisper_max_plugin.execution.engine import Engine

from ..conftest import Pair, random_checkpoint
from ..data import NANO, SAMPLE
from ..errors import assert_one_sentence, error_of

GRAPH_RUNS = 79
"""Of a comparison of the nano model: those that accelerated forwards run, and the kernels looked at alone."""

FACTS = ["whisper-max-plugin", "max", "torch", "openai-whisper", "python", "platform", "cpu"]


@pytest.fixture(autouse=True)
def findings(monkeypatch: pytest.MonkeyPatch) -> list[doctor.Check]:
    """What the checks of the environment found; a test may add to it."""
    checks = [doctor.Check("python", True, "3.11.2")]
    monkeypatch.setattr(doctor, "run_checks", lambda: checks)
    return checks


@pytest.fixture(autouse=True)
def downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder where whisper keeps downloads, empty, and no network."""

    def urlopen(url: str) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "whisper"
    folder.mkdir()
    return folder


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out.splitlines()


def damaged(path: Path) -> Path:
    path.write_bytes(NANO.read_bytes()[:-1000])
    return path


# The report


def test_the_report_of_a_sound_model(nano: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--parity", str(NANO)]) == 0
    check, _, summary, _, heading, header, *rows, verdict = lines(capsys)
    assert (check, summary) == ("ok  python  3.11.2", "Everything is in order.")
    size = "80 mels, encoder 2 x 128, decoder 2 x 128, 51865 tokens"
    assert heading == f"{NANO} ({size}) against torch, input: synthetic sound"
    assert header.split("  ")[-1] == "TOKENS"
    assert [row.split()[:2] for row in rows] == [
        ["ok", name] for name in ("mel", "encoder", "prefill", "steps", "beams", "ranking", "alignment", "words")
    ]
    column = header.index("MAX REL. ERROR")
    errors = {row.split()[1]: float(row[column:].split()[0]) for row in rows if row[column - 1] == " "}
    assert len(errors) == len(rows)
    assert all(0 < error < 1e-4 for name, error in errors.items() if name != "ranking")
    assert 0 <= errors["ranking"] < 1e-4  # without AVX512 kernel and torch round alike
    assert [row.split("  ")[-1] for row in rows] == ["-", "-", "-", "20/20 equal", "-", "-", "-", "-"]
    assert verdict.startswith(
        f"pass: {NANO} (float32 on cpu, {GRAPH_RUNS} graph runs, 0 fallbacks, whisper-max-plugin "
    )
    for name, value in parity.machine().items():
        assert f"{name} {value}" in verdict


def test_a_failed_check_and_its_reason(
    nano: Pair, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(self: Engine, mel: object) -> None:
        raise ValueError("no such kernel\nin encoder")

    monkeypatch.setattr(Engine, "encode", encode)
    assert main(["doctor", "--parity", str(NANO)]) == 1
    *_, row, reason, place, _, _, _, _, _, _, verdict = lines(capsys)
    assert row.split()[:2] == ["!!", "encoder"]
    assert (reason, place) == ("      failed: no such kernel", "      in encoder")
    assert verdict.startswith(f"FAIL: {NANO}: encoder (float32 on cpu, {GRAPH_RUNS - 1} graph runs, 0 fallbacks, ")


def test_json(nano: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--audio", str(SAMPLE), "--parity", str(NANO)]) == 0
    report = json.loads("\n".join(lines(capsys)))
    assert report.keys() == {"ok", "checks", "parity"}
    found = report["parity"]
    (model,) = found.pop("models")
    assert found == {"ok": True, "problem": None, "machine": parity.machine(), "audio": str(SAMPLE)}
    assert list(found["machine"]) == FACTS
    assert all(found["machine"].values())
    rows = model.pop("rows")
    graph_runs = model.pop("graph_runs")
    assert model == {
        "model": str(NANO),
        "ok": True,
        "problem": None,
        "dims": vars(nano.torch.dims),
        "precision": "float32",
        "device": "cpu",
        "fallbacks": {},
    }
    assert sum(graph_runs.values()) == GRAPH_RUNS
    keys = ["name", "compared", "ok", "error", "limit", "tokens", "equal_tokens", "note"]
    assert [list(row) for row in rows] == [keys] * 8


def test_json_of_a_failure_is_json(
    nano: Pair, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    undefined = Buffer.from_dlpack(torch.full((1, 1500, 128), torch.nan))
    monkeypatch.setattr(Engine, "encode", lambda self, mel: undefined)
    assert main(["doctor", "--json", "--parity", str(NANO)]) == 1
    report = json.loads("\n".join(lines(capsys)), parse_constant=pytest.fail)
    assert (report["ok"], report["parity"]["ok"]) == (False, False)
    assert report["parity"]["models"][0]["rows"][1]["error"] is None


def test_a_problem_of_the_installation_that_models_run_without(
    nano: Pair, findings: list[doctor.Check], capsys: pytest.CaptureFixture[str]
) -> None:
    findings.append(doctor.Check("start-up hook", False, "not there", "pip install"))
    assert main(["doctor", "--parity", str(NANO)]) == 1
    printed = lines(capsys)
    assert "1 problem." in printed
    assert printed[-1].startswith("pass: ")


@pytest.mark.parametrize("as_json", [False, True])
def test_without_max_nothing_is_compared(
    findings: list[doctor.Check], capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    findings.append(doctor.Check("max", False, "not installed", "pip install max"))
    findings.append(doctor.Check("backend max", False, "MAX is not installed", "pip install max"))
    assert main(["doctor", "--parity", "nonesuch", *(["--json"] if as_json else [])]) == 1
    printed = lines(capsys)
    problem = "no model was compared with torch: mend max, backend max first"
    if as_json:
        nothing = {"ok": False, "problem": problem, "machine": None, "audio": None, "models": []}
        assert json.loads("\n".join(printed))["parity"] == nothing
    else:
        assert printed[-2:] == ["2 problems.", f"FAIL: {problem}"]


def test_without_any_of_the_libraries_there_is_no_traceback() -> None:
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['max', 'torch', 'whisper'])); "
        "from whisper_max_plugin.cli import main; sys.exit(main(['doctor', '--parity']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1].startswith("FAIL: no model was compared with torch: mend ")


# Which models


def test_without_a_name_the_smallest_download_is_compared(nano: Pair, downloads: Path, capsys: Any) -> None:
    (downloads / "tiny.pt").write_bytes(NANO.read_bytes())
    (downloads / "base.pt").write_bytes(NANO.read_bytes() * 2)
    (downloads / "other.txt").touch()
    assert main(["doctor", "--parity"]) == 0
    assert lines(capsys)[-1].startswith(f"pass: {downloads / 'tiny.pt'} (")


def test_a_damaged_download_is_not_replaced_unasked(downloads: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = damaged(downloads / "tiny.pt")
    before = path.read_bytes()
    assert main(["doctor", "--parity"]) == 1
    assert "truncated or not a checkpoint" in lines(capsys)[-1]
    assert path.read_bytes() == before


def test_nothing_downloaded_and_none_named(downloads: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_one_sentence(error_of(lambda: parity.choose_models([])), downloads, "--parity tiny")
    assert main(["doctor", "--parity"]) == 2
    printed, error = capsys.readouterr()
    assert printed == ""
    assert error.startswith("whisper-max: error: no model in ")


def test_an_unknown_model_is_an_error_before_all_output(capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(lambda: parity.choose_models(["tiny", "tinny"]))
    assert isinstance(error, UnknownModelError)
    assert_one_sentence(error, "'tinny'", "tiny, ")
    assert main(["doctor", "--parity", str(NANO), "tinny"]) == 2
    assert capsys.readouterr() == ("", f"whisper-max: error: {error}\n")


def test_an_official_model_that_cannot_be_downloaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--parity", "tiny"]) == 1
    verdict = lines(capsys)[-1]
    assert verdict.startswith("FAIL: tiny: cannot be loaded: <urlopen error no network> (whisper-max-plugin ")


def test_a_model_that_fails_does_not_stop_the_others(nano: Pair, tmp_path: Path, capsys: Any) -> None:
    path = damaged(tmp_path / "mine.pt")
    assert main(["doctor", "--parity", str(path), str(NANO)]) == 1
    verdicts = [line for line in lines(capsys) if line.startswith(("pass", "FAIL"))]
    assert verdicts[0].startswith(f"FAIL: {path} is truncated or not a checkpoint: download or save it again (")
    assert verdicts[1].startswith(f"pass: {NANO} (")
    assert len(verdicts) == 2


def test_weights_that_are_nan(tmp_path: Path) -> None:
    checkpoint = torch.load(NANO)
    checkpoint["model_state_dict"]["decoder.ln.bias"][5] = torch.nan
    torch.save(checkpoint, path := tmp_path / "mine.pt")
    result = parity.check_model(str(path), parity.load_audio(None))
    assert result.problem == "upstream's own result of 'prefill' holds NaN or infinite values"
    assert not result.ok


@pytest.mark.parametrize("change", [{"n_mels": 40}, {"n_vocab": 1000}, {"n_text_ctx": 64}])
def test_dimensions_that_upstream_cannot_transcribe_with(tmp_path: Path, change: dict[str, int]) -> None:
    dims = {**vars(OFFICIAL_DIMS["tiny"]), "n_audio_layer": 1, "n_text_layer": 1, "n_vocab": 51865, **change}
    path = random_checkpoint(tmp_path / "mine.pt", ModelDimensions(**dims))
    result = parity.check_model(str(path), parity.load_audio(None))
    assert not result.ok
    assert result.problem.startswith(f"the model has {dims['n_mels']} mels, {dims['n_vocab']} tokens and room for ")


# Which recording


def test_a_missing_recording(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "nonesuch.wav"
    assert main(["doctor", "--parity", str(NANO), "--audio", str(path)]) == 2
    printed, error = capsys.readouterr()
    assert printed == ""
    assert error == f"whisper-max: error: Failed to load audio: {path}: No such file or directory\n"


@pytest.mark.parametrize(("option", "value"), [("--audio", str(SAMPLE)), ("--device", "cpu")])
def test_what_needs_a_comparison(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", option, value]) == 2
    assert capsys.readouterr() == ("", f"whisper-max: error: {option} goes with --parity\n")


def test_a_comparison_on_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--parity", str(NANO), "--device", "cuda:7"]) == 2
    printed, error = capsys.readouterr()
    assert printed == ""
    assert "'cuda:7' was asked for" in error
