"""The kexec module of real kernels: fitted after an update, and found again after a stranger."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance.servers import XenliveServer, answers
from machine.hosts import make_image, status, update

from xenlive.client.blocking import Xenstore
from xenlive.memory.address import PAGE_SIZE

# What a kernel without an idea of modules does: it hands on memory map and nothing else.
IGNORANT = """
import os
from xenlive.kexec.start_info import build_start_info, parse_start_info
from xenlive.machine.hosted.guest import HostedGuest
from xenlive.machine.hosted.image import LOAD_END, commit_entry, entry_command, installed_image
if sys.argv[1] == "--preflight":
    print("xenlive-kernel version=ignorant streams=1,2")
else:
    machine = HostedGuest(int(sys.argv[1]))
    commit_entry()
    memmap = parse_start_info(machine.memory, int(sys.argv[2], 16)).memmap
    machine.memory.write(LOAD_END, build_start_info(LOAD_END, memmap, []))
    os.closerange(3, machine.channel_fd)
    os.closerange(machine.channel_fd + 1, 256)
    os.set_inheritable(machine.channel_fd, True)
    os.execv(sys.executable, entry_command(installed_image(), machine.channel_fd, LOAD_END))
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[XenliveServer]:
    made = XenliveServer(tmp_path / "run")
    made.start()
    yield made
    made.stop()


def sized(folder: Path, pages: int) -> Path:
    """An image that wants a module of so many pages, whatever it is handed."""
    image = make_image(folder)
    config = f"CONFIG_9PFRONT=y\nCONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_PAGES={pages}\n"
    (image / "minios.cfg").write_text(config + "CONFIG_KEXEC_MODULE_RESIZE=y\n")
    return image


def wait_for_words(server: XenliveServer, words: str) -> None:
    """Waits until the host has logged `words`."""
    until_s = time.monotonic() + 30
    while words not in log(server):
        assert time.monotonic() < until_s, log(server)
        time.sleep(0.02)


def module(server: XenliveServer) -> dict[str, Any]:
    told: dict[str, Any] = status(server)["module"]
    return told


def test_a_module_follows_its_kernels_sizes(server: XenliveServer, tmp_path: Path) -> None:
    before = module(server)
    images = {pages: sized(tmp_path / f"pages{pages}", pages) for pages in (24, 19)}
    with Xenstore.connect(server.socket_path, timeout_s=60.0) as store:
        store.write("/kept", "value")
        for pages, image in images.items():
            assert update(server, image).returncode == 0
            wait_for_words(server, f"has {pages} pages now")
            found = module(server)
            assert found["pages"] == pages
            assert found["address"] + pages * PAGE_SIZE == before["address"] + 18 * PAGE_SIZE
            assert store.read("/kept") == b"value"
        # without the option a kernel keeps what it is handed, at once and after a while
        assert update(server).returncode == 0
        assert module(server)["pages"] == 19
        assert store.read("/kept") == b"value"
    assert status(server)["ninepfs_connects"] == 1


def test_an_update_right_after_one_that_resizes(server: XenliveServer, tmp_path: Path) -> None:
    """What is left to do after an update is done before the next one is begun."""
    images = [str(sized(tmp_path / f"pages{pages}", pages)) for pages in (30, 20, 26)]
    with Xenstore.connect(server.socket_path, timeout_s=60.0) as store:
        for image in images:
            assert store.control("live-update", "-f", image) == "OK"
            assert store.control("live-update", "-s") == "OK"
        wait_for_words(server, "has 26 pages now, 20 before")
    assert module(server)["pages"] == 26


def test_a_module_survives_a_kernel_that_knows_none(server: XenliveServer, tmp_path: Path) -> None:
    before = module(server)
    grants = status(server)["grants"]
    ignorant = tmp_path / "ignorant"
    ignorant.mkdir()
    source = Path(__file__).resolve().parents[2] / "src"
    main = f"import sys\nsys.path.insert(0, {str(source)!r})\n{IGNORANT}"
    (ignorant / "__main__.py").write_text(main)
    update(server, ignorant)
    wait_for_words(server, "has survived, 18 pages")
    assert answers(server.socket_path)
    after = module(server)
    assert (after["address"], after["pages"]) == (before["address"], 18)
    assert status(server)["grants"] == grants
    assert status(server)["ninepfs_connects"] == 1
    # and it is what the next live update hands over
    assert update(server).returncode == 0


def log(server: XenliveServer) -> str:
    return server.log_path.read_text(errors="replace")
