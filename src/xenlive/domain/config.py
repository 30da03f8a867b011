"""The configuration of a stub domain's kernel, in Mini-OS' format.

    # one item a line
    CONFIG_9PFRONT=y
    CONFIG_KEXEC=y
    CONFIG_KEXEC_MODULE_PAGES=18

A value is `y` or `n`, a number (decimal, or hexadecimal with 0x) or a string, which may stand in
double quotes; none has blanks, so that items can be passed on a kernel's command line. What is not
named is `n`, 0 or empty. The items that begin with KEXEC_ exist only with `CONFIG_KEXEC=y`: without
it they read as not named, as in Mini-OS. Xen's own files (`stubdom/xenstorepvh-minios.cfg`) are
accepted as they are, with the one line in them that is no CONFIG item, `XEN_INTERFACE_VERSION`.

One item is ours, `CONFIG_KEXEC_MODULE_RESIZE=y`: a kernel grows or shrinks the module that it was
handed to the size it is configured with. Without it that size is only for a new one, as in Mini-OS.

On a command line an item is a word. Alone it replaces that item of the configuration below it; with
the word `CONFIG=whole` beside it all such words together are the configuration, and what was below
is forgotten. Why a word: an item that a file leaves out is off, and no item by itself can say that.

**Invariants.** Whatever can't be meant is a ConfigError that names the line: an item twice, a line
that is no item, a number below 0 or above 32 bits, an item that the kernel knows as what it is not
(`CONFIG_KEXEC_MODULE_PAGES=many`). Asking for any other item as what it is not is one too. What
`as_options` gives says the same to `with_options` of any configuration.
"""

from __future__ import annotations

from xenlive.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_PREFIX = "CONFIG_"
_NAME_CHARS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_VALUE_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:,=+@%-")
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
_NOT_CONFIG = ("XEN_INTERFACE_VERSION",)
_MAX_NUMBER = 0xFFFFFFFF
_MAX_LINE = 1024

_OPTIONS = "command line"

#: The word that makes the items beside it the whole configuration.
WHOLE = "CONFIG=whole"

# What the kernel asks for, and as what: wrong values are found where they stand, not at the boot.
_KNOWN = {
    "KEXEC": "flag",
    "9PFRONT": "flag",
    "KEXEC_MODULE_PAGES": "number",
    "KEXEC_MODULE_RESIZE": "flag",
}


def is_option(word: str) -> bool:
    """Whether a word of a command line is for `with_options`."""
    return word == WHOLE or word.startswith(_PREFIX)


