"""Errors in one line, without credentials, whatever was in them."""

from hypothesis import given
from hypothesis import strategies as st

from hf_mabprune.errors import in_words, one_line, without_credentials

WORDS = ["https://", "user:secret@", "user@", "hub.co", "/path", "?token=abc", "&x=1", ";key=k", "hf_" + "a" * 20]
TEXTS = st.lists(st.sampled_from([*WORDS, *" \n@'="]) | st.text(max_size=5), max_size=8).map("".join)
KINDS = [ValueError, KeyError, TypeError, OSError, RuntimeError, RecursionError, MemoryError, ImportError]


@given(TEXTS)
def test_credentials_are_taken_out_once_and_for_all(text: str) -> None:
    once = without_credentials(text)
    assert without_credentials(once) == once


@given(TEXTS, st.sampled_from(KINDS))
def test_any_error_is_one_line(text: str, kind: type[Exception]) -> None:
    assert len(one_line(text).splitlines()) <= 1
    assert len(in_words(kind(text)).splitlines()) == 1 or not text.strip()
