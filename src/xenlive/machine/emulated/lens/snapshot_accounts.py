"""The form of what a world's Xenstore allows its guests: quotas, features, maxima, warnings, log.

What a domain uses is not here: it is counted anew from its nodes, watches and transactions.

**Invariants.** After loading no quota is missing, whatever the snapshot said; maxima are never less
than what is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xenlive.abi.xs_ring import XENSTORE_FEATURES
from xenlive.abi.xs_wire import XENSTORE_PAYLOAD_MAX
from xenlive.machine.emulated.lens.snapshot_forms import (
    Data,
    Fields,
    Flag,
    Form,
    Listed,
    Maybe,
    Place,
    Row,
    Table,
    Text,
    Whole,
)
from xenlive.xenstore.log import FLAGS_MASK
from xenlive.xenstore.quota import DEFAULTS, ITEMS, Quotas

if TYPE_CHECKING:
    from xenlive.xenstore.accounts import Accounts
    from xenlive.xenstore.log import Log


class Moment(Form):
    """A time of the world's clock in seconds; what was never said was said before it began."""

    def save(self, value: Any) -> Any:
        return float(value)

    def load(self, plain: Any, at: Place) -> Any:
        if type(plain) is not float or not -1e18 < plain < 1e18:
            raise at.fail("a moment in seconds", plain)
        return plain


_U32 = Whole(0, (1 << 32) - 1)
_QUOTAS = Table(Text(64), _U32, 256)
_MOST = Row(*[Whole(0, (1 << 62) - 1) for _ in ITEMS])
_ACCOUNT = Fields(
    domid=Whole(1, 0xFFFF),
    features=Whole(0, XENSTORE_FEATURES),
    quotas=_QUOTAS,
    most=_MOST,
    reported=Row(Flag(), Flag()),
    last_message_s=Moment(),
)
ACCOUNTS = Fields(
    quotas=_QUOTAS,
    most=_MOST,
    accounts=Listed(_ACCOUNT, 1 << 16),
    log=Row(Whole(0, FLAGS_MASK), Maybe(Data(XENSTORE_PAYLOAD_MAX)), Flag()),
)


def accounts_fields(accounts: Accounts, log: Log) -> dict[str, Any]:
    """What `ACCOUNTS` saves."""
    return {
        "quotas": accounts.quotas.values,
        "most": accounts.most,
        "accounts": [
            {
                "domid": each.domid,
                "features": each.features,
                "quotas": each.quotas,
                "most": each.most,
                "reported": (each.hard_reported, each.soft_reported),
                "last_message_s": each.last_message_s,
            }
            for each in accounts.by_domid.values()
        ],
        "log": (log.flags, log.file, log.is_wanted),
    }


def fill_accounts(accounts: Accounts, fields: dict[str, Any]) -> Quotas:
    """Puts what `ACCOUNTS` loaded into the accounts of a store that is nobody's yet.

    Returns the global quotas, which `State.adopt` takes.
    """
    accounts.quotas = quotas = Quotas()
    quotas.values = DEFAULTS | fields["quotas"]
    for item, value in enumerate(fields["most"]):
        accounts.raise_most(item, value)
    for each in fields["accounts"]:
        account = accounts.open(each["domid"])
        account.features = each["features"]
        account.quotas = DEFAULTS | each["quotas"]
        account.most = list(each["most"])
        account.hard_reported, account.soft_reported = each["reported"]
        account.last_message_s = each["last_message_s"]
    return quotas


def fill_log(log: Log, fields: dict[str, Any]) -> None:
    """Sets a server's log as it was."""
    log.flags, log.file, log.is_wanted = fields["log"]
    log.sink = None
    if log.is_wanted and log.opener is not None:
        log.start(log.opener)
