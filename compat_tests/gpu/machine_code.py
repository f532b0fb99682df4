"""What the assembler made of kernels: the instructions in an artifact, which NVIDIA's disassembler shows."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path

_CUDA = 190  # the machine in the header of an ELF file
_FUNCTION = re.compile(r"^\.text\.(\w+):$", flags=re.MULTILINE)
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][^;]+?)\s*;")
_REGISTER = re.compile(r"\bR(\d+)")
_EARLY_LOAD = re.compile(r"LDG?\.E\.128 ")
_WAIT = "ACQBULK"  # griddepcontrol.wait
_RELEASE = "PREEXIT"  # griddepcontrol.launch_dependents


@dataclass(frozen=True)
class Code:
    """The instructions of a kernel, in the order in which they lie there, without conditions."""

    name: str
    instructions: list[str]

    @property
    def spills(self) -> bool:
        """Whether values lie in memory because there are not enough registers."""
        return any(re.match("LDL|STL", each) for each in self.instructions)

    @property
    def waits(self) -> bool:
        """Whether it begins before the kernel before it has ended, and waits for that."""
        return _WAIT in self.instructions

    @property
    def loads_before_the_wait(self) -> int:
        """How many loads, of 16 bytes for each thread, are on their way before the kernel waits."""
        before = self.instructions[: self.instructions.index(_WAIT)]
        return sum(bool(_EARLY_LOAD.match(each)) for each in before)

    @property
    def touched_too_early(self) -> list[str]:
        """The instructions that need what is loaded before the wait, before the next kernel may begin.

        A warp stops at such an instruction until the load is there, and what it would do behind it waits, too.
        """
        coming: set[int] = set()
        touching = []
        for each in self.instructions[: self.instructions.index(_RELEASE)]:
            registers = [int(number) for number in _REGISTER.findall(each)]
            if _EARLY_LOAD.match(each):
                coming |= set(range(registers[0], registers[0] + 4))
            elif coming.intersection(registers):
                touching.append(each)
        return touching

    @property
    def copies_amid_products(self) -> bool | None:
        """Whether it begins copies to shared memory between tensor cores' products; None if it has not got both."""
        products = [at for at, each in enumerate(self.instructions) if each.startswith("HMMA")]
        copies = [at for at, each in enumerate(self.instructions) if each.startswith("LDGSTS")]
        if not products or not copies:
            return None
        return any(products[0] < at < products[-1] for at in copies)


def kernels_in(artifact: Path, names: str) -> list[Code]:
    """Return the code of the kernels in an artifact whose names begin so."""
    files = [file for file in _elf_files(artifact.read_bytes()) if f".text.{names}".encode() in file]
    return [code for file in files for code in _disassemble(file)]


def _elf_files(content: bytes) -> Iterator[bytes]:
    """Return the code for GPUs, file by file: each ends with its table of sections, or of segments."""
    for found in re.finditer(rb"\x7fELF\x02", content):
        file = content[found.start() :]

        def number(at: int, size: int, file: bytes = file) -> int:
            return int.from_bytes(file[at : at + size], "little")

        if number(18, 2) == _CUDA:
            segments = number(32, 8) + number(54, 2) * number(56, 2)
            sections = number(40, 8) + number(58, 2) * number(60, 2)
            yield file[: max(segments, sections)]


def _disassemble(file: bytes) -> Iterator[Code]:
    (nvdisasm,) = (each for each in files("nvidia-cuda-nvdisasm") or [] if each.name == "nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as written:
        written.write(file)
        written.flush()
        command = [str(nvdisasm.locate()), "-c", written.name]
        text = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    _, *parts = _FUNCTION.split(text)
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        yield Code(name, _INSTRUCTION.findall(body))
