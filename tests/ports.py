"""Ports that tests may listen on, also when several run at once."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """A free port of this machine, with the next one free too.

    Under those that the kernel gives to clients (32768 and more by default): there, one that was
    free a moment ago is soon taken.
    """
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        try:
            for number in (port, port + 1):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port
