"""The pytest plugin: fixtures that give any project a real Xenstore (docs/testing-with-xenlive.md).

| fixture | what it is |
|---|---|
| `xenstore` | a `PrivateXenstore` of the test's own; the environment leads to it |
| `xenstore_session` | one for all tests of the run |
| `xenstore_guest` | a `Guest` of `xenstore`, introduced |
| `make_xenstore` | makes more: `make_xenstore(seed=..., quotas=...)` |

What a store starts with is said by a marker, `xenstore(seed=..., quotas=...)`, else by the options
`--xenstore-seed` and `--xenstore-quota`, else by `xenstore_seed` and `xenstore_quotas` in pytest's
configuration; the quotas of all three are put together.

**Invariants.** No server is started unless a test asks for one. What a server has said is in the
report of a test that fails. Loading the plugin loads nothing but this file and the room's own door.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xenlive.testing.guest import Guest
    from xenlive.testing.process import PrivateXenstore, Seed

MARKER = "xenstore(seed=..., quotas=...): what the `xenstore` fixture starts with (xenlive)."


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options and settings."""
    group = parser.getgroup("xenlive", "a private Xenstore (xenlive)")
    group.addoption(
        "--xenstore-seed",
        metavar="FILE",
        help="what stores start with, as `xenlive xs dump` writes it",
    )
    group.addoption(
        "--xenstore-quota",
        action="append",
        default=[],
        metavar="NAME=N",
        help="a quota of all stores; may be given several times",
    )
    parser.addini("xenstore_seed", "what stores start with: a file of `xenlive xs dump`")
    parser.addini("xenstore_quotas", "quotas of all stores, NAME=N a line", type="linelist")


def pytest_configure(config: pytest.Config) -> None:
    """The marker; and wrong options are found before any test runs."""
    config.addinivalue_line("markers", MARKER)
    _configured_quotas(config)


@pytest.fixture
def xenstore(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PrivateXenstore]:
    """A Xenstore for this test alone, on a private socket; XENSTORED_PATH leads to it."""
    seed, quotas = _configured_seed(request.config), _configured_quotas(request.config)
    marker = request.node.get_closest_marker("xenstore")
    if marker is not None:
        unknown = set(marker.kwargs) - {"seed", "quotas"}
        if marker.args or unknown:
            raise pytest.UsageError(f"the marker is {MARKER.partition(':')[0]}")
        seed = marker.kwargs.get("seed", seed)
        quotas |= marker.kwargs.get("quotas", {})
    yield from _running(seed, quotas, monkeypatch)


@pytest.fixture(scope="session")
def xenstore_session(pytestconfig: pytest.Config) -> Iterator[PrivateXenstore]:
    """One Xenstore for all tests that ask for it; what one leaves there the next one finds."""
    seed, quotas = _configured_seed(pytestconfig), _configured_quotas(pytestconfig)
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield from _running(seed, quotas, monkeypatch)


@pytest.fixture
def xenstore_guest(xenstore: PrivateXenstore) -> Guest:
    """An unprivileged domain of `xenstore`, with its nodes and a connected ring."""
    return xenstore.new_guest()


@pytest.fixture
def make_xenstore(
    pytestconfig: pytest.Config,
) -> Iterator[Callable[..., PrivateXenstore]]:
    """Makes further Xenstores, all ended with the test: `make_xenstore(seed=..., quotas=...)`."""
    from xenlive.testing.process import PrivateXenstore

    made: list[PrivateXenstore] = []

    def make(
        *, seed: Seed | None = None, quotas: Mapping[str, int] | None = None
    ) -> PrivateXenstore:
        store = PrivateXenstore(
            seed=seed if seed is not None else _configured_seed(pytestconfig),
            quotas={**_configured_quotas(pytestconfig), **(quotas or {})},
        )
        store.start()
        made.append(store)
        return store

    yield make
    for store in made:
        _stop(store)


def _running(
    seed: Seed | None, quotas: Mapping[str, int], monkeypatch: pytest.MonkeyPatch
) -> Iterator[PrivateXenstore]:
    from xenlive.testing.process import PrivateXenstore

    store = PrivateXenstore(seed=seed, quotas=quotas)
    store.start()
    try:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store
    finally:
        _stop(store)


def _stop(store: PrivateXenstore) -> None:
    store.stop()
    if said := store.log():
        sys.stderr.write(f"what the Xenstore said:\n{said}")


def _configured_seed(config: pytest.Config) -> Path | None:
    option = config.getoption("--xenstore-seed")
    if option:
        return Path(config.invocation_params.dir, option)
    setting = config.getini("xenstore_seed")
    return config.rootpath / setting if setting else None


def _configured_quotas(config: pytest.Config) -> dict[str, int]:
    quotas: dict[str, int] = {}
    for line in [*config.getini("xenstore_quotas"), *config.getoption("--xenstore-quota")]:
        name, equals, value = line.partition("=")
        if not equals or not value.strip().isdecimal():
            raise pytest.UsageError(f"{line!r} is no quota: NAME=N, such as nodes=100")
        quotas[name.strip()] = int(value)
    return quotas
