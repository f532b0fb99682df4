"""What is raised where a kernel does what no GPU defines."""

from __future__ import annotations


class KernelError(Exception):
    """A kernel does what a GPU would not do, or not always in the same way."""


class AccessError(KernelError):
    """A load or store where nothing is, misaligned, of a value never written, or into what is read-only."""


class RaceError(KernelError):
    """Two warps use one place, at least one of them to write, and no barrier says in which order."""
