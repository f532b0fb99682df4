"""Backends of a third party that answer with their names, and which of them a call is to get."""

from __future__ import annotations

from whisper_max_plugin.hookspecs import hookimpl

# level: the backend that is named there
GIVEN = {"keyword": "one", "command_line": "two", "installed": "three", "environment": "four"}
# levels at which a backend is named, and the one that is chosen
PRECEDENCE = [
    (["keyword", "command_line", "installed", "environment"], "one"),
    (["command_line", "installed", "environment"], "two"),
    (["installed", "environment"], "three"),
    (["environment"], "four"),
]


class EchoBackend:
    """Answers with its name and the arguments it got."""

    def __init__(self, name="echo"):
        self.name = name

    def version(self):
        return "1.0"

    def devices(self):
        return ["cpu"]

    def can_run(self):
        return True

    def load_model(self, name, device, download_root, in_memory, *, upstream_load_model):
        return (self.name, name, device, download_root, in_memory)


class EchoPlugin:
    @hookimpl
    def whisper_backends(self):
        return [EchoBackend(name) for name in ("echo", *GIVEN.values())]
