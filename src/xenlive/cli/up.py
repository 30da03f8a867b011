"""`xenlive up`: the host process of one Xenstore stub domain, in the foreground."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path

import click

from xenlive.cli.options import SizeType, rundir_option
from xenlive.domain.config import Config
from xenlive.errors import ConfigError, UpdateError
from xenlive.machine.hosted.image import installed_image, validate_image

#: Many times what Mini-OS' configuration files have.
CONFIG_MAX_BYTES = 64 << 10


def read_config(path: Path | None) -> list[str]:
    """The command line words that carry a configuration file; ConfigError names the line."""
    if path is None:
        return []
    try:
        text = _read_regular(path).decode()
    except OSError as error:
        raise ConfigError(str(path), 0, f"can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), 0, f"is no UTF-8 text: {error}") from None
    return Config.parse(text, str(path)).as_options()


def _read_regular(path: Path) -> bytes:
    """A small file's bytes; whatever would make its reader wait or never end is refused."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError(str(path), 0, "is no regular file")
        data = file.read(CONFIG_MAX_BYTES + 1)
    if len(data) > CONFIG_MAX_BYTES:
        raise ConfigError(
            str(path), 0, f"has more than {CONFIG_MAX_BYTES >> 10} KiB; this is no configuration"
        )
    return data


def _log(line: str) -> None:
    """Says a line on stderr; that nobody listens there any more is no reason to end."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def image_path(image: Path | None) -> str:
    """An image's absolute path, as the domain is told; of the installed xenlive if None."""
    return installed_image() if image is None else str(image.absolute())


@click.command()
@click.argument("image", required=False, type=click.Path(path_type=Path))
@rundir_option
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Xenstore's socket.  [default: socket in the run directory]",
)
@click.option(
    "--config",
    "config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Mini-OS configuration of the domain.  [default: the image's own]",
)
@click.option(
    "--memory", type=SizeType(), default="8M", show_default=True, help="Size of the domain's RAM."
)
def up_command(
    image: Path | None, rundir: Path, socket_path: Path | None, config: Path | None, memory: int
) -> int:
    """Run a Xenstore stub domain in the foreground, until SIGTERM or Ctrl-C.

    IMAGE is what the domain boots: a folder with __main__.py or a zipapp; without one, the
    installed xenlive. Clients find it with XENSTORED_PATH or XENSTORED_RUNDIR.
    """
    from xenlive.machine.hosted.host import Host

    options = read_config(config)
    boots = image_path(image)
    try:
        validate_image(boots)
    except UpdateError as error:
        raise ConfigError(boots, 0, error.why) from None

    def announce(version: str) -> None:
        with contextlib.suppress(OSError):
            print(
                f"Xenstore on {host.socket_path}, run directory {host.rundir}, kernel {version}",
                flush=True,
            )

    with Host(
        str(rundir),
        socket_path=str(socket_path) if socket_path is not None else None,
        options=options,
        ram_bytes=memory,
        image=boots,
        log=_log,
        on_running=announce,
    ) as host:
        return host.run()
