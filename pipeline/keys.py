"""Keys of a line and of those who may talk to it: CURVE on tcp endpoints. Needs pyzmq alone.

1. Each side has two files: `NAME.secret` (mode 0600; it stays where it was made) and `NAME.public`,
   which the other side gets.
2. A server's sockets go through one `Gate`. It lets in the keys in the `*.public` files of its
   allow folder, read anew for each one that knocks, its own, and nobody else: another key, no key
   and another mechanism are refused, counted, and logged rarely.
3. A client has its own secret and the server's public key: `secure_client`.

A key file is text: lines `public KEY` and `secret KEY` in Z85 (40 characters), `#` for comments.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from pipeline.errors import ConfigError, StationBusy
from pipeline.rarely import Rarely

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]

_ZAP = "inproc://zeromq.zap.01"
_ZAP_DOMAIN = b"linewatch"
_POLL_MS = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_FILE_BYTES = 4096
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL

log = logging.getLogger("keys")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Both keys in Z85. `secret` is never printed."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """What a client needs: its own pair, and the key by which it knows the server."""

    own: KeyPair
    server_public: bytes

    @classmethod
    def read(cls, secret: Path, server_public: Path) -> Self:
        """Raises `ConfigError` for files that hold no keys, or a secret that others can read."""
        return cls(read_secret(secret), read_public(server_public))


def make_keys(folder: Path, name: str) -> KeyPair:
    """A new pair as `folder`/`name`.secret and .public. Raises `ConfigError`, never overwrites."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"key name {name!r} found, expected letters, digits, `.`, `-` and `_`, at most 63"
        )
    pair = KeyPair(*zmq.curve_keypair())
    public_line = f"public {pair.public.decode()}\n"
    secret_text = f"# {name}: keep this file here and to yourself\n{public_line}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(
            folder / f"{name}.secret", f"{secret_text}secret {pair.secret.decode()}\n", 0o600
        )
        _write_new(folder / f"{name}.public", f"# {name}\n{public_line}", 0o644)
    except FileExistsError as error:
        raise ConfigError(
            f"{error.filename}: a key of this name found, expected none: choose another name, or "
            "remove both of its files and give the new public key to the other side"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{folder}: {error.strerror}; expected a folder that can be written"
        ) from error
    return pair


