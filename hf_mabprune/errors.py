"""What comes from outside and cannot be used, in one line: what, where, remedy; and no credentials in it.

Files, configs, data sets, memory, the network: whatever they raise passes through here on its way to a person.
"""

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CUT = "***"
# Percent signs of an address inside an address may be encoded themselves, so %(?:25)*.
AT, AND, IS = r"%(?:25)*40", r"%(?:25)*26", r"%(?:25)*3D"
SCHEME = r"(?:\b[a-z][\w+.-]{1,30}:/{1,3}|/{2,3})"  # paths make one slash of two; C:/ is a drive
WORD = r"(?:[^\s&\"'<>]|['\"](?=\w))"  # of a value in an address; a quote within it is a part of it
FIELDS = (
    r"[\w-]{0,30}?(?:passw(?:or)?d|passphrase|pwd|secret|(?:api|access|account|private|shared[_-]?access)[_-]?key"
    r"|shared[_-]?access[_-]?signature|(?:auth|access|refresh|session|id|security|hf|hub|api|bearer|github)[_-]?token)"
    r"|x-[\w-]{0,30}?(?:key|token|auth)[\w-]{0,30}|(?:set-)?cookie"
)
QUERY = (
    "token|secret|pass|pwd|key|sig|auth|cred|session|jwt|sas|code|policy|cookie|bearer|ticket|otp|user|login|access"
    "|hash|hmac|x-(?:amz|goog|ms|oss|cos)-"
)
VALUE = r"(?!None\b|null\b|True\b|False\b)(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s\"',;&)}\]]+)"
CREDENTIALS = [
    # A password may hold any sign, so it ends at the last @ of the word; what follows the colon of a port is none.
    (rf"(?P<kept>{SCHEME})[^\s/?#:@]*:(?!\d+(?:[/?#\s]|$)|\s|//)(?:(?:(?!://)\S)*@|(?:(?!://)[^\n@])*@)", f"{CUT}@"),
    (rf"(?P<kept>{SCHEME})[^\s/?#]*@", f"{CUT}@"),
    (rf"(?P<kept>%(?:25)*3A(?:%(?:25)*2F){{2}})(?:(?!%(?:25)*(?:2F|3F|23))[^\s&/])*{AT}", f"{CUT}%40"),
    (r"(?<![\w/:@*.+~%-])(?P<kept>)[\w.+~%-]{1,100}:(?![\s/*])\S{1,300}@(?=[\w\[])", f"{CUT}@"),
    (
        rf"(?P<kept>(?:[?&;#]|%(?:25)*(?:3F|26|23))[\w.~-]{{0,60}}?(?:{QUERY})[\w.~-]{{0,60}}(?:=|{IS}))(?:(?!{AND}){WORD})+",
        CUT,
    ),
    (
        r"(?P<kept>\b(?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?(?:digest|aws4[\w-]*)\s)[^\n]+",
        CUT,
    ),
    (
        r"(?P<kept>\b(?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|token|negotiate|apikey)\s+)?)"
        r"(?!(?:digest|aws4[\w-]*|bearer|basic|token|negotiate|apikey)\s)[^\s\"',;)}]+",
        CUT,
    ),
    (r"(?P<kept>\bbearer\s+)[\w.~+/=-]{8,}", CUT),
    (r"(?P<kept>\bbasic\s+)(?=[a-z]*(?-i:[A-Z0-9+/=]))[\w+/]{8,}={0,2}", CUT),
    (rf"(?P<kept>(?<![\w-])(?:{FIELDS})(?:[\"']?\s*[:=]\s*|%(?:25)*3D)){VALUE}", CUT),
    (rf"(?P<kept>(?<![\w-])(?:token=|[\"']token[\"']\s*:\s*)){VALUE}", CUT),
    (r"(?<![a-z0-9])(?P<kept>hf_|gh[opusr]_|github_pat_|glpat-|sk-|xox[a-z]-)[\w-]{16,}", CUT),
    (r"\b(?P<kept>(?-i:AKIA|ASIA))(?-i:[A-Z0-9]{16})\b", CUT),
    (r"\b(?P<kept>eyJ)[\w-]{6,}\.[\w-]{6,}\.[\w-]*", CUT),
]
PATTERNS = [(re.compile(pattern, re.I), rf"\g<kept>{cut}") for pattern, cut in CREDENTIALS]
LOST = re.compile(rf"{re.escape(CUT)}(?:@|%40)|(?:=|{IS}){re.escape(CUT)}", re.I)
UNHASHABLE = re.compile(r"unhashable type: '(?P<kind>\w+)'")
TYPE = re.compile(r"<class '(?P<name>[\w.]+)'>")  # as Python shows it


