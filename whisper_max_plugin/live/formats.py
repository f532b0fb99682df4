"""Recognises raw PCM and WAV of the samples that Whisper takes by their first bytes, and refuses what is neither."""

from __future__ import annotations

import struct
from typing import NamedTuple

from whisper.audio import SAMPLE_RATE

from whisper_max_plugin.errors import LiveInputError

PCM_FORMATS = (1, 0xFFFE)  # of the chunk "fmt ": WAVE_FORMAT_PCM, WAVE_FORMAT_EXTENSIBLE
UNKNOWN_SIZE = 0x7FFF0000  # above it, or zero, a size is what its writer did not know yet
# FLAC, Ogg, MP3 with a tag, Matroska, AIFF, CAF, AU, WavPack, AMR, a WAV beyond 4 GB, and a zip, as checkpoints are
OTHER_FORMATS = (
    *(b"fLaC", b"OggS", b"ID3", b"\x1aE\xdf\xa3", b"FORM", b"caff"),
    *(b".snd", b"wvpk", b"#!AMR", b"RF64", b"PK\x03\x04"),
)
BY_FFMPEG = "ffmpeg -i … -f s16le -ac 1 -ar 16000 - | whisper-max live --input -"

MP3_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # of MPEG-1, by their number
MP3_KBITS_OF_LOW_RATES = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
MP3_RATES = (44100, 48000, 32000)


class Place(NamedTuple):
    """Where samples lie in an input; without an `end`, they are all that follows."""

    begin: int
    end: int | None = None


def find_samples(head: bytes, name: str) -> Place | None:
    """Return where 16-bit samples lie in an input that begins with `head`; None if that is too short to tell.

    Raises
    ------
    LiveInputError
        if it is of another format, or a WAV of other samples
    """
    if len(head) < 12:
        return None
    frame = _frame_bytes(head)
    if frame is not None and len(head) < frame + 4:
        return None
    if (
        head.startswith(OTHER_FORMATS)
        or head[4:8] == b"ftyp"
        or (head.startswith(b"RIFF") and head[8:12] != b"WAVE")
        or (frame is not None and _have_one_format(head, head[frame:]))
    ):
        raise LiveInputError(f"{name} is neither WAV nor raw PCM: {BY_FFMPEG}")
    return _in_wav(head, name) if head.startswith(b"RIFF") else Place(0)


def _in_wav(head: bytes, name: str) -> Place | None:
    (of_all,) = struct.unpack_from("<I", head, 4)
    position = 12
    while len(head) >= position + 8:
        kind, size = struct.unpack_from("<4sI", head, position)
        position += 8
        if kind == b"data":
            # A size counts if its writer knew of other chunks behind it; what is still being written may have any.
            is_known = 0 < size < UNKNOWN_SIZE and position + size + size % 2 < of_all + 8 < UNKNOWN_SIZE
            return Place(position, position + size if is_known else None)
        if kind == b"fmt " and len(head) >= position + 16:
            encoding, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", head, position)
            if encoding not in PCM_FORMATS or (channels, rate, bits) != (1, SAMPLE_RATE, 16):
                facts = f"{bits} bits, {rate} Hz and {channels} channels"
                raise LiveInputError(f"{name} is a WAV file of {facts}, not of 16-bit PCM, 16000 Hz and 1: {BY_FFMPEG}")
        position += size + size % 2
    return None


def _frame_bytes(head: bytes) -> int | None:
    """Return how long the frame of MP3 or AAC (ADTS) is that `head` may begin with; None if it begins with none."""
    if head[0] != 0xFF:
        return None
    if head[1] & 0xF6 == 0xF0 and head[2] >> 2 & 15 < 13:
        return (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    version, layer, of_rate, of_bits = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 2 & 3, head[2] >> 4
    if head[1] < 0xE0 or version == 1 or layer != 1 or of_rate == 3 or of_bits in (0, 15):
        return None
    kbits = (MP3_KBITS if version == 3 else MP3_KBITS_OF_LOW_RATES)[of_bits]
    rate = MP3_RATES[of_rate] >> {3: 0, 2: 1, 0: 2}[version]  # of MPEG-1, 2 and 2.5
    return (144 if version == 3 else 72) * 1000 * kbits // rate + (head[2] >> 1 & 1)


def _have_one_format(frame: bytes, next_frame: bytes) -> bool:
    """Tell whether two frames are of the same stream, as what happens to look like one is not followed by another."""
    is_one = _frame_bytes(next_frame[:4] + bytes(8)) is not None
    return is_one and all(frame[i] & mask == next_frame[i] & mask for i, mask in enumerate((0xFF, 0xFE, 0x0C)))
