"""The OPC UA bridge's doors: who gets in, and what they may do."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import stat
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from asyncua import Client, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from plc_cell import Cell
from ports import free_port

from pipeline.bridges.certificates import own_certificate, read_trusted
from pipeline.bridges.core import Refusal
from pipeline.bridges.opcua import NAMESPACE
from pipeline.errors import ConfigError, ResourceError
from tools.plc_machine import LinkError
from tools.plc_opcua import OpcUaLink

PATIENCE_S = 30.0
REFUSED = (ua.UaError, ConnectionError, TimeoutError, asyncio.CancelledError)
URI = "urn:test:client"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("opcua")


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    """Of a bridge that trusts one client."""
    port = free_port()
    link = OpcUaLink("127.0.0.1", port, folder / "friend")
    (folder / "trusted").mkdir()
    certificate = folder / "friend" / "certificate.der"
    (folder / "trusted" / "friend.der").write_bytes(certificate.read_bytes())
    cell = Cell(folder, f"{{kind: opcua, port: {port}, trusted: {folder}/trusted}}")
    with cell.running():
        end = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(LinkError):
                link.connect()
                if link.look().ready:
                    break
            assert time.monotonic() < end, cell.log.read_text()
            time.sleep(0.1)
        yield port
        assert link.look().ready  # after all that was tried
        link.close()
        assert "Traceback" not in cell.log.read_text()


async def secured(port: int, folder: Path, uri: str = URI) -> Client:
    certificate, key = own_certificate(folder, uri, "here", client=True)
    client = Client(f"opc.tcp://127.0.0.1:{port}/", timeout=5)
    client.application_uri = uri
    await client.set_security(SecurityPolicyBasic256Sha256, certificate, key)
    return client


async def opened(port: int) -> Client:
    """An unencrypted channel, as for discovery."""
    client = Client(f"opc.tcp://127.0.0.1:{port}/", timeout=5)
    await client.connect_socket()
    await client.send_hello()
    await client.open_secure_channel()
    return client


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(work(), PATIENCE_S)

    asyncio.run(limited())


def test_discovery_offers_encryption_alone(port: int) -> None:
    async def work() -> None:
        endpoints = await Client(f"opc.tcp://127.0.0.1:{port}/").connect_and_get_server_endpoints()
        assert [(one.SecurityMode, one.SecurityPolicyUri) for one in endpoints] == [
            (ua.MessageSecurityMode.SignAndEncrypt, SecurityPolicyBasic256Sha256.URI)
        ]

    run(work)


def test_a_client_without_encryption(port: int) -> None:
    async def work() -> None:
        with pytest.raises(REFUSED):
            async with Client(f"opc.tcp://127.0.0.1:{port}/", timeout=5):
                pass

    run(work)


def test_a_session_that_is_never_activated(port: int) -> None:
    async def work() -> None:
        client = await opened(port)
        for step in (client.create_session, client.activate_session):
            with pytest.raises(REFUSED):
                await step()
        with pytest.raises(REFUSED):
            await client.nodes.server_state.read_value()
        client.disconnect_socket()

    run(work)


def test_a_session_that_is_anothers(port: int, folder: Path) -> None:
    """The library finds a session by its token, and tokens can be guessed."""

    async def work() -> None:
        friend = await secured(port, folder / "friend", friend_uri(folder))
        async with friend:
            thief = await opened(port)
            thief.uaclient.protocol.authentication_token = (  # type: ignore[union-attr]
                friend.uaclient.protocol.authentication_token  # type: ignore[union-attr]
            )
            with contextlib.suppress(*REFUSED):
                await thief.activate_session()
            with pytest.raises(REFUSED):
                await thief.nodes.server_state.read_value()
            thief.disconnect_socket()

    run(work)


def friend_uri(folder: Path) -> str:
    from cryptography import x509

    raw = (folder / "friend" / "certificate.der").read_bytes()
    names = x509.load_der_x509_certificate(raw).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    uri: str = names.value.get_values_for_type(x509.UniformResourceIdentifier)[0]
    return uri


def test_a_stranger_with_a_certificate(port: int, folder: Path) -> None:
    async def work() -> None:
        stranger = await secured(port, folder / "stranger")
        with pytest.raises(REFUSED):
            await stranger.connect()

    run(work)


def test_a_friend_writes_nothing(port: int, folder: Path) -> None:
    async def work() -> None:
        friend = await secured(port, folder / "friend", friend_uri(folder))
        async with friend:
            at = await friend.get_namespace_index(NAMESPACE)
            for path in ("ResultManagement.Results.Verdict", "Diagnostics.Ready"):
                node = friend.get_node(f"ns={at};s=VisionSystem.{path}")
                value = await node.read_data_value()
                with pytest.raises(ua.UaError):
                    await node.write_value(ua.DataValue(value.Value))
            with pytest.raises(ua.UaError):
                await friend.nodes.objects.add_folder(at, "mine")
            machine = friend.get_node(f"ns={at};s=VisionSystem.VisionStateMachine")
            for wrong in (("", 0), (1, "a"), ("a", -1), ("a", 2**40), ("a", True)):
                assert await machine.call_method(f"{at}:StartSingleJob", *wrong) == Refusal.BAD_ID
            for wrong in ((), ("a",)):
                with pytest.raises(ua.UaError):
                    await machine.call_method(f"{at}:StartSingleJob", *wrong)

    run(work)


def frames(seed: int, count: int) -> Iterator[bytes]:
    """Random bytes, and a client's first message with some bits flipped or its end cut off."""
    chance = random.Random(seed)
    url = b"opc.tcp://127.0.0.1:4840/"
    hello = struct.pack("<IIIIII", 0, 65535, 65535, 0, 0, len(url)) + url
    for _ in range(count):
        kind = chance.choice([b"HELF", b"OPNF", b"MSGF", b"CLOF", b"ERRF", chance.randbytes(4)])
        body = bytearray(hello if chance.random() < 0.5 else chance.randbytes(80))
        for _ in range(chance.randrange(6)):
            body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
        size = len(body) + 8 if chance.random() < 0.8 else chance.randrange(2**32)
        yield kind + struct.pack("<I", size) + bytes(body[: chance.randrange(len(body) + 1)])


