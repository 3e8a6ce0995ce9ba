"""engine.hostfile: which machines there are, which of them this is, and one line for a file that is wrong."""

import socket

import pytest

from r2m_cli.config.schema import Config, EngineConfig
from r2m_cli.errors import UserError
from r2m_cli.launch.hosts import is_here, read_hosts, with_hosts


def config(file) -> Config:
    return Config(engine=EngineConfig(kind="zero", hostfile=str(file)))


def test_a_hostfile_says_how_many_machines_there_are_and_which_this_is(tmp_path):
    file = tmp_path / "hosts"
    file.write_text(f"# two machines\nworker-1.invalid slots=4\n\n{socket.gethostname()} slots=4  # this one\n")
    engine = with_hosts(config(file)).engine
    assert (engine.num_nodes, engine.num_processes, engine.node_rank) == (2, 4, 1)
    assert engine.rendezvous == "worker-1.invalid:29500"


def test_a_rendezvous_of_ones_own_counts(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("localhost slots=2\n")
    wanted = config(file)
    wanted.engine.rendezvous = "10.0.0.1:1234"
    assert with_hosts(wanted).engine.rendezvous == "10.0.0.1:1234"


def test_without_a_hostfile_nothing_changes():
    assert with_hosts(Config()) == Config()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "names no machine"),
        ("a slots=2\nb\n", ":2: 'b' does not name a machine"),
        ("a slots=0\n", ":1: 'a slots=0' does not name a machine"),
        ("a slots=2\na slots=2\n", ":2: a is listed twice; remove one of the lines"),
        ("localhost slots=2\nb slots=4\n", "b has 4 slots, localhost has 2"),
        ("one.invalid slots=2\ntwo.invalid slots=2\n", "none of its machines is this one"),
    ],
)
def test_a_file_that_is_wrong_is_one_line(tmp_path, text, line):
    file = tmp_path / "hosts"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        with_hosts(config(file))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"engine\.hostfile=.*cannot be read"):
        read_hosts(tmp_path / "none")


def test_this_machine_is_known_by_its_names_and_addresses():
    assert is_here("127.0.0.1")
    assert is_here("localhost")
    assert not is_here("192.0.2.1")  # an address of documentation, nobody's
