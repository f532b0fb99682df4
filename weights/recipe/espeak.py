"""Speech by espeak-ng through its C library, with the sample at which each word and each phoneme starts."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

LIBRARY = "libespeak-ng.so.1"

# espeak-ng/speak_lib.h
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_PHONEME_EVENTS = 1
EVENT_LIST_TERMINATED, EVENT_WORD, EVENT_PHONEME = 0, 1, 7
PARAMETER_RATE, PARAMETER_VOLUME, PARAMETER_PITCH, PARAMETER_RANGE = 1, 2, 3, 4
POSITION_CHARACTER = 1
CHARS_UTF8 = 1


class EspeakMissingError(RuntimeError):
    """espeak-ng's library is not installed."""


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Voice:
    """How a sentence is spoken: espeak-ng's voice name, words per minute, pitch and its range (0 to 100)."""

    name: str
    rate: int
    pitch: int
    range: int


@dataclass(frozen=True)
class Speech:
    """What espeak-ng said.

    Attributes
    ----------
    samples : np.ndarray, dtype = int16
        At `Espeak.sample_rate`.
    word_samples : dict of int to int
        First sample of a word, by the position of its first character in the text. Some short words are
        spoken as one with the word before and have no entry.
    phonemes : list of (str, int)
        Name and first sample of each.
    """

    samples: np.ndarray
    word_samples: dict[int, int]
    phonemes: list[tuple[str, int]]


class Espeak:
    """The library, initialised once per process.

    Raises
    ------
    EspeakMissingError
        If the library is not installed.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise EspeakMissingError(
                f"{LIBRARY} cannot be loaded: install espeak-ng, for example by `apt-get install espeak-ng`."
            ) from error
        self.sample_rate: int = self._library.espeak_Initialize(
            AUDIO_OUTPUT_SYNCHRONOUS, 0, None, INITIALIZE_PHONEME_EVENTS
        )
        self._library.espeak_Info.restype = ctypes.c_char_p
        self.version: str = self._library.espeak_Info(None).decode().split()[0]
        self._callback = _Callback(self._receive)  # the library keeps no reference of its own
        self._library.espeak_SetSynthCallback(self._callback)
        self._voice: str | None = None
        self._chunks: list[bytes] = []
        self._words: dict[int, int] = {}
        self._phonemes: list[tuple[str, int]] = []

    def say(self, text: str, voice: Voice) -> Speech:
        """Speak a text.

        Raises
        ------
        ValueError
            If espeak-ng has no voice of that name.
        """
        self._chunks, self._words, self._phonemes = [], {}, []
        if voice.name != self._voice:
            if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
                raise ValueError(f"espeak-ng {self.version} has no voice {voice.name!r}.")
            self._voice = voice.name
        for parameter, value in (
            (PARAMETER_RATE, voice.rate),
            (PARAMETER_VOLUME, 100),
            (PARAMETER_PITCH, voice.pitch),
            (PARAMETER_RANGE, voice.range),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None)
        return Speech(np.frombuffer(b"".join(self._chunks), np.int16), self._words, self._phonemes)

    def _receive(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]) -> int:
        if count > 0 and samples:
            self._chunks.append(ctypes.string_at(samples, count * 2))
        i = 0
        while events[i].type != EVENT_LIST_TERMINATED:
            event = events[i]
            if event.type == EVENT_WORD and event.length > 0:
                self._words[event.text_position - 1] = event.sample
            elif event.type == EVENT_PHONEME:
                self._phonemes.append((event.id.string.decode("utf8", "replace"), event.sample))
            i += 1
        return 0
