"""`xenlive xs quota` and `features`: what a server lets domains use, and what it offers them.

A server that does not know these requests (before Xen 4.22) answers ENOSYS.
"""

from __future__ import annotations

import json

import click

from xenlive.abi import xs_ring
from xenlive.cli.options import json_option
from xenlive.cli.xs_store import with_store
from xenlive.client.blocking import Xenstore

FEATURES = {
    xs_ring.XENSTORE_SERVER_FEATURE_RECONNECTION: "reconnection",
    xs_ring.XENSTORE_SERVER_FEATURE_ERROR: "error",
    xs_ring.XENSTORE_SERVER_FEATURE_WATCHDEPTH: "watch-depth",
    xs_ring.XENSTORE_SERVER_FEATURE_DOMID_ANY: "domid-any",
}
DOMID = click.IntRange(min=0, max=65535)


@click.command("quota")
@click.argument("name", metavar="[NAME]", required=False)
@click.argument("value", metavar="[VALUE]", type=click.IntRange(0, 0xFFFFFFFF), required=False)
@click.option("--domain", "domid", type=DOMID, metavar="DOMID", help="Of this domain alone.")
@json_option
@with_store
def quota_command(
    store: Xenstore, name: str | None, value: int | None, domid: int | None, as_json: bool
) -> None:
    """Print all quotas or the one NAME, or set it to VALUE; 0 is unlimited."""
    if name is not None and value is not None:
        store.set_quota(name, value, domid)
        return
    names = [name] if name is not None else store.quota_names()
    found = {each: store.get_quota(each, domid) for each in names}
    if as_json:
        click.echo(json.dumps({"domid": domid, "quotas": found}))
    elif name is not None:
        click.echo(found[name])
    else:
        width = max(map(len, found), default=0)
        for each, limit in found.items():
            click.echo(f"{each:<{width}}  {limit}")


@click.command("features")
@click.argument("domid", metavar="[DOMID]", type=DOMID, required=False)
@json_option
@with_store
def features_command(store: Xenstore, domid: int | None, as_json: bool) -> None:
    """Print what the server offers to domain DOMID, or to us."""
    bits = store.get_feature(domid)
    names = [name for bit, name in FEATURES.items() if bits & bit]
    if unknown := bits & ~sum(FEATURES):
        names.append(f"{unknown:#x}")
    if as_json:
        click.echo(json.dumps({"domid": domid, "bits": bits, "features": names}))
    else:
        click.echo(" ".join(names))