def test_what_strangers_send_changes_nothing(port: int, folder: Path) -> None:
    link = OpcUaLink("127.0.0.1", port, folder / "friend")
    link.connect()
    before = link.look()
    for frame in frames(3, 10_000):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
            stranger.sendall(frame)
            stranger.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError, TimeoutError):
                while stranger.recv(1000):
                    continue
    after = link.look()
    assert (after.session, after.ready, after.error) == (before.session, True, False)
    assert after.answers == ()
    link.close()


# Certificates


def test_a_key_is_made_once_and_is_its_owners(tmp_path: Path) -> None:
    certificate, key = own_certificate(tmp_path / "new", URI, "here")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    before = (certificate.read_bytes(), key.read_bytes())
    own_certificate(tmp_path / "new", URI, "here")
    assert (certificate.read_bytes(), key.read_bytes()) == before
    key.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        own_certificate(tmp_path / "new", URI, "here")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="expected a folder"):
        own_certificate(tmp_path / "file" / "x", URI, "here")


def test_trusted_certificates(tmp_path: Path) -> None:
    assert read_trusted(tmp_path) == frozenset()
    certificate, _ = own_certificate(tmp_path / "one", URI, "here")
    (tmp_path / "one.der").write_bytes(certificate.read_bytes())
    assert read_trusted(tmp_path) == {certificate.read_bytes()}
    (tmp_path / "two.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match=r"two\.pem.*expected a certificate"):
        read_trusted(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        read_trusted(tmp_path / "none")