class Config:
    """The items of a configuration; `Config()` has none."""

    __slots__ = ("_items", "_source")

    def __init__(self) -> None:
        self._source = "configuration"
        # name -> line (0 for the command line) and value: bool, int or str
        self._items: dict[str, tuple[int, bool | int | str]] = {}

    @classmethod
    def parse(cls, text: str, source: str = "configuration") -> Config:
        """Reads a file's text; ConfigError names `source` and the line."""
        config = cls()
        config._source = source
        for number, line in enumerate(text.split("\n"), 1):
            config._parse_line(source, number, line)
        config._validate_known()
        return config

    def with_options(self, options: Iterable[str]) -> Config:
        """A copy with items replaced, each `CONFIG_X=value` as on a kernel's command line.

        With `WHOLE` among them all items are replaced, those that are not named too.
        """
        given = Config()
        given._source = _OPTIONS
        whole = False
        for option in options:
            if option == WHOLE:
                whole = True
                continue
            if not option.startswith(_PREFIX):
                raise ConfigError(_OPTIONS, 0, f"{option!r} is no CONFIG_ item")
            given._parse_line(_OPTIONS, 0, option)
        copy = Config()
        copy._source = self._source
        copy._items = given._items if whole else {**self._items, **given._items}
        copy._validate_known()
        return copy

    def flag(self, name: str) -> bool:
        """Whether an item is `y`; ConfigError if it is a number or a string."""
        value = self._value(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self._wrong(name, "y or n")
        return value

    def number(self, name: str) -> int:
        """An item's number, 0 if it is not named; ConfigError if it is no number."""
        value = self._value(name)
        if value is None:
            return 0
        if isinstance(value, (bool, str)):
            raise self._wrong(name, "a number")
        return value

    def string(self, name: str) -> str:
        """An item's text, empty if it is not named; a number or flag is its text."""
        value = self._value(name)
        if value is None:
            return ""
        return value if isinstance(value, str) else _text(value)

    def as_options(self) -> list[str]:
        """The whole configuration as `with_options` takes it: `WHOLE`, then what is not off."""
        options = [WHOLE]
        for name in self._items:
            value = self._value(name)
            if value:
                options.append(f"{_PREFIX}{name}={_text(value)}")
        return options

    def names(self) -> list[str]:
        """The names of all items given, without CONFIG_, in the order of the file."""
        return list(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and sorted(self.as_options()) == sorted(other.as_options())

    __hash__ = None  # type: ignore[assignment]

    def _value(self, name: str) -> bool | int | str | None:
        item = self._items.get(name)
        if item is None or (name.startswith("KEXEC_") and not self.flag("KEXEC")):
            return None
        return item[1]

    def _validate_known(self) -> None:
        for name, kind in _KNOWN.items():
            if kind == "flag":
                self.flag(name)
            else:
                self.number(name)

    def _wrong(self, name: str, wanted: str) -> ConfigError:
        line, value = self._items[name]
        source = self._source if line else _OPTIONS
        return ConfigError(source, line, f"{_PREFIX}{name}={_text(value)}: has to be {wanted}")

    def _parse_line(self, source: str, number: int, line: str) -> None:
        if len(line) > _MAX_LINE:
            raise ConfigError(source, number, f"a line of {len(line)} characters")
        line = line.strip(" \t\r")
        if not line or line.startswith("#"):
            return
        name, sign, value = line.partition("=")
        name = name.rstrip(" \t")
        value = value.lstrip(" \t")
        if name in _NOT_CONFIG and sign:
            return
        if not sign or not name.startswith(_PREFIX) or not _NAME_CHARS.issuperset(name):
            raise ConfigError(source, number, f"{line!r} is no CONFIG_NAME=value")
        name = name[len(_PREFIX) :]
        if not name:
            raise ConfigError(source, number, f"{line!r} has no name")
        if name in self._items:
            raise ConfigError(source, number, f"{_PREFIX}{name} stands twice")
        self._items[name] = number, _parse_value(source, number, name, value)


def _parse_value(source: str, number: int, name: str, text: str) -> bool | int | str:
    if text in ("y", "n"):
        return text == "y"
    if len(text) >= 2 and text[0] == text[-1] == '"':
        inner = text[1:-1]
        if '"' in inner or " " in inner or not inner.isprintable():
            raise ConfigError(source, number, f"{_PREFIX}{name}: {text!r} is no string")
        return inner
    if text[:1].isdigit() or text[:1] in ("-", "+"):
        return _parse_number(source, number, name, text)
    if not text or not _VALUE_CHARS.issuperset(text):
        raise ConfigError(source, number, f"{_PREFIX}{name}: {text!r} is no value")
    return text


def _parse_number(source: str, number: int, name: str, text: str) -> int:
    digits = text[2:] if text[:2] in ("0x", "0X") else text
    base = 16 if digits is not text else 10
    try:
        # int() alone would take signs, underscores and other alphabets' digits
        if not _HEX_DIGITS.issuperset(digits):
            raise ValueError
        value = int(digits, base)
    except ValueError:
        raise ConfigError(source, number, f"{_PREFIX}{name}: {text!r} is no number") from None
    if not 0 <= value <= _MAX_NUMBER:
        raise ConfigError(
            source, number, f"{_PREFIX}{name}: {text} is not between 0 and {_MAX_NUMBER}"
        )
    return value


def _text(value: bool | int | str) -> str:
    if isinstance(value, bool):
        return "y" if value else "n"
    if isinstance(value, int):
        return str(value)
    return value if _VALUE_CHARS.issuperset(value) and _is_word(value) else f'"{value}"'


def _is_word(text: str) -> bool:
    """Whether a string can do without quotes: it does not read as a flag or a number."""
    return text not in ("", "y", "n") and not text[0].isdigit() and text[0] not in "-+"
