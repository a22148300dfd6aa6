"""What people read of what went wrong outside: one line, and nothing secret in it."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_mabprune.errors import (
    OutsideError,
    in_words,
    lost_credentials,
    one_line,
    outside,
    printable,
    without_credentials,
    without_credentials_in,
)

SECRET = "s3cretPW"
HUB_TOKEN = "hf_" + "aB3" * 11

LEAKS = [
    "https://me:{}@host.org/d/t.json",
    "https://{}@host.org/d/t.json",
    "https://:{}@host.org/d",
    "HTTPS://ME:{}@HOST",
    "https://me:p@ss/{}#x@host/x",
    "https://me:{}?a@host/x",
    "https://me:my {}@host/x",
    "https://u:{}'{}@h/x",
    "https://u:%40{}%2F@h/x",
    "ftp://u:{}@[::1]/x",
    "postgres://u:12345{}@h/db",
    "s3://key:{}@bucket/x",
    "//u:{}@host/x",
    "no file https:/me:{}@host/a.py",
    "/work/https:/{}@host/a.py",
    "zip://a.csv::https://u:{}@h/x.zip",
    "[https://u:{}@h,https://u:{}@h2]",
    "git clone me:{}@host:repo",
    "me:{}x@{}@host/x",
    "https%3A%2F%2Fme%3A{}%40host%2Fx",
    "https%253A%252F%252Fme%253A{}%2540host",
    "https://h/x?a=1&token={}&b=2",
    "https://h/x#access_token={}",
    "https://h/x;token={}",
    "/x?X-Amz-Signature={}&X-Amz-Credential={}/a",
    "https://a.blob.core.windows.net/c/b?sv=1&sig={}%2B%3D&se=2",
    "redirect?url=https%3A%2F%2Fh%2Fx%3Ftoken%3D{}%26a=1",
    "Authorization: Bearer {}",
    "authorization: Basic {}==",
    "{{'Authorization': 'Bearer {}'}}",
    'Authorization: Digest username="u", response="{}"',
    "Authorization: AWS4-HMAC-SHA256 Credential=A/b, Signature={}",
    "Proxy-Authorization: {}",
    "X-Api-Key: {}",
    "Cookie: a={}",
    "AccountName=x;AccountKey={}==;EndpointSuffix=y",
    "AWS_SECRET_ACCESS_KEY={}",
    "password={}",
    "'password': '{} {}'",
    '"api_key": "{}"',
    "HTTP_PROXY=http://u:{}@proxy:8080 fails",
]


@pytest.mark.parametrize("leak", LEAKS)
def test_secrets_are_cut(leak: str) -> None:
    text = without_credentials(leak.format(SECRET, SECRET))
    assert SECRET not in text and "***" in text
    assert without_credentials(text) == text, "cutting twice is cutting once"
    assert SECRET not in one_line(f"data/x cannot be read: {leak.format(SECRET, SECRET)} (404)\nagain")


@pytest.mark.parametrize(
    "token", [HUB_TOKEN, "ghp_" + "a1" * 16, "sk-" + "a1" * 16, "AKIA" + "A1" * 8, "eyJhbGciOi.eyJzdWIiOi.c2ln"]
)
def test_tokens_are_known_by_their_form(token: str) -> None:
    assert token not in without_credentials(f"401 for {token}, log in")


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/path@v1",
        "https://h/x?rows=100&page=2",
        "https://h/x: no such host",
        "hf://datasets/me/x@main/file.csv",
        "git@github.com:owner/repo",
        "data/*/a@b.csv",
        "C:\\data\\x",
        "C:/data/a@b.csv",
        "models/bert cannot be loaded: key 'x'",
        "set tokenizer.pad_token = tokenizer.eos_token",
        "token ids must be below 12, the model's vocabulary, got 15",
        "pushing needs a token, and it is missing: run `hf auth login`, or set HF_TOKEN",
        "layout uniform needs the same number of key-value heads in every layer, got [1, 2]",
        "unknown key 'search.raunds'. Did you mean 'search.rounds'?",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_credentials(text) == text == one_line(text)


WORD = st.text("abcXYZ019%!$*'()+=.,~-", min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(user=WORD, secret=st.text(st.characters(min_codepoint=33, max_codepoint=255), min_size=4, max_size=30))
def test_no_password_of_an_address_is_left(user: str, secret: str) -> None:
    assume("://" not in secret and not secret[0].isdigit() and not secret.startswith("/"))
    assume(not any(sign.isspace() for sign in secret))  # which no address can hold
    marked = f"{secret}S3CRET"
    assert "S3CRET" not in without_credentials(f"cannot open 'https://{user}:{marked}@host/x': 403")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300) | st.lists(st.sampled_from([*LEAKS, "://", "@", "a:", "?token="])).map("".join))
def test_cutting_ends_and_is_done_once(text: str) -> None:
    cut = one_line(text)
    assert "\n" not in cut and cut.isprintable()
    assert without_credentials(without_credentials(cut)) == without_credentials(cut)


@pytest.mark.parametrize(
    "text", ["a.-" * 50_000, "a://b:" * 20_000, "?token" * 20_000, "/" * 100_000, "a:a," * 40_000]
)
def test_long_texts_are_no_matter(text: str) -> None:
    without_credentials(text)  # ends


def test_nested_data_keep_their_form() -> None:
    given = {"a": ["https://u:p@h/x", 3, None], "b": {"c": (True, "x")}}
    assert without_credentials_in(given) == {"a": ["https://***@h/x", 3, None], "b": {"c": (True, "x")}}


def test_an_address_that_lost_its_credentials_is_known() -> None:
    for leak in [*LEAKS[:5], "https://h/x?a=1&token={}&b=2"]:
        assert lost_credentials(without_credentials(leak.format(SECRET, SECRET)))
    assert not lost_credentials("data/***/a.csv") and not lost_credentials("https://h/x?rows=3")


def test_what_cannot_be_seen_is_marked() -> None:
    assert printable("a\x1b[31m\u202eb\u2028c\td\udc80") == "a�[31m�b c d�"
    assert one_line("  one\r\n two\x0b\x0cthree\u2029") == "one; two; three"


def test_errors_from_outside_are_one_line_without_secrets() -> None:
    with pytest.raises(OutsideError) as error, outside("data/x.csv cannot be read", "look at it"):
        raise KeyError(f"https://u:{SECRET}@h\nline two")
    assert str(error.value) == "data/x.csv cannot be read: there is no 'https://***@h\\nline two'; look at it"
    assert in_words(RecursionError("x")) == "it is nested too deeply"
    assert SECRET not in in_words(OSError(2, "No such file", f"https://u:{SECRET}@h/x"))
