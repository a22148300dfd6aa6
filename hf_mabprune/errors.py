"""What comes from outside and cannot be used, in one line: what, where, remedy; and no credentials in it.

Files, configs, data sets, memory, the network: whatever they raise passes through here on its way to a person.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

USER_INFO = re.compile(r"(?P<scheme>\b[a-zA-Z][\w+.-]*://)[^\s/?#@'\"]*@")
SECRET = re.compile(
    r"(?P<name>[?&;][\w.~%-]*(?:token|secret|passw|pwd|key|sig|auth|credential|session)[\w.~%-]*=)[^\s&;#'\"]+", re.I
)
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b")


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
    return f"{type(error).__name__}{f': {text}' if text else ''}"


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether memory ran out, on the machine or on a device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)


def one_line(text: str) -> str:
    """Joins the lines of a text, which a log would tear apart, and takes credentials out of it."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return without_credentials("; ".join(filter(None, lines)))


def without_credentials(text: str) -> str:
    """Gives a text without the user names, passwords and tokens in its addresses."""
    text = USER_INFO.sub(r"\g<scheme>", text)
    return HUB_TOKEN.sub("hf_***", SECRET.sub(r"\g<name>***", text))
