"""Packages that people build on Whisper, on accelerated models; each in a tox environment of its own."""
