"""Configuration files in Mini-OS' format."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.domain.config import WHOLE, Config, is_option
from xenlive.errors import ConfigError

#: Xen `stubdom/xenstorepvh-minios.cfg`, with the lines of `make` around it as they are there.
XENSTORE_PVH = """\
CONFIG_LIBC=y
CONFIG_PARAVIRT=n
CONFIG_BLKFRONT=n
CONFIG_NETFRONT=n
CONFIG_FBFRONT=n
CONFIG_KBDFRONT=n
CONFIG_CONSFRONT=n
CONFIG_LWIP=n
CONFIG_9PFRONT=y
CONFIG_BALLOON=y
CONFIG_KEXEC=y
CONFIG_KEXEC_MODULE_PAGES=18
XEN_INTERFACE_VERSION=__XEN_LATEST_INTERFACE_VERSION__
"""


def test_xens_own_file() -> None:
    config = Config.parse(XENSTORE_PVH, "xenstorepvh-minios.cfg")
    assert config.flag("9PFRONT")
    assert config.flag("KEXEC")
    assert not config.flag("PARAVIRT")
    assert config.number("KEXEC_MODULE_PAGES") == 18
    assert config.as_options() == [
        "CONFIG=whole",
        "CONFIG_LIBC=y",
        "CONFIG_9PFRONT=y",
        "CONFIG_BALLOON=y",
        "CONFIG_KEXEC=y",
        "CONFIG_KEXEC_MODULE_PAGES=18",
    ]


def test_what_is_not_named() -> None:
    config = Config.parse("")
    assert (config.flag("KEXEC"), config.number("X"), config.string("Y")) == (False, 0, "")
    assert config.as_options() == [WHOLE]


def test_comments_blanks_and_line_ends() -> None:
    config = Config.parse("# one\r\n\r\n  CONFIG_A=y  \n\t#two\nCONFIG_B = 7\r\n   ")
    assert config.flag("A")
    assert config.number("B") == 7


def test_kexec_items_exist_only_with_kexec() -> None:
    for text in ("CONFIG_KEXEC_MODULE_PAGES=18", "CONFIG_KEXEC=n\nCONFIG_KEXEC_MODULE_PAGES=18"):
        config = Config.parse(text)
        assert config.number("KEXEC_MODULE_PAGES") == 0
        assert config.as_options() == [WHOLE]
        with_kexec = config.with_options(["CONFIG_KEXEC=y"])
        assert with_kexec.number("KEXEC_MODULE_PAGES") == 18


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("18", 18), ("0x12", 18), ("0XfF", 255), ("4294967295", 2**32 - 1), ("007", 7)],
)
def test_numbers(text: str, value: int) -> None:
    assert Config.parse(f"CONFIG_N={text}").number("N") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("abc", "abc"),
        ('"y"', "y"),
        ('"18"', "18"),
        ('""', ""),
        ("/a/b.c:d", "/a/b.c:d"),
        ("5", "5"),
    ],
)
def test_strings(text: str, value: str) -> None:
    assert Config.parse(f"CONFIG_S={text}").string("S") == value


@pytest.mark.parametrize(
    "text",
    ["", "CONFIG_KEXEC=n", "CONFIG_9PFRONT=y", "CONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_PAGES=0"],
)
def test_a_given_file_is_the_whole_configuration(text: str) -> None:
    """What it switches off, or leaves out, is not switched on again by what it is laid over."""
    image = Config.parse("CONFIG_9PFRONT=y\nCONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_PAGES=18\n")
    given = Config.parse(text)
    laid_over = image.with_options(given.as_options())
    assert laid_over == given != image
    assert laid_over.number("KEXEC_MODULE_PAGES") == 0
    assert image.number("KEXEC_MODULE_PAGES") == 18


def test_a_single_item_replaces_only_itself() -> None:
    image = Config.parse("CONFIG_9PFRONT=y\nCONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_PAGES=18\n")
    changed = image.with_options(["CONFIG_KEXEC_MODULE_PAGES=24"])
    assert (changed.number("KEXEC_MODULE_PAGES"), changed.flag("9PFRONT")) == (24, True)


def test_which_words_of_a_command_line_are_options() -> None:
    words = ["-U", "CONFIG=whole", "CONFIG_A=y", "CONFIG=all", "config_A=y", "CONFIG"]
    assert [word for word in words if is_option(word)] == ["CONFIG=whole", "CONFIG_A=y"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("CONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_PAGES=banana", 2),
        ("CONFIG_KEXEC_MODULE_PAGES=y\nCONFIG_KEXEC=y", 1),
        ("# one\nCONFIG_KEXEC=1", 2),
        ("CONFIG_9PFRONT=yes", 1),
    ],
)
def test_an_item_the_kernel_knows_as_what_it_is_not_names_its_line(text: str, line: int) -> None:
    with pytest.raises(ConfigError, match="has to be") as caught:
        Config.parse(text, "a.cfg")
    assert (caught.value.source, caught.value.line) == ("a.cfg", line)


def test_a_wrong_item_that_an_option_brings_to_life() -> None:
    config = Config.parse("CONFIG_KEXEC_MODULE_PAGES=banana")  # without KEXEC it does not exist
    with pytest.raises(ConfigError, match="has to be a number"):
        config.with_options(["CONFIG_KEXEC=y"])


JUNK = [
    ("CONFIG_A=y\nCONFIG_B", 2),
    ("CONFIG_A=y\n\nCONFIG_A=n", 3),
    ("CONFIG_A=y\nCONFIG_A=y", 2),
    ("CONFIG_=y", 1),
    ("CONFIG_a=y", 1),
    ("CONFIG_A B=y", 1),
    ("A=y", 1),
    ("=y", 1),
    ("junk", 1),
    ("XEN_INTERFACE_VERSION", 1),
    ("config_A=y", 1),
    ("CONFIG_A=", 1),
    ("CONFIG_A=-1", 1),
    ("CONFIG_A=+1", 1),
    ("CONFIG_A=4294967296", 1),
    ("CONFIG_A=0x100000000", 1),
    ("CONFIG_A=0x", 1),
    ("CONFIG_A=1_000", 1),
    ("CONFIG_A=0x-1", 1),
    ("CONFIG_A=1 2", 1),
    ("CONFIG_A=1k", 1),
    ("CONFIG_A=\u0661", 1),
    ("CONFIG_A=a b", 1),
    ('CONFIG_A="a b"', 1),
    ('CONFIG_A="', 1),
    ('CONFIG_A="a"b"', 1),
    ('CONFIG_A="a\0"', 1),
    ("CONFIG_A=" + "1" * 2000, 1),
    ("CONFIG_A=y # comment", 1),
]


@pytest.mark.parametrize(("text", "line"), JUNK)
def test_junk_names_its_line(text: str, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.parse(text, "a.cfg")
    assert (caught.value.source, caught.value.line) == ("a.cfg", line)
    assert "\n" not in str(caught.value)


def test_asked_for_as_what_it_is_not() -> None:
    config = Config.parse("CONFIG_F=y\n\nCONFIG_N=1\nCONFIG_S=abc", "a.cfg")
    with pytest.raises(ConfigError, match=r"a\.cfg:3: CONFIG_N=1: has to be y or n"):
        config.flag("N")
    with pytest.raises(ConfigError, match=r"a\.cfg:1: CONFIG_F=y: has to be a number"):
        config.number("F")
    with pytest.raises(ConfigError, match=r"a\.cfg:4"):
        config.number("S")


def test_options_win_over_the_file() -> None:
    config = Config.parse("CONFIG_A=1\nCONFIG_B=y")
    changed = config.with_options(["CONFIG_A=2", "CONFIG_C=y"])
    assert (changed.number("A"), changed.flag("B"), changed.flag("C")) == (2, True, True)
    assert (config.number("A"), config.flag("C")) == (1, False)


@pytest.mark.parametrize(
    "options",
    [["A=1"], ["CONFIG_A"], ["CONFIG_A=-1"], ["CONFIG_A=1", "CONFIG_A=2"], ["# no"], [""]],
)
def test_options_that_are_none(options: list[str]) -> None:
    with pytest.raises(ConfigError, match="command line"):
        Config().with_options(options)


names = st.text("ABCDEFGHIJ0123456789_", min_size=1, max_size=6)
values = st.one_of(
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.text("abyn0189xX-+_/.,", max_size=6),
)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(names, values, max_size=6))
def test_options_carry_a_configuration(items: dict[str, bool | int | str]) -> None:
    def text(value: bool | int | str) -> str:
        if isinstance(value, bool):
            return "y" if value else "n"
        return f'"{value}"' if isinstance(value, str) else str(value)

    config = Config.parse("\n".join(f"CONFIG_{name}={text(v)}" for name, v in items.items()))
    below = Config.parse("CONFIG_A=7\nCONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_PAGES=18")
    again = below.with_options(config.as_options())
    assert again == config
    for name, value in items.items():
        if isinstance(value, str):
            assert again.string(name) == value
    assert all(" " not in option for option in config.as_options())


@settings(deadline=None, max_examples=100)
@given(st.text('CONFIG_AXEN_=yn09x"# \n\r\t\0\u0661', max_size=40))
def test_any_text_is_a_configuration_or_a_config_error(text: str) -> None:
    try:
        Config.parse(text)
    except ConfigError:
        return
    for line in text.split("\n"):
        stripped = line.strip(" \t\r")
        assert not stripped or stripped.startswith(("#", "CONFIG_", "XEN_INTERFACE_VERSION"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("CONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_RESIZE=y", True),
        ("CONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_RESIZE=n", False),
        ("CONFIG_KEXEC=y", False),
        ("CONFIG_KEXEC_MODULE_RESIZE=y", False),
    ],
)
def test_resizing_is_off_unless_it_is_asked_for(text: str, wanted: bool) -> None:
    assert Config.parse(text).flag("KEXEC_MODULE_RESIZE") == wanted


def test_resizing_is_a_flag() -> None:
    with pytest.raises(ConfigError, match="CONFIG_KEXEC_MODULE_RESIZE=24: has to be y or n"):
        Config.parse("CONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_RESIZE=24")
