"""The OPC UA bridge's key and certificate, and who may open a channel to it.

The library lets anyone open an unencrypted channel, for discovery, and asks about certificates late
and of what the client claims. Here the channel itself is the gate: without encryption it serves
discovery and nothing else, and with it only who has the key of a trusted certificate gets one.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from asyncua import Server, ua
from asyncua.crypto.cert_gen import (
    dump_private_key_as_pem,
    generate_private_key,
    generate_self_signed_app_certificate,
)
from asyncua.crypto.permission_rules import PermissionRuleset, User
from asyncua.crypto.security_policies import SecurityPolicyFactory, SecurityPolicyNone
from asyncua.server.user_managers import PermissiveUserManager
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from pipeline.errors import ConfigError, ResourceError

_DAYS: Final = 20 * 365
"""Of a station's own certificate: one that runs out at night stops the line."""


def own_certificate(
    folder: Path, uri: str, host: str, *, client: bool = False
) -> tuple[Path, Path]:
    """Paths of certificate (DER) and key (PEM, mode 0600), made when they are not there.

    Raises `ConfigError` for a key that others can read, `ResourceError` where none can be written.
    """
    key_file, certificate_file = folder / "key.pem", folder / "certificate.der"
    try:
        if not key_file.exists() or not certificate_file.exists():
            _make(key_file, certificate_file, uri, host, client)
        if key_file.stat().st_mode & 0o077:
            raise ConfigError(
                f"{key_file}: others may read it; expected mode 0600: chmod 600 {key_file}"
            )
    except OSError as error:
        raise ResourceError(
            f"{error.filename or folder}: {error.strerror}; expected a folder for the OPC UA key "
            "that can be written"
        ) from error
    return certificate_file, key_file


def _make(key_file: Path, certificate_file: Path, uri: str, host: str, client: bool) -> None:
    key_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = generate_private_key()
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
    certificate = generate_self_signed_app_certificate(
        key,
        uri,
        {"organizationName": "linewatch"},
        [x509.UniformResourceIdentifier(uri), x509.DNSName(host)],
        [purpose],
        _DAYS,
    )
    # The certificate first: one without its key is made anew, a key alone would be as well.
    certificate_file.write_bytes(certificate.public_bytes(Encoding.DER))
    unfinished = key_file.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(dump_private_key_as_pem(key))
    unfinished.replace(key_file)


def read_trusted(folder: Path) -> frozenset[bytes]:
    """The certificates in a folder, as DER. Raises `ConfigError` for one that is none."""
    found = set()
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix in (".der", ".pem"))
        for path in paths:
            raw = path.read_bytes()
            load = x509.load_der_x509_certificate
            if path.suffix == ".pem":
                load = x509.load_pem_x509_certificate
            found.add(load(raw).public_bytes(Encoding.DER))
    except OSError as error:
        raise ConfigError(f"trusted {error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"trusted {path}: {error}; expected a certificate") from error
    return frozenset(found)


class _DiscoveryOnly(PermissionRuleset):
    def check_validity(self, user: User | None, action_type_id: Any, body: Any) -> bool:
        return False  # what discovery asks is not checked


class _TrustedOnly(SecurityPolicyFactory):
    """Makes channels for whoever has a trusted certificate."""

    def __init__(self, inner: SecurityPolicyFactory, trusted: Collection[bytes] | None) -> None:
        """trusted: None lets in every certificate."""
        super().__init__(  # type: ignore[no-untyped-call]  # as the library has it
            inner.cls, inner.mode, inner.certificate, inner.private_key, inner.permission_ruleset
        )
        self._trusted = trusted

    def create(self, peer_certificate: bytes | None) -> Any:
        if not peer_certificate or (
            self._trusted is not None and peer_certificate not in self._trusted
        ):
            raise ua.UaError("no certificate that is trusted")
        return super().create(peer_certificate)  # type: ignore[no-untyped-call]


class _NamedUsers(PermissiveUserManager):
    """No session on a channel without a certificate."""

    def get_user(
        self,
        iserver: Any,
        username: str | None = None,
        password: str | None = None,
        certificate: Any = None,
    ) -> User | None:
        if not certificate:
            return None
        return super().get_user(iserver, None, None, certificate)


class GuardedServer(Server):
    """A server whose channels are encrypted, and open to trusted certificates alone."""

    def __init__(self, trusted: Collection[bytes] | None) -> None:
        super().__init__(user_manager=_NamedUsers())  # type: ignore[arg-type]  # as its own default
        self._trusted = trusted
        self.set_security_policy([ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt])
        self.set_identity_tokens([ua.AnonymousIdentityToken])

    async def _setup_server_nodes(self) -> None:
        await super()._setup_server_nodes()
        discovery = SecurityPolicyFactory(  # type: ignore[no-untyped-call]
            SecurityPolicyNone, ua.MessageSecurityMode.None_, permission_ruleset=_DiscoveryOnly()
        )
        guarded = [_TrustedOnly(factory, self._trusted) for factory in self._policies]
        self._policies = [*guarded, discovery]
