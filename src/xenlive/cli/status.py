"""`xenlive status`: what runs, since when, its updates, its module, memory and clients."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from xenlive.cli.options import json_option, rundir_option
from xenlive.client.blocking import Xenstore
from xenlive.errors import XenliveError
from xenlive.machine.hosted.host import host_status

ANSWER_TIMEOUT_S = 5.0


@click.command()
@rundir_option
@json_option
def status_command(rundir: Path, as_json: bool) -> int:
    """Say what runs in a run directory, since when, and how its updates went."""
    status = host_status(str(rundir))
    status.pop("ok")
    status["store"] = store_counts(status["socket"])
    status["module"] = module_summary(os.path.join(status["rundir"], "ram"))
    if as_json:
        print(json.dumps(status))
    else:
        for line in describe(status):
            print(line)
    return 0 if status["store"] is not None else 1


def store_counts(socket_path: str) -> dict[str, int] | None:
    """Nodes, watches, clients and transactions, asked of the domain; None if it does not answer.

    The connection that asks is not counted among the clients.
    """
    try:
        with Xenstore.connect(
            socket_path, timeout_s=ANSWER_TIMEOUT_S, connect_timeout_s=ANSWER_TIMEOUT_S
        ) as store:
            words = store.control("xenlive-status").split()
        counts = {name: int(value) for name, value in (word.split("=") for word in words)}
    except (XenliveError, OSError, ValueError):
        return None
    counts["clients"] -= 1
    return counts


def module_summary(ram: str) -> dict[str, Any] | None:
    """The kexec module that lies in the domain's RAM; None if there is none."""
    from xenlive.dump import describe_image

    try:
        found = describe_image(ram)
    except (XenliveError, OSError):
        return None
    return {
        "address": found["address"],
        "pages": found["n_pages"] + 1,
        "free_pages": found["free_pages"],
        "records": [record["type_name"] for record in found["records"]],
        "problems": found["problems"],
    }


def describe(status: dict[str, Any]) -> list[str]:
    """The status in words, a line each."""
    domain, memory, module, store = (status[key] for key in ("domain", "memory", "module", "store"))
    lines = [
        f"domain      {domain['domid']}, kernel {domain['version'] or '(booting)'}, "
        f"process {domain['pid']}, serving for {domain['since_s'] or 0:.0f} s",
        f"host        xenlive {status['version']}, process {status['pid']}, "
        f"up {status['up_s']:.0f} s",
        f"socket      {status['socket']}",
        f"memory      {memory['ram_bytes'] // 1024} KiB",
    ]
    if module is None:
        lines.append("module      none")
    else:
        records = ", ".join(module["records"]) or "no records"
        lines.append(
            f"module      {module['pages']} pages at {module['address']:#x}, "
            f"{module['free_pages']} free, {records}"
        )
    if store is None:
        lines.append("store       the domain does not answer")
    else:
        lines.append("store       " + ", ".join(f"{n} {name}" for name, n in store.items()))
    lines.append(f"updates     {status['updates_done']} done, {status['updates_failed']} failed")
    return lines + [f"            {describe_update(update)}" for update in status["updates"][-5:]]


def describe_update(update: dict[str, Any]) -> str:
    """One update in one line: between which kernels and how long, or to which image and why not."""
    if update["ok"]:
        return f"{update['from']} -> {update['to']}: {update['gap_ms']:.1f} ms"
    meant = update.get("image") or (update["to"] if update["to"] != update["from"] else "")
    where = f"{update['from']} -> {meant}" if meant else f"{update['from']} stayed"
    return printable_line(f"{where}: failed: {update['reason']}")


def printable_line(text: str) -> str:
    """Any text in one line; what a terminal would act on is a question mark."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
