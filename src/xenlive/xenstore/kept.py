"""What a state stream has no field for, kept all the same: log settings, maxima, early domains.

Specification: Xen `docs/designs/xenstore-migration.md`, GLOBAL_QUOTA_DATA: names of quotas may be
"implementation specific ones", and one that the reader does not know has no effect. So these are
entries of such records, under names of our own, and any daemon reads the stream as before:

    xenlive:log               switches            xenlive:max:QUOTA        the most of any domain
    xenlive:log-on            1                   xenlive:N:max:QUOTA      the most of domain N
    xenlive:log-file:HEX      1, and its name     xenlive:N:known          1
    xenlive:N:unique-id-low   half each, of who   xenlive:N:features       bits
    xenlive:N:unique-id-high  has no ring         xenlive:N:quota:QUOTA    its own quota

The last three are for a domain that has neither a connection nor a node: the newest C daemon ends
if a DOMAIN_DATA record names one, as its own stream can. Without its unique id a domain that has
no ring would leave its rights to whoever has its id after the update.

**Invariants.** An entry that is not one of these changes nothing; each value is an u32.
"""

from __future__ import annotations

from xenlive.abi.xs_ring import XENSTORE_FEATURES
from xenlive.abi.xs_wire import XENSTORE_PAYLOAD_MAX
from xenlive.xenstore.log import FLAGS_MASK
from xenlive.xenstore.quota import ITEMS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.xenstore.accounts import Account
    from xenlive.xenstore.server import XenstoreServer

PREFIX = "xenlive:"
_U32_MAX = (1 << 32) - 1
_DOMID_MAX = 0xFFFF
_LOG, _LOG_ON, _LOG_FILE = PREFIX + "log", PREFIX + "log-on", PREFIX + "log-file:"
_LOW, _HIGH = "unique-id-low", "unique-id-high"
_ITEMS = {name: item for item, (name, _) in enumerate(ITEMS)}

# What one domain has: whether it is known by these entries, its features, its own quotas.
EarlyDomain = tuple[int, dict[str, int], int]


def settings_of(server: XenstoreServer) -> dict[str, int]:
    """The entries for what a server's log is set to, and for all maxima."""
    log = server.log
    entries = {}
    if log.flags != log.default_flags():
        entries[_LOG] = log.flags
    if log.is_wanted:
        entries[_LOG_ON] = 1
    if log.file is not None:
        entries[_LOG_FILE + log.file.hex()] = 1
    for domid, unique_id in server.unique_ids.items():
        entries[f"{PREFIX}{domid}:{_LOW}"] = unique_id & _U32_MAX
        entries[f"{PREFIX}{domid}:{_HIGH}"] = unique_id >> 32
    accounts = server.store.accounts
    entries |= _most_entries(PREFIX, accounts.most)
    for domid, account in accounts.by_domid.items():
        entries |= _most_entries(f"{PREFIX}{domid}:", account.most)
    return entries


def _most_entries(prefix: str, most: list[int]) -> dict[str, int]:
    return {
        f"{prefix}max:{name}": min(most[item], _U32_MAX)
        for name, item in _ITEMS.items()
        if most[item]
    }


def early_domain(account: Account) -> dict[str, int]:
    """The entries for a domain that no other record of the stream can name."""
    prefix = f"{PREFIX}{account.domid}:"
    entries = {prefix + "known": 1}
    if account.features != account.accounts.features:
        entries[prefix + "features"] = account.features
    return entries | {f"{prefix}quota:{name}": n for name, n in account.own_quotas().items()}


def early_domains(entries: dict[str, int]) -> list[EarlyDomain]:
    """Those of a stream: domain, its own quotas, its features."""
    found: dict[int, tuple[dict[str, int], int]] = {}
    for name in entries:
        domid, what = _split(name)
        if domid and what == "known":
            found[domid] = ({}, XENSTORE_FEATURES)
    for name, value in entries.items():
        domid, what = _split(name)
        if domid is None or domid not in found:
            continue
        quotas, features = found[domid]
        if what == "features":
            features = value & XENSTORE_FEATURES
        elif what.startswith("quota:") and len(what) > len("quota:"):
            quotas[what.removeprefix("quota:")] = value
        found[domid] = (quotas, features)
    return [(domid, quotas, features) for domid, (quotas, features) in found.items()]


def put_back(server: XenstoreServer, entries: dict[str, int]) -> None:
    """Sets log, maxima and unique ids as the entries of a stream say.

    The log is opened by `Log.start`.
    """
    log, accounts = server.log, server.store.accounts
    log.flags = entries.get(_LOG, log.flags) & FLAGS_MASK
    log.is_wanted = bool(entries.get(_LOG_ON))
    for name, value in entries.items():
        if name.startswith(_LOG_FILE):
            log.file = _file_name(name.removeprefix(_LOG_FILE)) or log.file
            continue
        domid, what = _split(name)
        if what.startswith("max:") and what[4:] in _ITEMS:
            item = _ITEMS[what[4:]]
            if domid is None:
                accounts.raise_most(item, value)
            elif domid in accounts.by_domid:
                accounts.by_domid[domid].note(item, value)
        elif domid and what == _LOW and domid in server.store.domains and domid not in server.rings:
            high = entries.get(f"{PREFIX}{domid}:{_HIGH}", 0)
            server.identify(domid, high << 32 | value)


def _file_name(text: str) -> bytes | None:
    try:
        name = bytes.fromhex(text)
    except ValueError:
        return None
    return name if 0 < len(name) <= XENSTORE_PAYLOAD_MAX and b"\0" not in name else None


def _split(name: str) -> tuple[int | None, str]:
    """Domain and rest of `xenlive:N:rest`; no domain and the rest of `xenlive:rest`."""
    rest = name.removeprefix(PREFIX)
    number, _, what = rest.partition(":")
    if number.isascii() and number.isdigit() and len(number) <= 5 and int(number) <= _DOMID_MAX:
        return int(number), what
    return None, rest
