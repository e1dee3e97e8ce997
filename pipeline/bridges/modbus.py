"""The Modbus TCP server: the PLC polls, triggers and acknowledges; `pipeline.bridges.registers`.

Every read request is answered from one look at the desk, so that no result is ever torn. Of write
requests all or nothing is taken: one that touches a register that is not the PLC's, or wants what
cannot be, is answered with an exception.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Final

from pymodbus.constants import ExcCodes
from pymodbus.pdu import ExceptionResponse, ModbusPDU
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from pipeline.bridges import registers as reg
from pipeline.bridges.core import WORD, Refusal
from pipeline.bridges.desk import Desk
from pipeline.config.bridges import Bridge, ModbusBridge
from pipeline.errors import StationBusy
from pipeline.rarely import Rarely
from pipeline.station import Station

_READS: Final = (3, 4, 23)
_WRITES: Final = (6, 16, 23)
_GLANCE_S: Final = 0.02

log = logging.getLogger("bridge")


class Registers:
    """The registers as requests find them. Used in the server's event loop alone."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._rarely = Rarely()
        # Not 0: a PLC that writes its last trigger again and again must find that it is not the
        # next one of a bridge that has just started.
        self._answer = reg.TriggerAnswer(secrets.randbelow(WORD))
        self._asked = self._answer.ack
        self._written = [0] * reg.SIZE
        self.refused = 0
        """Requests that were answered with an exception."""

    async def access(  # noqa: PLR0917  # pymodbus calls it so
        self,
        function: int,
        start: int,
        address: int,
        count: int,
        stored: list[int],
        values: list[int] | list[bool] | None,
    ) -> ExcCodes | None:
        """A request, for pymodbus: `stored` is what a read will give, `values` what is written."""
        if function not in (_READS if values is None else _WRITES):
            return ExcCodes.ILLEGAL_FUNCTION
        if values is not None:
            return self._write(address, [int(value) for value in values])
        now = reg.words(self._desk.look(), self._answer)
        for at in (*range(reg.TRIGGER, reg.ACKNOWLEDGE), reg.RESET):
            now[at] = self._written[at]
        stored[: reg.SIZE] = now
        return None

    def count_refusal(self, sending: bool, pdu: ModbusPDU) -> ModbusPDU:
        """A message that is sent or was received, for pymodbus."""
        if sending and isinstance(pdu, ExceptionResponse):
            self.refused += 1
            if self._rarely.due("refusal"):
                log.warning(
                    "function %d refused, exception %d (%d refusals)",
                    pdu.function_code & 0x7F,
                    pdu.exception_code,
                    self.refused,
                )
        return pdu

    def _write(self, address: int, values: list[int]) -> ExcCodes | None:
        touched = range(address, address + len(values))
        if touched.start not in reg.WRITABLE or touched[-1] not in reg.WRITABLE:
            return ExcCodes.ILLEGAL_ADDRESS
        written = self._written.copy()
        written[touched.start : touched.stop] = values
        wish = written[reg.TRIGGER] if reg.TRIGGER in touched else self._asked
        if wish != self._asked:
            if self._asked != self._answer.ack:
                return ExcCodes.DEVICE_BUSY
            if wish != (self._asked + 1) % WORD:
                return ExcCodes.ILLEGAL_VALUE
            try:
                part_id = reg.text(written[reg.PART_ID : reg.PART_ID + reg.TEXT_WORDS])
            except UnicodeDecodeError:
                return ExcCodes.ILLEGAL_VALUE
        if reg.ACKNOWLEDGE in touched and not self._desk.acknowledge(written[reg.ACKNOWLEDGE]):
            return ExcCodes.ILLEGAL_VALUE
        if reg.RESET in touched and written[reg.RESET] and not self._written[reg.RESET]:
            self._desk.reset()
        self._written = written
        if wish != self._asked:
            self._asked = wish
            trigger_id = reg.number(*written[reg.TRIGGER_ID : reg.TRIGGER_ID + 2])
            self._desk.trigger(trigger_id, part_id).add_done_callback(
                lambda answer: self._answered(wish, answer.result())
            )
        return None

    def _answered(self, number: int, status: Refusal) -> None:
        self._answer = reg.TriggerAnswer(number, status)  # in one store: status with its number


def serve(bridge: Bridge, station: Station, desk: Desk, stop: Callable[[], bool]) -> None:
    """Serve until `stop()`. Raises `StationBusy` for an address that cannot be bound."""
    assert isinstance(bridge, ModbusBridge)
    # It logs tracebacks for a request to another unit, and what strangers send: see count_refusal.
    logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)
    with desk.listening() as listens:
        asyncio.run(_serve(bridge, desk, lambda: stop() or not listens()))
        if not listens():
            raise RuntimeError("the stream is not read any more: see the log")


async def _serve(bridge: ModbusBridge, desk: Desk, stop: Callable[[], bool]) -> None:
    registers = Registers(desk)
    device = SimDevice(
        bridge.unit,
        SimData(0, count=reg.SIZE, values=0, datatype=DataType.REGISTERS),
        action=registers.access,
    )
    server = ModbusTcpServer(
        device, address=(bridge.host, bridge.port), trace_pdu=registers.count_refusal
    )
    try:
        await server.serve_forever(background=True)
    except RuntimeError as error:
        raise StationBusy(
            f"{bridge.host}:{bridge.port} cannot be bound; expected a free port on an address of "
            "this machine (below 1024 only root may): choose another `port`, or stop its holder"
        ) from error
    log.info("Modbus TCP on %s:%d, unit %d", bridge.host, bridge.port, bridge.unit)
    try:
        while not stop():
            await asyncio.sleep(_GLANCE_S)
    finally:
        await server.shutdown()  # type: ignore[no-untyped-call]  # as the library has it
