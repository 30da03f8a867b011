"""Forms: how a value of the machine is told in plain JSON, and what is believed when it is read.

    value ── Form.save ──▶ numbers, strings, lists, null ── Form.load, each checked ──▶ value

A form is made of others: `Record(Timers, poll_ns=Maybe(WHOLE), ...)`. It is at once the writer, the
reader and the check, so that the three can't disagree.

**Invariants.** `load` gives a value that `save` could have been given, or raises ImageError with
the place and what stood there. A record names each field of its class: one that was added and
that no form knows is a TypeError at the next snapshot, and not a state that is silently lost.

Why not pickle: its input is a program.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, NamedTuple

from xenlive.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenlive.machine.emulated.lens.snapshot_names import Names

_SHOWN_MAX = 60


class Place(NamedTuple):
    """Where in a snapshot a value stands, and the world that its names mean."""

    path: str
    names: Names

    def down(self, step: object) -> Place:
        """The place of a part."""
        return Place(f"{self.path}.{step}", self.names)

    def fail(self, what: str, value: object) -> ImageError:
        """The error for a value that can't be."""
        shown = repr(value)
        short = shown if len(shown) <= _SHOWN_MAX else f"{shown[:_SHOWN_MAX]}..."
        return ImageError("snapshot-value", f"{self.path} is not {what}", value=short)


class Form:
    """One kind of value."""

    def save(self, value: Any) -> Any:
        """The value in plain form."""
        raise NotImplementedError

    def load(self, plain: Any, at: Place) -> Any:
        """The value that `plain` tells of; ImageError if there is none."""
        raise NotImplementedError


class Whole(Form):
    """A whole number from `low` to `high`."""

    def __init__(self, low: int, high: int) -> None:
        self._low, self._high = low, high

    def save(self, value: Any) -> Any:
        return int(value)

    def load(self, plain: Any, at: Place) -> Any:
        if type(plain) is not int or not self._low <= plain <= self._high:
            raise at.fail(f"a number from {self._low} to {self._high}", plain)
        return plain


class Seconds(Form):
    """A time in seconds, as a float."""

    def save(self, value: Any) -> Any:
        return float(value)

    def load(self, plain: Any, at: Place) -> Any:
        if type(plain) is not float or not 0 <= plain < 1e18:
            raise at.fail("a time in seconds", plain)
        return plain


class Flag(Form):
    """True or false."""

    def save(self, value: Any) -> Any:
        return bool(value)

    def load(self, plain: Any, at: Place) -> Any:
        if type(plain) is not bool:
            raise at.fail("true or false", plain)
        return plain


class Choice(Form):
    """One of a few numbers or words."""

    def __init__(self, *values: object) -> None:
        self._values = values

    def save(self, value: Any) -> Any:
        return value

    def load(self, plain: Any, at: Place) -> Any:
        for value in self._values:
            if plain == value and type(plain) is type(value):
                return value
        raise at.fail("one of " + ", ".join(map(str, self._values)), plain)


class Text(Form):
    """A string of `longest` characters at most."""

    def __init__(self, longest: int) -> None:
        self._longest = longest

    def save(self, value: Any) -> Any:
        return str(value)[: self._longest]

    def load(self, plain: Any, at: Place) -> Any:
        if type(plain) is not str or len(plain) > self._longest:
            raise at.fail(f"a string of at most {self._longest} characters", plain)
        return plain


