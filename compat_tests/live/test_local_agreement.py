"""The policy LocalAgreement-2, on hypotheses without a model: what is confirmed, and that it stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from whisper_max_plugin.live.local_agreement import LocalAgreement, Word


def words(text: str, start: float = 0.0) -> list[Word]:
    """Words of half a second each."""
    return [Word(start + index / 2, start + index / 2 + 0.5, f" {word}") for index, word in enumerate(text.split())]


def text(of: list[Word]) -> str:
    return "".join(word.text for word in of).strip()


def test_what_two_hypotheses_in_a_row_begin_with_is_confirmed() -> None:
    policy = LocalAgreement()
    assert policy.insert(words("ask not")) == []
    assert text(policy.insert(words("ask not what you"))) == "ask not"
    assert text(policy.insert(words("ask not what your country"))) == "what"
    assert text(policy.confirmed) == "ask not what"
    assert text(policy.pending) == "your country"


def test_what_only_every_second_hypothesis_has_is_not() -> None:
    policy = LocalAgreement()
    for hypothesis in ("a b", "a c", "a b", "a c"):
        policy.insert(words(hypothesis))
    assert text(policy.confirmed) == "a"


def test_a_later_hypothesis_does_not_change_what_is_confirmed() -> None:
    policy = LocalAgreement()
    policy.insert(words("I scream for"))
    policy.insert(words("I scream for"))
    assert policy.insert(words("ice cream for everybody")) == []
    assert text(policy.insert(words("ice cream for everybody"))) == "everybody"
    assert text(policy.confirmed) == "I scream for everybody"


def test_words_that_a_hypothesis_repeats_are_not_confirmed_twice() -> None:
    policy = LocalAgreement()
    policy.insert(words("one two three"))
    policy.insert(words("one two three"))
    late = words("two three four five", start=1.45)  # 0.95 s later than before
    policy.insert(late)
    policy.insert(late)
    assert text(policy.confirmed) == "one two three four five"


def test_a_word_that_is_said_again_is_confirmed_again() -> None:
    policy = LocalAgreement()
    for hypothesis in (words("no"), words("no"), words("no") + words("no", 3), words("no") + words("no", 3)):
        policy.insert(hypothesis)
    assert policy.confirmed == words("no") + words("no", 3)


def test_the_rest_is_confirmed_at_the_end() -> None:
    policy = LocalAgreement()
    policy.insert(words("the end"))
    assert text(policy.finish()) == "the end"
    assert policy.finish() == policy.pending == []


def test_words_of_which_no_other_hypothesis_will_come_are_confirmed() -> None:
    policy = LocalAgreement()
    policy.insert(words("a b c d"))
    assert text(policy.confirm_until(1.2)) == "a b"
    assert policy.end == 1.0
    assert text(policy.insert(words("c d e", start=1.0))) == "c d"


hypotheses = st.lists(st.lists(st.sampled_from(["a", "b", "c"]), max_size=6).map(" ".join), max_size=12)
starts = st.floats(0, 20)


@given(st.lists(st.tuples(st.sampled_from(["insert", "until", "finish"]), hypotheses, starts), max_size=12))
def test_confirmed_words_are_a_prefix_of_every_later_confirmed_words(steps: list) -> None:
    policy = LocalAgreement()
    before: list[Word] = []
    for step, texts, start in steps:
        if step == "insert":
            told = [word for one in texts for word in policy.insert(words(one, start))]
        else:
            told = policy.confirm_until(start) if step == "until" else policy.finish()
        assert policy.confirmed == before + told
        before = [*policy.confirmed]


@given(hypotheses)
def test_every_confirmed_word_was_at_its_place_in_two_hypotheses_in_a_row(texts: list[str]) -> None:
    policy = LocalAgreement()
    given_so_far: list[list[str]] = []
    for one in texts:
        given_so_far.append([word.text for word in words(one)])
        for word in policy.insert(words(one)):
            assert all(word.text in hypothesis for hypothesis in given_so_far[-2:])
            assert len(given_so_far) >= 2
