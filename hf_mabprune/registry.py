"""Finds components by name: every open folder (architectures, tasks, policies, ...) has one registry.

A file in an open folder registers what it defines with a decorator. The folder is imported on first use, so adding a
component is adding one file. A plugin, a module from elsewhere, does the same (`plugins.py`).
"""

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from hf_mabprune.errors import beginning, one_line
from hf_mabprune.plugins import load_installed

UNKNOWN = (
    "unknown {kind} '{name}'.{nearest} Known: {known}; one of a plugin needs --plugin FILE (in Python: import it "
    "first)"
)
PLAIN = {str, bool, int, float, type(None)}
T = TypeVar("T")


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Says `" Did you mean 'x'?"` for the closest known word, with a prefix, or nothing where none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{prefix}{close[0]}'?" if close else ""


class Registry(Generic[T]):
    """Holds the named components of one kind, found in the modules of one package.

    Args:
        kind: Word for an entry in messages, e.g. `"policy"`.
        package: Dotted name of the open folder; its modules are imported on first look-up, and after them the plugins
            of installed packages.
        unknown: Message for a name that is not there, a format of `kind`, `name`, `nearest` and `known`.
    """

    def __init__(self, kind: str, package: str, unknown: str = UNKNOWN) -> None:
        self.kind = kind
        self.package = package
        self.unknown = unknown
        self._entries: dict[str, T] = {}
        self._followers: list[Callable[[], None]] = []
        self._discovered = False

    def register(self, *names: str) -> Callable[[T], T]:
        """Makes a decorator that enters a class under every name given.

        Raises:
            ValueError: If a name is taken already; the message says where.
        """

        def enter(entry: Any) -> Any:
            if not entry.__module__.startswith(f"{self.package}."):
                self._discover()  # the folder's own names come first
            for name in names:
                if name in self._entries:
                    first: Any = self._entries[name]
                    places = f"{inspect.getfile(first)} and in {inspect.getfile(entry)}"
                    raise ValueError(f"{self.kind} '{name}' is registered twice: in {places}")
                self._entries[name] = entry
            for follow in self._followers:
                follow()
            return entry

        return enter

    def follow(self, act: Callable[[], None]) -> None:
        """Has a function called after every registration from now on: a plugin may come at any time."""
        self._followers.append(act)

    def names(self) -> list[str]:
        """Lists every registered name, sorted."""
        self._discover()
        return sorted(self._entries)

    def get(self, name: str) -> T:
        """Gives the entry of that name.

        Raises:
            ValueError: If the name is unknown; the message lists the known names and the nearest one.
        """
        self._discover()
        if not isinstance(name, str) or name not in self._entries:
            words = {"nearest": nearest(str(name), self._entries), "known": ", ".join(self.names())}
            raise ValueError(self.unknown.format(kind=self.kind, name=name, **words))
        return self._entries[name]

    def _discover(self) -> None:
        if not self._discovered:
            self._discovered = True
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            load_installed()


def option(default: Any, help: str) -> Any:
    """Makes a dataclass field that a config may set, with its help text."""
    return dataclasses.field(default=default, metadata={"help": help})


def check_options(kind: str, name: str, component: type, options: dict[str, Any]) -> dict[str, Any]:
    """Checks the options that a config gives a dataclass component against its fields.

    Args:
        kind: Word for the component in messages, e.g. `"policy"`.
        name: Name of the component.
        component: Dataclass of the component.
        options: Option -> value, as the config has them.

    Returns:
        The options, converted to the types of the fields.

    Raises:
        ValueError: For an option that the component does not have, or a value of the wrong type.
    """
    known = {field.name: field for field in dataclasses.fields(component) if "help" in field.metadata}
    for option in options:
        if option not in known:
            raise ValueError(
                f"{kind} '{name}' has no option '{option}'.{nearest(option, known)} "
                f"Its options: {', '.join(sorted(known)) or 'none'}"
            )
    checked = {}
    for option, value in options.items():
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(known[option].type)  # type: ignore[arg-type]
            checked[option] = adapter.validate_python(value)
            if not takes(known[option].type, value):
                raise ValueError(f"must be {getattr(known[option].type, '__name__', known[option].type)}")
        except ValueError as error:
            fault = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            given = beginning(one_line(repr(value)), 200)
            raise ValueError(f"{kind} '{name}': {option}: {fault}, got {given}") from None
    return checked


def takes(annotation: Any, value: Any) -> bool:
    """Tells whether a type takes a plain value as it is: no truth value for a number, and no number in words.

    What is neither text, truth value nor number is for others to judge.
    """
    kinds = set(_plain_kinds(annotation))
    if Any in kinds:
        return True
    if isinstance(value, dict):
        return all(takes(annotation, inner) for inner in value.values()) or bool(kinds - PLAIN)
    if isinstance(value, (list, tuple)):
        return all(takes(annotation, inner) for inner in value)
    if isinstance(value, (str, bool)):
        return type(value) in kinds
    return not isinstance(value, (int, float)) or bool(kinds & {int, float})


def _plain_kinds(annotation: Any) -> Iterator[Any]:
    """Lists the types that values may be of, those of items among them; Any where nothing is known."""
    if get_origin(annotation) is Annotated:
        yield from _plain_kinds(get_args(annotation)[0])
    elif get_origin(annotation) is Literal:
        yield from map(type, get_args(annotation))
    elif get_args(annotation):
        for part in get_args(annotation):
            yield from _plain_kinds(part)
    else:
        yield annotation if isinstance(annotation, type) else Any


def describe_options(component: type) -> list[tuple[str, Any, str]]:
    """Lists (name, default, help) of every option that a config may give a component: of none but dataclasses."""
    fields = dataclasses.fields(component) if dataclasses.is_dataclass(component) else ()
    return [(field.name, field.default, field.metadata["help"]) for field in fields if "help" in field.metadata]
