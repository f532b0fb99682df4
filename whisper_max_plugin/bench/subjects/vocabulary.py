"""Whisper's vocabulary in the forms that peers want, made from the ranks that upstream ships."""

from __future__ import annotations

from itertools import pairwise

from whisper.tokenizer import Tokenizer, get_tokenizer


def tokenizer_of(dims: dict[str, int]) -> Tokenizer:
    """Return upstream's tokenizer for a model of `dims`."""
    multilingual = dims["n_vocab"] >= 51865  # as in `whisper.model`
    n_languages = dims["n_vocab"] - 51765 - int(multilingual)
    return get_tokenizer(multilingual, num_languages=n_languages, language="en", task="transcribe")


def text_tokens(dims: dict[str, int]) -> list[bytes]:
    """Return the bytes of the tokens that make text, by their ids."""
    encoding = tokenizer_of(dims).encoding
    n_special = len(encoding.special_tokens_set)
    return [encoding.decode_single_token_bytes(token) for token in range(encoding.n_vocab - n_special)]


def special_tokens(dims: dict[str, int]) -> list[str]:
    """Return the names of the tokens behind those, by their ids, timestamps included."""
    encoding = tokenizer_of(dims).encoding
    return sorted(encoding.special_tokens_set, key=encoding.encode_single_token)


def printable(token: bytes) -> str:
    """Return `token` with each byte as the character that GPT-2's vocabularies write for it."""
    return "".join(_CHARACTERS[byte] for byte in token)


def merges(tokens: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the pairs that byte-pair encoding joins, first things first: the one that makes each token.

    A token is split by the merges of lower rank until two parts are left, which are the pair that it was made from.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return [_last_pair(token, ranks) for token in tokens if len(token) > 1]


def _last_pair(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        joined = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        best = joined.index(min(joined))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def _characters() -> dict[int, str]:
    """GPT-2's mapping: printable bytes of Latin-1 stand for themselves, the others for characters from 256 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


_CHARACTERS = _characters()