class OutsideError(ValueError):
    """Something from outside cannot be used; the message is one line for the person who gave it."""


@contextmanager
def outside(what: str, remedy: str = "") -> Iterator[None]:
    """Turns any error of what comes from outside into an `OutsideError` of one line.

    Args:
        what: What is used in the context and cannot be, e.g. "data/train.csv cannot be read".
        remedy: What to do about it, e.g. "save it again".

    Raises:
        OutsideError: For every exception but those that are of one line already, and those that are no errors.
    """
    try:
        yield
    except OutsideError:
        raise
    except Exception as error:
        raise OutsideError(f"{what}: {in_words(error)}{f'; {remedy}' if remedy else ''}") from error


def in_words(error: BaseException) -> str:
    """Says in one line what an exception means; its type where that says more than its text."""
    text = one_line(str(error))
    if isinstance(error, KeyError):
        return f"there is no {text}"
    if isinstance(error, UnicodeError):
        return f"this is no text in UTF-8 ({text})"
    if isinstance(error, OSError) and error.strerror:
        return one_line(": ".join(filter(None, [str(error.filename or ""), error.strerror])))
    if is_out_of_memory(error):
        return f"there is not enough memory ({text})" if text else "there is not enough memory"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, (ValueError, OSError, ImportError)) and text:
        return text
    if unhashable := UNHASHABLE.search(text):
        return f"a {unhashable['kind']} stands where a name or a number should"
    return f"{type(error).__name__}{f': {text}' if text else ''}"


def kind_of(value: Any) -> str:
    """Says what kind of thing was given where another is wanted: the name of its class, or None."""
    return "None" if value is None else type(value).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether memory ran out, on the machine or on a device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)


def one_line(text: str) -> str:
    """Joins the lines of a text, which a log would tear apart, and takes credentials and unseen signs out of it."""
    lines = (" ".join(printable(line).split()) for line in text.splitlines())
    return without_credentials(TYPE.sub(r"\g<name>", "; ".join(filter(None, lines))))


def beginning(text: str, longest: int) -> str:
    """Gives a text, or of a long one the beginning, with a sign that it goes on."""
    return text if len(text) <= longest else f"{text[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def printable(text: str) -> str:
    """Gives a text on one line without signs that a reader cannot see: control codes, turns of direction, halves of
    characters. They could hide what the text says, or steer a terminal.
    """
    return "".join(_seen(sign) for sign in text)


def _seen(sign: str) -> str:
    """Gives a space for what breaks a line, and a mark for what else cannot be seen."""
    if sign.isspace():
        return " "
    return "\N{REPLACEMENT CHARACTER}" if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Co", "Cn") else sign


def without_credentials(text: str) -> str:
    """Gives a text with a mark in the place of user names, passwords and tokens: those in addresses and headers."""
    for pattern, cut in PATTERNS:
        text = pattern.sub(cut, text)
    return text


def without_credentials_in(value: Any) -> Any:
    """Gives nested data in whose texts the credentials are cut."""
    if isinstance(value, dict):
        return {without_credentials_in(name): without_credentials_in(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(without_credentials_in, value))
    return without_credentials(value) if isinstance(value, str) else value


def lost_credentials(address: str) -> bool:
    """Tells whether credentials were cut from an address, which then leads nowhere."""
    return LOST.search(address) is not None
