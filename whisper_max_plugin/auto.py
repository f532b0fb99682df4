"""Importing this module is `whisper_max_plugin.install()`: the one line for an existing script."""

from whisper_max_plugin import install

install()
