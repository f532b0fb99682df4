"""What a good error is: upstream's own where upstream has one, else one sentence that names what is wrong."""

from __future__ import annotations

from collections.abc import Callable


def error_of(call: Callable[[], object]) -> Exception:
    """Return the exception that `call` raises."""
    try:
        call()
    except Exception as error:  # noqa: BLE001  whatever it raises is the result
        return error
    raise AssertionError("no error was raised")


def assert_same_error(ours: Callable[[], object], theirs: Callable[[], object]) -> None:
    """Both calls raise the same exception with the same message."""
    expected, actual = error_of(theirs), error_of(ours)
    assert type(actual) is type(expected), actual
    assert str(actual) == str(expected)


def assert_one_sentence(error: Exception, *named: object) -> None:
    """The message is one line, of bearable length, that names what is wrong."""
    message = str(error)
    assert len(message.splitlines()) == 1, message
    assert len(message) < 600, message
    for name in named:
        assert str(name) in message