class Data(Form):
    """Bytes: `size` of them, or `longest` at most. `kind` is bytes or bytearray."""

    def __init__(self, longest: int, size: int | None = None, kind: type = bytes) -> None:
        self._longest, self._size, self._kind = longest, size, kind

    def save(self, value: Any) -> Any:
        return base64.b64encode(value).decode()

    def load(self, plain: Any, at: Place) -> Any:
        if type(plain) is not str or len(plain) > self._longest * 4 // 3 + 4:
            raise at.fail(f"at most {self._longest} bytes", plain)
        try:
            data = base64.b64decode(plain.encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise at.fail("bytes in base 64", plain) from None
        if len(data) > self._longest or (self._size is not None and len(data) != self._size):
            raise at.fail(f"{self._size or self._longest} bytes", plain)
        return self._kind(data)


class Maybe(Form):
    """A value or None."""

    def __init__(self, form: Form) -> None:
        self._form = form

    def save(self, value: Any) -> Any:
        return None if value is None else self._form.save(value)

    def load(self, plain: Any, at: Place) -> Any:
        return None if plain is None else self._form.load(plain, at)


class Listed(Form):
    """Values of one kind; `kind` makes what they are in: tuple, set, deque ..."""

    def __init__(self, form: Form, longest: int, kind: Any = tuple, is_ordered: bool = True):
        self._form, self._longest, self._kind = form, longest, kind
        self._is_ordered = is_ordered

    def save(self, value: Any) -> Any:
        return [self._form.save(each) for each in (value if self._is_ordered else sorted(value))]

    def load(self, plain: Any, at: Place) -> Any:
        validate_list(plain, self._longest, at)
        found = [self._form.load(each, at.down(i)) for i, each in enumerate(plain)]
        if not self._is_ordered and len(set(found)) != len(found):
            raise at.fail("a list without repetitions", plain)
        return self._kind(found)


class Table(Form):
    """A dict, as pairs in its order."""

    def __init__(self, key: Form, form: Form, longest: int) -> None:
        self._key, self._form, self._longest = key, form, longest

    def save(self, value: Any) -> Any:
        return [[self._key.save(key), self._form.save(each)] for key, each in value.items()]

    def load(self, plain: Any, at: Place) -> Any:
        validate_list(plain, self._longest, at)
        found: dict[Any, Any] = {}
        for index, pair in enumerate(plain):
            here = at.down(index)
            if type(pair) is not list or len(pair) != 2:
                raise here.fail("a key and a value", pair)
            key = self._key.load(pair[0], here.down("key"))
            if key in found:
                raise here.fail("a key of its own", pair[0])
            found[key] = self._form.load(pair[1], at.down(pair[0]))
        return found


class Row(Form):
    """A tuple of values, each of its own kind."""

    def __init__(self, *forms: Form) -> None:
        self._forms = forms

    def save(self, value: Any) -> Any:
        return [form.save(each) for form, each in zip(self._forms, value, strict=True)]

    def load(self, plain: Any, at: Place) -> Any:
        if type(plain) is not list or len(plain) != len(self._forms):
            raise at.fail(f"a list of {len(self._forms)}", plain)
        return tuple(
            form.load(each, at.down(i))
            for i, (form, each) in enumerate(zip(self._forms, plain, strict=True))
        )


class Fields(Form):
    """A dict with exactly these keys."""

    def __init__(self, **forms: Form) -> None:
        self._forms = forms

    def save(self, value: Any) -> Any:
        _validate_known("a state", set(value), set(self._forms))
        return {name: form.save(value[name]) for name, form in self._forms.items()}

    def load(self, plain: Any, at: Place) -> Any:
        if type(plain) is not dict or plain.keys() != self._forms.keys():
            raise at.fail("an object of " + ", ".join(self._forms), plain)
        return {name: form.load(plain[name], at.down(name)) for name, form in self._forms.items()}


class Record(Form):
    """An object of a class; `rebuilt` are attributes that are no state, and stay away."""

    def __init__(self, made: Any, /, rebuilt: Iterable[str] = (), **forms: Form) -> None:
        self._kind = made
        self._rebuilt = frozenset(rebuilt)
        self._fields = Fields(**forms)
        self._names = tuple(forms)

    def save(self, value: Any) -> Any:
        known = set(self._names)
        _validate_known(self._kind.__name__, attributes(value) - self._rebuilt, known)
        return self._fields.save({name: getattr(value, name) for name in self._names})

    def load(self, plain: Any, at: Place) -> Any:
        values = self._fields.load(plain, at)
        if hasattr(self._kind, "_fields"):
            return self._kind(**values)
        made = self._kind.__new__(self._kind)
        for name, value in values.items():
            object.__setattr__(made, name, value)
        return made


def attributes(value: Any) -> set[str]:
    """The names of all attributes that an object has of its own."""
    if hasattr(type(value), "_fields"):
        return set(type(value)._fields)
    names = set(getattr(value, "__dict__", ()))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names.update((slots,) if isinstance(slots, str) else slots)
    return names


def _validate_known(what: str, found: set[str], known: set[str]) -> None:
    if found != known:
        new, gone = sorted(found - known), sorted(known - found)
        raise TypeError(f"snapshots of {what}: not known {new}, no more there {gone}")


def validate_list(plain: Any, longest: int, at: Place) -> None:
    """ImageError unless it is a list of at most so many."""
    if type(plain) is not list or len(plain) > longest:
        raise at.fail(f"a list of at most {longest}", plain)