def _write_new(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w") as file:
        path.chmod(mode)  # whatever the umask is
        file.write(text)


def read_secret(path: Path) -> KeyPair:
    """The pair in a `.secret` file. Raises `ConfigError`, also when others may read the file."""
    found, mode = _read_key_file(path)
    if mode & 0o077 and os.name == "posix":
        raise ConfigError(
            f"{path}: mode {mode:04o} found, expected 0600: others can read this secret; "
            f"chmod 600 {path}, or make a new key if somebody may have read it"
        )
    if "secret" not in found or "public" not in found:
        raise ConfigError(
            f"{path}: no secret key found, expected a file made by `linewatch keys make`"
        )
    if zmq.curve_public(found["secret"]) != found["public"]:
        raise ConfigError(f"{path}: two keys that are no pair found; make a new pair")
    return KeyPair(found["public"], found["secret"])


def read_public(path: Path) -> bytes:
    """The public key in a key file. Raises `ConfigError`."""
    found, _ = _read_key_file(path)
    if "public" not in found:
        raise ConfigError(
            f"{path}: no public key found, expected a file made by `linewatch keys make`"
        )
    return found["public"]


def _read_key_file(path: Path) -> tuple[dict[str, bytes], int]:
    """Keys by kind, and the file's mode."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            text = file.read(_FILE_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(
            f"{path}: {why}; expected a key file: make one with `linewatch keys make`"
        ) from error
    found = {}
    for line in text.splitlines():
        kind, _, key = line.strip().partition(" ")
        if kind not in ("public", "secret"):
            continue
        try:
            if len(z85.decode(key.encode())) != 32:
                raise ValueError
        except (ValueError, KeyError) as error:
            raise ConfigError(
                f"{path}: a damaged {kind} key found, expected 40 characters of Z85: copy the "
                "file again, or make a new pair"
            ) from error
        found[kind] = key.encode()
    return found, mode


def read_allowed(folder: Path) -> dict[bytes, str]:
    """Public key -> name, of all `*.public` files in the folder; one that is damaged is logged.

    Raises `ConfigError` when there is no such folder, or others may put keys into it.
    """
    try:
        mode = folder.stat().st_mode & 0o777
        paths = sorted(folder.glob("*.public"))
    except OSError as error:
        raise ConfigError(
            f"{folder}: {error.strerror}; expected the folder of allowed public keys: fill it "
            "with `linewatch keys allow`"
        ) from error
    if mode & 0o022:
        raise ConfigError(
            f"{folder}: mode {mode:04o} found, expected one that only its owner may write: "
            f"chmod go-w {folder}"
        )
    allowed = {}
    for path in paths:
        try:
            allowed[read_public(path)] = path.stem
        except ConfigError as error:
            log.warning("passed over: %s", error)
    return allowed


def allow_key(public: Path, folder: Path) -> Path:
    """Put a public key into an allow folder; its place there. Raises `ConfigError`."""
    key = read_public(public)
    place = folder / f"{public.stem}.public"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if place.exists() and read_public(place) != key:
            raise ConfigError(
                f"{place}: another key of this name found, expected none: rename {public}, or "
                "remove the old key"
            )
        place.write_text(f"# {public.stem}\npublic {key.decode()}\n")  # never a secret with it
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}; expected a folder to write to") from error
    return place


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key file, and what is wrong with it ("" for nothing)."""

    file: str
    public: str
    fault: str


def list_keys(folder: Path) -> list[ListedKey]:
    """All key files of a folder. Raises `ConfigError` when there is no such folder."""
    try:
        paths = sorted(p for p in folder.iterdir() if p.suffix in (".secret", ".public"))
    except OSError as error:
        raise ConfigError(
            f"{folder}: {error.strerror}; expected a folder of keys: `linewatch keys make` fills it"
        ) from error
    listed = []
    for path in paths:
        public, fault = "", ""
        try:
            public = read_public(path).decode()
            if path.suffix == ".secret":
                read_secret(path)
        except ConfigError as error:
            fault = str(error)
        listed.append(ListedKey(path.name, public, fault))
    return listed


def secure_client(socket: Socket, own: KeyPair, server_public: bytes) -> None:
    """To be called before `connect`: the socket talks to the server of this key and no other."""
    socket.curve_serverkey = server_public
    socket.curve_publickey = own.public
    socket.curve_secretkey = own.secret


def secure_server(socket: Socket, own: KeyPair) -> None:
    """To be called before `bind`. Whom it lets in is for a `Gate` in its context to say.

    Without a gate nobody is let in: ZeroMQ alone would take any key.
    """
    socket.curve_server = True
    socket.curve_secretkey = own.secret
    socket.zap_domain = _ZAP_DOMAIN
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


class Gate:
    """Who may talk to the secured sockets of a context: one gate for each context, in a thread."""

    def __init__(self, context: Context, own: KeyPair, allow: Path) -> None:
        """Raises `ConfigError` for an allow folder that cannot be trusted."""
        read_allowed(allow)
        self._own = own
        self._allow = allow
        self._refused: Counter[str] = Counter()
        self._rarely = Rarely()
        self._monitors: list[Socket] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._zap = context.socket(zmq.REP)
        self._zap.linger = 0
        try:
            self._zap.bind(_ZAP)
        except zmq.ZMQError as error:
            self._zap.close(0)
            raise StationBusy(
                f"{_ZAP}: {error.strerror}; expected one gate for each context"
            ) from error
        self._thread = threading.Thread(target=self._watch, name="gate", daemon=True)
        self._thread.start()

    @property
    def refused(self) -> dict[str, int]:
        """How many were refused, by cause."""
        with self._lock:
            return dict(self._refused)

    def secure(self, socket: Socket) -> None:
        """`secure_server`, and whoever fails to shake hands with this socket is counted."""
        secure_server(socket, self._own)
        # An address of its own: pyzmq's is made of the socket's file descriptor, whose number the
        # system gives again before ZeroMQ lets go of the address.
        address = f"inproc://gate-{next(self._numbers)}"
        monitor = socket.get_monitor_socket(_FAILED | zmq.EVENT_MONITOR_STOPPED, address)
        with self._lock:
            self._monitors.append(monitor)

    def close(self) -> None:
        """To be called after the sockets are closed, and before their context is."""
        self._closing.set()
        self._thread.join()

    def _watch(self) -> None:
        """The gate's thread."""
        try:
            while not self._closing.is_set():
                with self._lock:
                    monitors = list(self._monitors)
                poller = zmq.Poller()
                for each in (self._zap, *monitors):
                    poller.register(each, zmq.POLLIN)
                for ready, _ in poller.poll(_POLL_MS):
                    if ready is self._zap:
                        self._answer()
                    else:
                        self._note_failure(ready)
        finally:
            for each in (self._zap, *self._monitors):
                each.close(0)

    def _answer(self) -> None:
        """One question of ZeroMQ (ZAP, RFC 27): may this key come in?"""
        version, request_id, _, address, _, mechanism, *credentials = self._zap.recv_multipart()
        name = ""
        if mechanism == b"CURVE" and len(credentials) == 1:
            with contextlib.suppress(ConfigError):  # a folder that cannot be trusted lets in none
                key = z85.encode(credentials[0])
                # The line's own key: its bridges are clients as well.
                known = {self._own.public: "line", **read_allowed(self._allow)}
                name = known.get(key, "")
        status = (b"200", b"OK") if name else (b"400", b"unknown key")
        self._zap.send_multipart([version, request_id, *status, name.encode(), b""])
        if not name:
            self._refuse("unknown key", address.decode(errors="replace"))

    def _note_failure(self, monitor: Socket) -> None:
        event = recv_monitor_message(monitor, zmq.NOBLOCK)
        if event["event"] & _FAILED:
            self._refuse("no key", event["endpoint"].decode(errors="replace"))
        elif event["event"] == zmq.EVENT_MONITOR_STOPPED:
            with self._lock:
                self._monitors.remove(monitor)
            monitor.close(0)

    def _refuse(self, cause: str, where: str) -> None:
        with self._lock:
            self._refused[cause] += 1
            count = self._refused[cause]
        if self._rarely.due(f"{cause} {where}"):
            log.warning("refused: %s, %s (%d so far)", where, cause, count)
