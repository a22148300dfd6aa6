"""What a YAML file may say, and that anything else is one line, soon."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mabprune.config import parse_yaml, read_yaml
from hf_mabprune.config.reader import MAX_BYTES

AS_MANY_AS_FIT = MAX_BYTES - 10
LAUGHS = "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
MERGES = "".join(f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 30))


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("a: 1", {"a": 1}),
        ("a: 1e-4\nb: -2.5\nc: .5", {"a": 1e-4, "b": -2.5, "c": 0.5}),
        ("a: 010\nb: 1:30\nc: 1_000", {"a": "010", "b": "1:30", "c": "1_000"}),
        ("a: 2024-01-01", {"a": "2024-01-01"}),
        ("2024-01-01: a", {"2024-01-01": "a"}),
        ("a: [yes, no, true, null, ~]", {"a": [True, False, True, None, None]}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        ("- &x {b: 1}\n- &y {b: 2, c: 2}\n- {<<: [*x, *y]}", [{"b": 1}, {"b": 2, "c": 2}, {"b": 1, "c": 2}]),
        ('"1": a', {"1": "a"}),
        ("", None),
    ],
)
def test_plain_data_are_read(text: str, content: Any) -> None:
    assert parse_yaml(text, "x.yaml") == content


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "x.yaml, line 3: the key 'a' is there twice"),
        ("a: {b: 1, b: 2}", "the key 'b' is there twice"),
        ("1: a", "a key must be a string, got '1'"),
        ("true: a", "a key must be a string, got 'true'"),
        ("null: a", "a key must be a string"),
        ("~: a", "a key must be a string"),
        ("[a, b]: c", "a key must be a string, got a list or a mapping"),
        ("{a: b}: c", "a key must be a string, got a list or a mapping"),
        ("1.5: c", "a key must be a string"),
        ("a: .nan", "'.nan' is no finite number"),
        ("a: -.inf", "'-.inf' is no finite number"),
        ("a: 1e400", "'1e400' is no finite number"),
        (f"a: {'9' * 5000}", "is no integer that a config can hold"),
        ("a: !!int x", "'x' is no integer"),
        ("a: !!bool x", "'x' is no truth value"),
        ("a: !!python/object/apply:os.system [ls]", "python/object/apply:os.system' is not allowed"),
        ("a: !mine x", "the tag '!mine' is not allowed"),
        ("a: !!binary aGk=", "is not allowed"),
        ("a: !!set {x}", "is not allowed"),
        ("a: 1\n---\nb: 2", "x.yaml, line 2: a second document begins"),
        ("a:\n\tb: 1", "x.yaml, line 2, column 1 is no YAML"),
        ("a: [", "is no YAML"),
        ("a: *b", "undefined alias"),
        ("a: \0", "must be plain text, got the character '\\x00'"),
        ("a: \x1b[31m", "must be plain text, got the character '\\x1b'"),
        ("&a [*a]", "an alias contains itself"),
        ("&a {b: {<<: *a}}", "an alias contains itself"),
        ("a: {<<: 3}", "<< takes mappings"),
        ("a0: &a0 [x, x]\n" + LAUGHS, "it expands to more than"),
        ("a0: &a0 {x: 1}\n" + MERGES, "it expands to more than"),
        ("[" * AS_MANY_AS_FIT, "nested more than 32 levels deep"),
        ("{a: " * 10_000, "nested more than 32 levels deep"),
        ("- " * 100_000, "nested more than 32 levels deep"),
        ("[" + "x," * 400_000 + "]", "more values or aliases than any config"),
        ("\n".join(f"k{n}: &a{n} v" for n in range(20_000)), "more values or aliases than any config"),
        ("x" * (MAX_BYTES + 1), f"must be at most {MAX_BYTES:,} bytes long"),
    ],
    ids=lambda value: value[:30],
)
def test_anything_else_is_one_line(text: str, says: str) -> None:
    start = time.process_time()
    with pytest.raises(ValueError) as error:
        parse_yaml(text, "x.yaml")
    assert time.process_time() - start < 5, "no text keeps the reader busy"
    assert says in str(error.value)
    assert str(error.value).startswith("x.yaml") and "\n" not in str(error.value) and len(str(error.value)) < 300


def faults_of_files(folder: Path) -> dict[str, Path]:
    """Files that are none, or no config, by what is wrong with them."""
    (folder / "latin").write_bytes("a: é".encode("latin-1"))
    (folder / "wide").write_bytes("a: 1".encode("utf-16"))
    (folder / "list").write_text("- a")
    (folder / "empty").touch()
    with (folder / "huge").open("wb") as file:
        file.truncate(10**9)
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to(folder / "loop")
    return {
        **{name: folder / name for name in ("latin", "wide", "list", "empty", "huge", "fifo", "loop", "none")},
        "folder": folder,
        "device": Path("/dev/zero"),
    }


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("latin", "this is no text in UTF-8"),
        ("wide", "this is no text in UTF-8"),
        ("list", "must hold a mapping of settings, got ['a']"),
        ("empty", "must hold a mapping of settings, got an empty file"),
        ("huge", "bytes long: it is no config"),
        ("fifo", "is no regular file: give a YAML file"),
        ("device", "is no regular file: give a YAML file"),
        ("folder", "is a folder: give a YAML file"),
        ("none", "paths are relative to"),
        ("loop", "loop"),
    ],
)
def test_what_is_no_file_of_settings_is_named(fault: str, says: str, tmp_path: Path) -> None:
    path = faults_of_files(tmp_path)[fault]
    with pytest.raises((ValueError, OSError)) as error:
        read_yaml(path)
    assert says in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 1}


PIECES = st.sampled_from(
    [
        *"[]{}:,-?&*!|>%@`'\"#\n\t ~<=.0a",
        "- ",
        ": ",
        "? ",
        "&a ",
        "*a",
        "<<: ",
        "!!int ",
        "---\n",
        "...\n",
        "1e9",
        "  ",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=60).map("".join)))
def test_any_text_is_data_or_one_line(text: str) -> None:
    try:
        parse_yaml(text, "x.yaml")
    except ValueError as error:
        assert str(error).startswith("x.yaml") and "\n" not in str(error)
