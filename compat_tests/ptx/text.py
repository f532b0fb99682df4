"""PTX text taken apart: the parameters, variables, registers and instructions of its one kernel."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from .values import bits_of, storage

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*|^[ \t]*\.(?:loc|file)\b[^\n]*", re.DOTALL | re.MULTILINE)
_HEADER = re.compile(r"\.(?:version|target|address_size)\b[^\n]*")
_ENTRY = re.compile(r"(?:\.(?:visible|weak)\s+)?\.entry\s+([\w$]+)\s*\(([^)]*)\)\s*([^{;]*)\{")
_LIMIT = re.compile(r"\.(maxntid|reqntid|minnctapersm|maxnreg)\s+(\d+(?:\s*,\s*\d+)*)\s*")
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?:\.ptr\s+(?:\.(?:global|shared|const|local)\s+)?"
    r"(?:\.align\s+\d+\s+)?)?(?P<name>[\w$]+)(?:\[(?P<count>\d+)\])?"
)
_VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak|internal)\s+)*\.(?P<space>shared|global|const|local)\s+(?:\.align\s+(?P<align>\d+)\s+)?"
    r"\.(?P<type>\w+)\s+(?P<name>[\w$]+)(?P<array>\[(?P<count>\d*)\])?(?:\s*=\s*\{?(?P<values>[^;}]*)\}?)?\s*;"
)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+([^;]+);")
_PRAGMA = re.compile(r"\.pragma\b[^;]*;")
_TABLE = re.compile(r"([\w$]+)\s*:\s*\.branchtargets\s+([^;]+);")
_LABEL = re.compile(r"([\w$]+)\s*:(?!:)")
_INSTRUCTION = re.compile(r"(?:@(!?)([%\w$]+)\s+)?([a-z][\w.:]*)\s*([^;]*);")
_COMMA = re.compile(r",(?![^{\[]*[}\]])")


class Parameter(NamedTuple):
    """A parameter of the kernel: a number, or `size` bytes of several."""

    name: str
    type: str
    offset: int
    size: int
    aggregate: bool


class Variable(NamedTuple):
    """A variable outside of registers, `size` 0 if the launch sets it."""

    space: str
    name: str
    align: int
    size: int
    initial: np.ndarray[Any, Any] | None


class Instruction(NamedTuple):
    """One instruction; the guard is the predicate it depends on."""

    line: int
    guard: str | None
    negated: bool
    name: str
    operands: list[str]


class Text(NamedTuple):
    """A kernel as it was written; labels name the instruction that follows."""

    parameters: list[Parameter]
    variables: list[Variable]
    registers: dict[str, int]  # to their bits
    instructions: list[Instruction]
    labels: dict[str, int]
    tables: dict[str, list[str]]  # of labels
    limits: dict[str, list[int]]


def split(operands: str) -> list[str]:
    """Return what commas separate, outside of braces and brackets."""
    return [operand.strip() for operand in _COMMA.split(operands)] if operands.strip() else []


def number(literal: str, bits: int) -> int:
    """Return the raw bits of an immediate such as -1, 0xff or 0f3F800000; raise ValueError if it is none."""
    if match := re.fullmatch(r"0([fFdD])([0-9a-fA-F]+)", literal):
        width = 32 if match[1] in "fF" else 64
        if width != bits or len(match[2]) != width // 4:
            raise ValueError(f"{literal} is not of {bits} bits")
        return int(match[2], 16)
    if literal != "WARP_SZ" and not re.fullmatch(r"-?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|[1-9][0-9]*|0)U?", literal):
        raise ValueError(f"{literal} is neither a register nor a number")
    value = 32 if literal == "WARP_SZ" else int(literal.rstrip("U"), 0)
    if not -(1 << bits) < value < 1 << bits:
        raise ValueError(f"{literal} does not fit into {bits} bits")
    return value & (1 << bits) - 1


def parse(source: str) -> Text:
    """Take apart PTX with exactly one kernel; raise ValueError, with the line, for anything unknown."""
    source = _COMMENT.sub(lambda match: "\n" * match[0].count("\n"), source)
    text = Text([], [], {}, [], {}, {}, {})
    at = depth = entries = 0

    def error(what: str) -> ValueError:
        return ValueError(f"PTX line {source.count(chr(10), 0, at) + 1}: {what}")

    while at < len(source):
        if source[at].isspace():
            at += 1
            continue
        match = None
        if depth and source[at] in "{}":
            depth += 1 if source[at] == "{" else -1
            at += 1
            continue
        try:
            if match := _VARIABLE.match(source, at):
                text.variables.append(_variable(match))
            elif not depth and (match := _ENTRY.match(source, at)):
                entries += 1
                depth = 1
                _parameters(match[2], text)
                if _LIMIT.sub("", match[3]).strip():
                    raise ValueError(f"unknown directive: {match[3].strip()}")
                text.limits.update(
                    {name: [int(n) for n in given.split(",")] for name, given in _LIMIT.findall(match[3])}
                )
            elif not depth:
                match = _HEADER.match(source, at)
            elif match := _REGISTERS.match(source, at):
                _registers(match, text)
            elif match := _TABLE.match(source, at):
                text.tables[match[1]] = split(match[2])
            elif match := _LABEL.match(source, at):
                if match[1] in text.labels:
                    raise ValueError(f"a second label {match[1]}")
                text.labels[match[1]] = len(text.instructions)
            elif match := _INSTRUCTION.match(source, at):
                line = source.count("\n", 0, at) + 1
                guard, negated = match[2], bool(match[1])
                text.instructions.append(Instruction(line, guard, negated, match[3], split(match[4])))
            else:
                match = _PRAGMA.match(source, at)
        except ValueError as problem:
            raise error(str(problem)) from None
        if match is None:
            raise error(f"cannot be read: {source[at : at + 200].splitlines()[0]}")
        at = match.end()
    if entries != 1 or depth:
        raise error(f"expected one whole kernel, found {entries}")
    return text


def _parameters(listed: str, text: Text) -> None:
    end = 0
    for written in split(listed):
        match = _PARAMETER.fullmatch(written)
        if match is None:
            raise ValueError(f"unknown parameter: {written}")
        each = bits_of(match["type"]) // 8
        size, align = each * int(match["count"] or 1), max(each, int(match["align"] or 1))
        offset = -(-end // align) * align
        text.parameters.append(Parameter(match["name"], match["type"], offset, size, bool(match["count"])))
        end = offset + size


def _variable(match: re.Match[str]) -> Variable:
    bits = bits_of(match["type"])
    count = int(match["count"] or 0) if match["array"] else 1
    initial = None
    if match["space"] in ("global", "const"):
        initial = np.zeros(count, storage(bits))
        for i, literal in enumerate(split(match["values"] or "")):
            initial[i] = number(literal, bits)
    elif match["values"] is not None:
        raise ValueError(f"{match['name']} cannot have an initial value")
    align = int(match["align"] or bits // 8)
    return Variable(match["space"], match["name"], align, count * bits // 8, initial)


def _registers(match: re.Match[str], text: Text) -> None:
    bits = bits_of(match[1])
    for written in split(match[2]):
        many = re.fullmatch(r"([%\w$]+)<(\d+)>", written)
        for name in [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [written]:
            if text.registers.setdefault(name, bits) != bits:
                raise ValueError(f"register {name} is declared twice")
