"""Keys and the gate: real files, real sockets, real CURVE."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket as sockets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from pipeline.cli import run
from pipeline.errors import ConfigError, StationBusy
from pipeline.keys import (
    ClientKeys,
    Context,
    Gate,
    KeyPair,
    Socket,
    make_keys,
    read_allowed,
    read_public,
    read_secret,
    secure_client,
    secure_server,
)
from pipeline.rarely import Rarely

PATIENCE_S = 20.0


def until(
    condition: Callable[[], bool], act: Callable[[], object] = lambda: time.sleep(0.01)
) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        act()


# Files


def test_a_pair_of_files(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        made = make_keys(tmp_path / "keys", "line-1")
    finally:
        os.umask(old)
    secret, public = tmp_path / "keys/line-1.secret", tmp_path / "keys/line-1.public"
    assert (secret.stat().st_mode & 0o777, public.stat().st_mode & 0o777) == (0o600, 0o644)
    assert read_secret(secret) == made
    assert read_public(secret) == read_public(public) == made.public
    assert made.secret.decode() not in public.read_text()
    assert made.secret.decode() not in repr(made)
    assert ClientKeys.read(secret, public) == ClientKeys(made, made.public)
    with pytest.raises(ConfigError, match="choose another name"):
        make_keys(tmp_path / "keys", "line-1")
    assert read_secret(secret) == made


@pytest.mark.parametrize("name", ["", "..", "a/b", "-a", "a b", "x" * 64, "ü"])
def test_names_that_are_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="expected letters"):
        make_keys(tmp_path, name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o610])
def test_a_secret_that_others_can_read(tmp_path: Path, mode: int) -> None:
    make_keys(tmp_path, "a")
    path = tmp_path / "a.secret"
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o} found.*chmod 600 {path}"):
        read_secret(path)
    path.chmod(0o400)
    read_secret(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "no secret key"),
        (b"hello\nworld", "no secret key"),
        (b"public abc\nsecret abc\n", "a damaged public key"),
        (b"public " + b"\xc3\xbc" * 20, "a damaged public key"),
        (b"\xff\xfe", "not text"),
        (b"public " + b"0" * 40 + b"\nsecret " + b"0" * 40, "no pair"),
    ],
)
def test_files_that_are_no_keys(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "a.secret"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=words):
        read_secret(path)
    with pytest.raises(ConfigError, match="linewatch keys make"):
        read_secret(tmp_path / "none")


def test_the_allow_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    allow = tmp_path / "allow"
    with pytest.raises(ConfigError, match="linewatch keys allow"):
        read_allowed(allow)
    allow.mkdir(mode=0o755)
    assert read_allowed(allow) == {}
    first, second = (make_keys(tmp_path, name).public for name in ("a", "b"))
    for name in ("a.public", "b.public"):
        (tmp_path / name).rename(allow / name)
    (allow / "c.public").write_text("rubbish")
    assert read_allowed(allow) == {first: "a", second: "b"}
    assert "c.public" in caplog.text
    allow.chmod(0o775)
    with pytest.raises(ConfigError, match=f"chmod go-w {allow}"):
        read_allowed(allow)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "keys")
    assert run(["keys", "make", "mes", "--in", folder, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["public"] == read_secret(tmp_path / "keys/mes.secret").public.decode()
    allowed = tmp_path / "allowed"
    # Also when somebody hands over the wrong file: the secret stays where it is.
    for name in ("mes.public", "mes.public", "mes.secret"):
        assert run(["keys", "allow", f"{folder}/{name}", "--in", str(allowed)]) == 0
    assert read_allowed(allowed) == {made["public"].encode(): "mes"}
    assert "secret" not in (allowed / "mes.public").read_text()
    capsys.readouterr()
    assert run(["keys", "list", folder, "--json"]) == 0
    assert [key["fault"] for key in json.loads(capsys.readouterr().out)] == ["", ""]
    (tmp_path / "keys/mes.secret").chmod(0o644)
    assert run(["keys", "list", folder]) == 1
    assert "mes.secret" in capsys.readouterr().out
    make_keys(tmp_path / "other", "mes")
    assert run(["keys", "allow", f"{tmp_path}/other/mes.public", "--in", str(allowed)]) == 2
    assert "another key of this name" in capsys.readouterr().err
    assert run(["keys", "list", str(tmp_path / "none")]) == 2


# The gate


class House:
    """A secured REP that echoes, and clients of all kinds."""

    def __init__(self, folder: Path) -> None:
        self.own = make_keys(folder, "line")
        self.friend = make_keys(folder, "friend")
        self.stranger = make_keys(folder, "stranger")
        self.allow = folder / "allow"
        self.allow.mkdir(mode=0o700)
        (folder / "friend.public").rename(self.allow / "friend.public")
        self.context: Context = zmq.Context()
        self.gate = Gate(self.context, self.own, self.allow)
        self.server = self.context.socket(zmq.REP)
        self.gate.secure(self.server)
        port = self.server.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self.outside: Context = zmq.Context()
        self.clients: list[Socket] = []

    def client(self, own: KeyPair | None = None, server: bytes | None = None) -> Socket:
        client = self.outside.socket(zmq.REQ)
        self.clients.append(client)
        client.linger = 0
        if own is not None:
            secure_client(client, own, server or self.own.public)
        client.connect(self.endpoint)
        return client

    def heard(self, client: Socket) -> bool:
        """Whether a question gets through and is answered."""
        with contextlib.suppress(zmq.Again):  # no connection, or none any more
            client.send(b"hello", zmq.DONTWAIT)
        if self.server.poll(100):
            self.server.send(self.server.recv())
            return bool(client.poll(PATIENCE_S * 1000))
        return False

    def close(self) -> None:
        for client in self.clients:
            client.close(0)
        self.outside.term()
        self.server.close(0)
        self.gate.close()
        self.context.destroy(0)  # whatever a test that failed left open


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.close()


def test_a_friend_comes_in_and_nobody_else(house: House, caplog: pytest.LogCaptureFixture) -> None:
    friend = house.client(house.friend)
    until(lambda: house.heard(friend))
    assert house.gate.refused == {}
    stranger = house.client(house.stranger)
    until(lambda: house.gate.refused.get("unknown key", 0) > 0)
    assert not house.heard(stranger)
    stranger.close(0)
    keyless = house.client()
    until(lambda: house.gate.refused.get("no key", 0) > 0)
    assert not house.heard(keyless)
    keyless.close(0)
    friend.close(0)
    for welcome in (house.friend, house.own):  # the line's own bridges are clients as well
        client = house.client(welcome)
        until(lambda: house.heard(client))  # noqa: B023
        client.close(0)
    assert house.stranger.secret.decode() not in caplog.text


def test_a_server_of_another_key_is_not_talked_to(house: House) -> None:
    client = house.client(house.friend, server=house.stranger.public)
    until(lambda: sum(house.gate.refused.values()) > 0)
    assert not house.heard(client)


def test_a_password_is_no_key(house: House) -> None:
    client = house.outside.socket(zmq.REQ)
    house.clients.append(client)
    client.linger = 0
    client.plain_username, client.plain_password = b"admin", b"admin"
    client.connect(house.endpoint)
    until(lambda: house.gate.refused.get("no key", 0) > 0)
    assert not house.heard(client)


def test_the_list_may_change_while_the_line_runs(house: House, tmp_path: Path) -> None:
    stranger = house.client(house.stranger)
    until(lambda: house.gate.refused.get("unknown key", 0) > 0)
    (tmp_path / "stranger.public").rename(house.allow / "s.public")
    stranger.close(0)  # who was refused has to connect anew
    stranger = house.client(house.stranger)
    until(lambda: house.heard(stranger))
    stranger.close(0)
    (house.allow / "s.public").unlink()
    before = house.gate.refused["unknown key"]
    house.client(house.stranger)
    until(lambda: house.gate.refused["unknown key"] > before)


def test_a_folder_that_others_may_write_lets_in_nobody(house: House) -> None:
    house.allow.chmod(0o777)
    house.client(house.friend)
    until(lambda: house.gate.refused.get("unknown key", 0) > 0)


def test_bytes_that_are_no_zmq(house: House) -> None:
    for _ in range(20):
        host, port = house.endpoint.removeprefix("tcp://").split(":")
        with sockets.create_connection((host, int(port))) as raw:
            raw.sendall(os.urandom(200))
    assert not house.server.poll(100)
    friend = house.client(house.friend)
    until(lambda: house.heard(friend))


def test_refusals_do_not_flood_the_log(house: House, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            before = house.gate.refused.get("unknown key", 0)
            house.client(house.stranger)
            until(lambda: house.gate.refused.get("unknown key", 0) > before)  # noqa: B023
    assert len([r for r in caplog.records if "unknown key" in r.message]) == 1


def test_without_a_gate_nobody_is_let_in(tmp_path: Path) -> None:
    """ZeroMQ alone would take any key."""
    own, friend = make_keys(tmp_path, "a"), make_keys(tmp_path, "b")
    with zmq.Context() as inside, zmq.Context() as outside:
        server, client = inside.socket(zmq.REP), outside.socket(zmq.REQ)
        secure_server(server, own)
        port = server.bind_to_random_port("tcp://127.0.0.1")
        secure_client(client, friend, own.public)
        client.linger = 0
        client.connect(f"tcp://127.0.0.1:{port}")
        client.send(b"hello")
        assert not server.poll(300)
        client.close()
        server.close(0)


def test_one_gate_for_each_context(house: House) -> None:
    with pytest.raises(StationBusy, match="one gate"):
        Gate(house.context, house.own, house.allow)


def test_closed_servers_leave_nothing_behind(house: House) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        server = house.context.socket(zmq.REP)
        house.gate.secure(server)
        server.bind_to_random_port("tcp://127.0.0.1")
        server.close(0)
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_an_address_that_is_not_free_yet_is_not_in_the_way(house: House) -> None:
    """A closed server's file descriptor is free before the address of its monitor is."""
    with house.context.socket(zmq.REP) as server, house.context.socket(zmq.PAIR) as before:
        before.bind(f"inproc://monitor.s-{server.FD}")
        house.gate.secure(server)
        server.bind_to_random_port("tcp://127.0.0.1")


def test_rarely_is_once_for_each_source() -> None:
    rarely = Rarely(every_s=60)
    assert [rarely.due("a"), rarely.due("a"), rarely.due("b")] == [True, False, True]
    assert sum(rarely.due(str(n)) for n in range(10_000)) < 300
    often = Rarely(every_s=0)
    assert [often.due("a"), often.due("a")] == [True, True]
