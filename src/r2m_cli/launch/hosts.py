"""Several machines in a DeepSpeed hostfile (`engine.hostfile`): how many, which one this is, and the rendezvous address."""

import re
import socket
from dataclasses import replace
from pathlib import Path

from r2m_cli.config.schema import Config
from r2m_cli.errors import UserError
from r2m_cli.text import from_home

LINE = re.compile(r"(\S+)\s+slots\s*=\s*(\d+)")
PORT = 29500  # rendezvous port on the first machine, unless engine.rendezvous is set


def with_hosts(config: Config) -> Config:
    """The configuration with engine.num_nodes, num_processes, node_rank and rendezvous taken from the hostfile.

    Raises:
        UserError: the file is not a hostfile, the machines have different numbers of slots, or none of them is this one.
    """
    if config.engine.hostfile is None:
        return config
    file = from_home(config.engine.hostfile)
    hosts = read_hosts(file)
    slots = next(iter(hosts.values()))
    for name, count in hosts.items():
        if count != slots:
            raise UserError(
                f"{file}: {name} has {count} slots, {next(iter(hosts))} has {slots}; every machine must have the same number"
            )
    rank = next((rank for rank, name in enumerate(hosts) if is_here(name)), None)
    if rank is None:
        raise UserError(
            f"{file}: none of its machines is this one ({socket.gethostname()}): {', '.join(hosts)}; write them as this machine names "
            "itself, or leave engine.hostfile out and set engine.num_nodes, engine.node_rank and engine.rendezvous"
        )
    meeting = config.engine.rendezvous or f"{next(iter(hosts))}:{PORT}"
    engine = replace(config.engine, num_nodes=len(hosts), num_processes=slots, node_rank=rank, rendezvous=meeting)
    return replace(config, engine=engine)


def read_hosts(file: Path) -> dict[str, int]:
    """The machines of a hostfile and their slots, in order: `NAME slots=N` a line, `#` begins a comment."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"engine.hostfile={file}: cannot be read ({type(error).__name__}); lines are NAME slots=N"
        ) from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        found = LINE.fullmatch(text)
        if found is None or int(found[2]) < 1:
            raise UserError(
                f"{file}:{number}: {text!r} does not name a machine; write NAME slots=N with at least one slot"
            )
        if found[1] in hosts:
            raise UserError(f"{file}:{number}: {found[1]} is listed twice; remove one of the lines")
        hosts[found[1]] = int(found[2])
    if not hosts:
        raise UserError(f"{file}: names no machine; write one line NAME slots=N for each")
    return hosts


def is_here(name: str) -> bool:
    """Whether a host name or address belongs to this machine."""
    own = {socket.gethostname(), socket.getfqdn(), "localhost"}
    if name in own or name in {full.split(".")[0] for full in own}:
        return True
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(name, None)}
    except OSError:
        return False
    return any(_bindable(str(address)) for address in found)


def _bindable(address: str) -> bool:
    """Whether an address belongs to this machine: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
