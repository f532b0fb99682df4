"""A stand-in for openai-whisper that starts in milliseconds, for tests of what a whole process does.

It has the same modules, signatures and shape of command line; the packaging tests start the real one.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STAND_IN = {
    "whisper/__init__.py": """
        from .audio import load_audio, log_mel_spectrogram
        from .decoding import decode
        from .transcribe import transcribe
        __version__ = "20250625"
        def load_model(name, device=None, download_root=None, in_memory=False):
            return ["upstream", name]
    """,
    "whisper/audio.py": """
        def load_audio(file, sr=16000):
            return ["upstream", file, sr]
        def log_mel_spectrogram(audio, n_mels=80, padding=0, device=None):
            return ["upstream", audio, n_mels, padding, device]
    """,
    "whisper/decoding.py": """
        def decode(model, mel, options=None, **kwargs):
            return ["upstream", mel]
    """,
    "whisper/timing.py": """
        def median_filter(x, filter_width):
            return x

        def find_alignment(model, tokenizer, text_tokens, mel, num_frames):
            return []
    """,
    "whisper/transcribe.py": """
        import argparse, json
        from .audio import log_mel_spectrogram
        def transcribe(model, audio, **options):
            return options
        def cli():
            parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
            parser.add_argument("audio", nargs="+", type=str, help="audio file(s) to transcribe")
            parser.add_argument("--model", default="turbo", help="name of the Whisper model to use")
            arguments = parser.parse_args().__dict__
            from . import load_model
            print(json.dumps([load_model(arguments.pop("model")), arguments]))
        if __name__ == "__main__":
            cli()
    """,
    "whisper/__main__.py": """
        from .transcribe import cli
        cli()
    """,
    "bin/whisper": """
        import re
        import sys
        from whisper.transcribe import cli
        if __name__ == '__main__':
            sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])
            sys.exit(cli())
    """,
    "echo_whisper-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: echo-whisper\nVersion: 1.0\n",
    "echo_whisper-1.0.dist-info/entry_points.txt": "[whisper_max_plugin]\necho = echo_whisper\n",
    "echo_whisper.py": """
        from whisper_max_plugin.hookspecs import hookimpl
        class Echo:
            name = "echo"
            def version(self): return "1.0"
            def devices(self): return ["cpu"]
            def can_run(self): return True
            def load_model(self, name, device, download_root, in_memory, *, upstream_load_model):
                return ["echo", name]
        class Tired(Echo):
            name = "tired"
            def can_run(self): return "no more strength: take a rest"
        @hookimpl
        def whisper_backends(): return [Echo(), Tired()]
    """,
}
CONSOLE_SCRIPT = ["bin/whisper"]
MODULE = ["-m", "whisper"]
SUBMODULE = ["-W", "ignore", "-m", "whisper.transcribe"]
STARTS = pytest.mark.parametrize("start", [CONSOLE_SCRIPT, MODULE, SUBMODULE, ["-Wignore", "-mwhisper"]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in STAND_IN.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(inspect.cleandoc(text) + "\n")
    return tmp_path


@pytest.fixture
def python(folder):
    """Run Python beside the stand-in whisper; the plugin's start-up hook is that of this environment."""

    def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WHISPER_")}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**kept, "PYTHONPATH": str(folder), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return python


def printed(result: subprocess.CompletedProcess[str]):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
