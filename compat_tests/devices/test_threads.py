"""torch's threads while graphs decode: one inside the loop, all of them outside and in fallbacks."""

from __future__ import annotations

import inspect
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import whisper
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from whisper_max_plugin.execution.threads import OneTorchThread, all_torch_threads, torch_threads

from ..conftest import Pair

MEL = torch.zeros(80, 3000)
OPTIONS = whisper.DecodingOptions(language="en", fp16=False, sample_len=3)
THREADS = 3  # a number that neither a default nor the limit gives
SHARED = 32768  # values, of which torch gives each thread as many (at::internal::GRAIN_SIZE)


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    """Set a thread count, and the machine's own again."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def seen(nano: Pair) -> Iterator[list[int]]:
    """The thread counts at each call of the decoder."""
    counts: list[int] = []
    handle = nano.max.decoder.register_forward_pre_hook(lambda *_: counts.append(torch.get_num_threads()))
    yield counts
    handle.remove()


def test_a_decode_keeps_torch_on_one_thread_and_gives_the_others_back(nano: Pair, seen: list[int]) -> None:
    nano.max.decode(MEL, OPTIONS)
    assert set(seen) == {1}
    assert torch.get_num_threads() == THREADS


def test_a_decode_that_fails_gives_the_threads_back(nano: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        assert torch.get_num_threads() == 1
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(nano.max.decoder), "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        nano.max.decode(MEL, OPTIONS)
    assert torch.get_num_threads() == THREADS


def test_a_loop_written_by_hand_is_limited_until_its_hooks_are_removed(nano: Pair) -> None:
    _, hooks = nano.max.install_kv_cache_hooks()
    assert torch.get_num_threads() == 1
    for hook in hooks:
        hook.remove()
        hook.remove()  # as upstream's hooks, which do not mind
    assert torch.get_num_threads() == THREADS


def test_hooks_that_nobody_removes_are_removed_with_the_last_reference(nano: Pair) -> None:
    _, hooks = nano.max.install_kv_cache_hooks()
    del hooks
    assert torch.get_num_threads() == THREADS


def test_who_sets_the_threads_before_the_hooks_are_removed_keeps_them(nano: Pair) -> None:
    _, (hook,) = nano.max.install_kv_cache_hooks()
    try:
        torch.set_num_threads(THREADS + 1)
        hook.remove()
        assert torch.get_num_threads() == THREADS + 1
    finally:
        torch.set_num_threads(THREADS)


def test_upstreams_own_decode_is_limited_too(nano: Pair, seen: list[int]) -> None:
    inspect.unwrap(whisper.decode)(nano.max, MEL, OPTIONS)
    assert set(seen) == {1}
    assert torch.get_num_threads() == THREADS


class Shared(TorchDispatchMode):
    """Notes torch's operations that make so many values that its threads share them."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        if isinstance(result, Tensor) and result.numel() > SHARED and result.untyped_storage().data_ptr() not in read:
            self.names.append(str(func))
        return result


def test_a_window_starts_no_threads_of_torch_which_would_hold_the_cores_while_graphs_run(nano: Pair) -> None:
    recording = torch.zeros(80, 4000)
    with Shared() as shared:
        features = nano.max.encoder(recording[None, :, 500:3500])  # a window, which lies in pieces
        nano.max.decoder(torch.tensor([[50258]]), features)
    assert shared.names == []
    with shared:
        recording[None, :, 500:3500].clone()
    assert shared.names == ["aten.clone.default"]


@pytest.mark.falls_back
def test_a_pass_that_falls_back_has_all_threads(nano: Pair) -> None:
    counts: list[int] = []
    handle = nano.max.decoder.blocks[0].mlp.register_forward_hook(lambda *_: counts.append(torch.get_num_threads()))
    try:
        nano.max.decode(MEL, OPTIONS)
    finally:
        handle.remove()
    assert set(counts) == {THREADS}
    assert torch.get_num_threads() == THREADS


def test_decodes_that_overlap_in_two_threads_leave_the_count_as_it_was() -> None:
    inside, leave = threading.Event(), threading.Event()
    counts: list[int] = []

    def decode() -> None:
        with OneTorchThread():
            inside.set()
            leave.wait(10)
        counts.append(torch.get_num_threads())

    other = threading.Thread(target=decode)
    other.start()
    inside.wait(10)
    with OneTorchThread():
        assert torch.get_num_threads() == 1
        leave.set()
        other.join()
    assert counts == [THREADS]
    assert torch.get_num_threads() == THREADS


def test_a_decode_inside_another_leaves_the_limit_to_it() -> None:
    with OneTorchThread():
        with OneTorchThread():
            pass
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == THREADS


def test_without_a_decode_there_is_nothing_to_lift() -> None:
    with all_torch_threads():
        assert torch.get_num_threads() == THREADS
    assert torch.get_num_threads() == THREADS


def test_a_thread_that_begins_during_a_decode_keeps_all_threads_and_takes_none_from_others() -> None:
    inside, go_on, limited, done = (threading.Event() for _ in range(4))
    counts: list[int] = []

    def begin_and_decode_later() -> None:
        counts.append(torch.get_num_threads())
        inside.set()
        go_on.wait(10)
        with OneTorchThread():
            limited.set()
            done.wait(10)
        counts.append(torch.get_num_threads())

    with OneTorchThread():
        other = threading.Thread(target=begin_and_decode_later)
        other.start()
        inside.wait(10)
    go_on.set()
    limited.wait(10)
    with OneTorchThread():
        done.set()
        other.join()
    later = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert counts == [THREADS] * 3
    assert torch.get_num_threads() == THREADS


def test_hooks_that_another_thread_removes_leave_the_limit_to_the_next_decode() -> None:
    """Nothing else reaches a thread's own number of threads."""
    counts: list[int] = []

    def decode_twice() -> None:
        limit = OneTorchThread()
        remover = threading.Thread(target=limit.remove)
        remover.start()
        remover.join()
        counts.append(torch.get_num_threads())
        assert torch_threads() == THREADS
        with OneTorchThread():
            counts.append(torch.get_num_threads())
        counts.append(torch.get_num_threads())

    decoding = threading.Thread(target=decode_twice)
    decoding.start()
    decoding.join()
    assert counts == [1, 1, THREADS]


@pytest.mark.parametrize(("module", "name"), [(torch, "set_num_threads"), (threading, "Thread")])
def test_a_decode_that_is_interrupted_as_it_begins_gives_the_threads_back(
    module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = getattr(module, name), itertools.count()

    def interrupted(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        if next(calls) == 0:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        OneTorchThread()
    assert torch.get_num_threads() == THREADS


def test_of_a_decode_that_is_interrupted_as_it_ends_the_next_one_gives_them_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(_n: int) -> None:
        raise KeyboardInterrupt

    limit = OneTorchThread()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "set_num_threads", interrupted)
        with pytest.raises(KeyboardInterrupt):
            limit.remove()
    with OneTorchThread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == THREADS


def test_hooks_of_a_thread_that_has_ended_are_not_taken_for_those_of_another() -> None:
    """The system gives the number of a thread that has ended to the next one."""
    kept: list[OneTorchThread] = []
    counts: list[int] = []

    def begin() -> None:
        kept.append(OneTorchThread())

    def remove_and_decode() -> None:
        kept.pop().remove()
        with OneTorchThread():
            counts.append(torch.get_num_threads())
        counts.append(torch.get_num_threads())

    for work in [begin, remove_and_decode] * 5:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert counts == [1, THREADS] * 5
