"""The Modbus TCP bridge over real sockets: registers, refusals, and what strangers send."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from plc_cell import Cell
from plc_line import good
from ports import free_port
from pymodbus.client import ModbusTcpClient

from pipeline.bridges import registers as reg
from pipeline.bridges.core import CODES, INVALID, PASS, WORD, ErrorCode, Fields, Refusal, Result
from pipeline.types import Defect, Label, PartVerdict, Reason
from tools.plc_links import ModbusLink
from tools.plc_machine import LinkError, View

PATIENCE_S = 30.0
FUZZED = 10_000


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


class Client:
    """Requests as they are, exception codes included."""

    def __init__(self, port: int, unit: int = 1) -> None:
        self._client = ModbusTcpClient("127.0.0.1", port=port, timeout=5, retries=0)
        self._client.connect()  # type: ignore[no-untyped-call]
        self._unit = unit

    def words(self) -> list[int]:
        answer = self._client.read_holding_registers(0, count=reg.SIZE, device_id=self._unit)
        assert not answer.isError(), answer
        return list(answer.registers)

    def write(self, address: int, words: list[int]) -> int:
        """0, or the exception's code."""
        answer = self._client.write_registers(address, words, device_id=self._unit)
        return answer.exception_code if answer.isError() else 0

    def close(self) -> None:
        self._client.close()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def cell(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    cell = Cell(tmp_path_factory.mktemp("cell"), f"{{kind: modbus, port: {port}}}")
    with cell.running():
        link = ModbusLink("127.0.0.1", port)

        def ready() -> bool:
            try:
                link.connect()
                return link.look().ready
            except LinkError:
                return False
            finally:
                link.close()

        until(ready)
        yield cell


@pytest.fixture
def client(cell: Cell, port: int) -> Iterator[Client]:
    client = Client(port)
    client.write(reg.RESET, [0])
    client.write(reg.RESET, [1])
    until(lambda: client.words()[reg.READY] == 1)
    yield client
    client.close()


def answered(client: Client, trigger_id: int) -> list[int]:
    """Trigger, and wait for the result."""
    words = client.words()
    wish = (words[reg.TRIGGER_ACK] + 1) % WORD
    request = [wish, *reg.two_words(trigger_id), *reg.text_words(f"part-{trigger_id}")]
    assert client.write(reg.TRIGGER, request) == 0
    until(lambda: client.words()[reg.TRIGGER_ACK] == wish)
    assert client.words()[reg.TRIGGER_STATUS] == Refusal.ACCEPTED
    until(lambda: client.words()[reg.RESULT_COUNT] != client.words()[reg.RESULT_ACK])
    return client.words()


IDS = iter(range(1000, 100000))


def next_id(wanted: bool) -> int:
    return next(number for number in IDS if good(number) is wanted)


@pytest.mark.parametrize("is_good", [True, False])
def test_trigger_result_acknowledgement(client: Client, is_good: bool) -> None:
    trigger_id = next_id(is_good)
    words = answered(client, trigger_id)
    assert words[reg.VERDICT] == CODES[Label.PASS if is_good else Label.FAIL]
    assert reg.number(*words[reg.RESULT_TRIGGER_ID : reg.SCORE]) == trigger_id
    assert reg.text(words[reg.RESULT_PART_ID : reg.BOX]) == f"part-{trigger_id}"
    assert reg.number(*words[reg.SCORE : reg.THRESHOLD]) == (250 if is_good else 3500)
    assert words[reg.DEFECTS] == (0 if is_good else 1)
    assert words[reg.BOX : reg.BOX + 4] == ([0] * 4 if is_good else [10, 20, 30, 40])
    number = words[reg.RESULT_NUMBER]
    assert client.write(reg.ACKNOWLEDGE, [(number + 1) % WORD]) == 3
    assert client.write(reg.ACKNOWLEDGE, [number]) == 0
    assert client.write(reg.ACKNOWLEDGE, [number]) == 0
    words = client.words()
    assert words[reg.RESULT : reg.TRIGGER] == [0] * (reg.TRIGGER - reg.RESULT)
    assert words[reg.RESULT_ACK] == words[reg.ACKNOWLEDGE] == number


def test_the_heartbeat_moves(client: Client) -> None:
    first = client.words()[reg.HEARTBEAT]
    until(lambda: client.words()[reg.HEARTBEAT] not in (first, first + 1))


@pytest.mark.parametrize(
    ("address", "count"),
    [
        (0, 1),
        (reg.HEARTBEAT, 1),
        (reg.VERDICT, 1),
        (99, 2),
        (reg.RESET, 2),
        (reg.SIZE, 1),
        (0, 121),
    ],
)
def test_what_is_not_the_plcs(client: Client, address: int, count: int) -> None:
    before = client.words()
    assert client.write(address, [PASS] * count) == 2
    after = client.words()
    assert after[reg.RESULT :] == before[reg.RESULT :]


def test_triggers_that_are_refused(client: Client) -> None:
    trigger_id = next_id(True)
    words = answered(client, trigger_id)
    ack = words[reg.TRIGGER_ACK]
    for wrong in (ack - 1, ack + 2, 17 if ack not in (16, 17) else 99):
        assert client.write(reg.TRIGGER, [wrong % WORD, 0, 5]) == 3
    assert client.write(reg.TRIGGER, [ack]) == 0  # said again, and nothing new
    bad_text = [(ack + 1) % WORD, 0, 5, 0xFFFF]
    assert client.write(reg.TRIGGER, bad_text) == 3
    assert client.words()[reg.TRIGGER_ACK] == ack
    wish = (ack + 1) % WORD
    assert client.write(reg.TRIGGER, [wish, *reg.two_words(trigger_id), 0]) == 0
    until(lambda: client.words()[reg.TRIGGER_ACK] == wish)
    assert client.words()[reg.TRIGGER_STATUS] == Refusal.USED_ID


def test_overrun(client: Client) -> None:
    for _ in range(9):
        words = client.words()
        wish = (words[reg.TRIGGER_ACK] + 1) % WORD
        assert client.write(reg.TRIGGER, [wish, *reg.two_words(next(IDS)), 0]) == 0
        until(lambda wish=wish: client.words()[reg.TRIGGER_ACK] == wish)  # type: ignore[misc]
    until(lambda: client.words()[reg.OVERRUN] == 1)
    words = client.words()
    assert (words[reg.READY], words[reg.ERROR], words[reg.ERROR_CODE]) == (0, 1, ErrorCode.OVERRUN)
    assert (words[reg.RESULT_COUNT] - words[reg.RESULT_ACK]) % WORD == 8
    client.write(reg.RESET, [0])
    client.write(reg.RESET, [1])
    words = client.words()
    assert (words[reg.READY], words[reg.ERROR], words[reg.OVERRUN]) == (1, 0, 0)
    assert words[reg.RESULT_COUNT] == words[reg.RESULT_ACK]


def test_another_unit_and_other_functions(client: Client, cell: Cell, port: int) -> None:
    other = ModbusTcpClient("127.0.0.1", port=port, timeout=5, retries=0)
    other.connect()  # type: ignore[no-untyped-call]
    assert other.read_holding_registers(0, count=1, device_id=9).isError()
    for answer in (
        other.read_coils(0, count=8, device_id=1),
        other.read_discrete_inputs(0, count=8, device_id=1),
        other.write_coil(0, True, device_id=1),
        other.mask_write_register(address=reg.ACKNOWLEDGE, and_mask=0, or_mask=1, device_id=1),
        other.read_holding_registers(reg.SIZE, count=1, device_id=1),
    ):
        assert answer.isError()
    other.close()  # type: ignore[no-untyped-call]
    assert client.words()[reg.READY] == 1


def frames(seed: int, count: int) -> Iterator[bytes]:
    """Random bytes, and good requests with some bits flipped: no write to the PLC's registers."""
    chance = random.Random(seed)
    for _ in range(count):
        if chance.random() < 0.3:
            yield chance.randbytes(chance.randrange(1, 300))
            continue
        function = chance.choice([1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 22, 23, 24, 43, 90])
        body = struct.pack(">BHH", function, chance.randrange(reg.TRIGGER), chance.randrange(200))
        if function in (15, 16):
            body += bytes([chance.randrange(256)]) + chance.randbytes(chance.randrange(20))
        frame = bytearray(struct.pack(">HHHB", chance.randrange(WORD), 0, len(body) + 1, 1) + body)
        for _ in range(chance.randrange(4)):
            # Not the address' high byte and beyond: what it hits stays none of the PLC's.
            frame[chance.choice([0, 1, 2, 3, 4, 5, 6])] ^= 1 << chance.randrange(8)
        yield bytes(
            frame[: chance.randrange(1, len(frame) + 1)] if chance.random() < 0.2 else frame
        )


def test_what_strangers_send_changes_nothing(client: Client, cell: Cell, port: int) -> None:
    trigger_id = next_id(False)
    before = answered(client, trigger_id)
    watch = client.words
    for at, frame in enumerate(frames(20, FUZZED)):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
            stranger.sendall(frame)
            stranger.shutdown(socket.SHUT_WR)
            while stranger.recv(1000):  # what it says to that, until it has read all of it
                continue
        if at % 50 == 0:
            now = watch()
            assert now[reg.RESULT :] == before[reg.RESULT :]
            assert now[reg.SESSION] == before[reg.SESSION]
    assert cell.ended("bridge") is None
    assert client.words()[reg.RESULT :] == before[reg.RESULT :]
    assert client.words()[reg.READY] == 1
    assert client.write(reg.ACKNOWLEDGE, [before[reg.RESULT_NUMBER]]) == 0
    answered(client, next_id(True))
    log = cell.log.read_text()
    assert "Traceback" not in log
    assert len(log) < 100_000


def test_a_silent_line_is_an_error(tmp_path: Path) -> None:
    port = free_port()
    cell = Cell(tmp_path, f"{{kind: modbus, port: {port}}}")
    link = ModbusLink("127.0.0.1", port)

    def look() -> View | None:
        try:
            link.connect()
            return link.look()
        except LinkError:
            return None

    with cell.running():
        until(lambda: (view := look()) is not None and view.ready)
        cell.kill("line")
        killed = time.monotonic()
        until(lambda: (view := look()) is not None and view.error)
        # 200 ms, and what a busy machine makes of it: the simulated PLC counts the wrong passes.
        assert time.monotonic() - killed < 5
        cell.start("line")
        until(lambda: (view := look()) is not None and view.ready and not view.error)
    link.close()


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        cell = Cell(tmp_path, f"{{kind: modbus, port: {port}}}")
        cell.start("bridge")
        until(lambda: cell.ended("bridge") is not None)
        assert cell.ended("bridge") == 6
        assert f"127.0.0.1:{port} cannot be bound" in cell.log.read_text()


# Words


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, [0, 0]),
        (65536, [1, 0]),
        (2**32 - 1, [65535, 65535]),
        (2**40, [65535, 65535]),
        (-1, [0, 0]),
    ],
)
def test_two_words(number: float, expected: list[int]) -> None:
    assert reg.two_words(number) == expected
    assert reg.number(*expected) == min(max(number, 0), 2**32 - 1)


@pytest.mark.parametrize("text", ["", "A-17", "ä" * 16, "x" * 32])
def test_text(text: str) -> None:
    assert reg.text(reg.text_words(text)) == text


def test_a_long_text_is_cut_between_characters() -> None:
    assert reg.text(reg.text_words("x" * 31 + "äöü")) == "x" * 31
    assert len(reg.text_words("y" * 1000)) == reg.TEXT_WORDS


def fields(result: Result | None) -> Fields:
    return Fields(True, False, False, False, ErrorCode.NONE, 5, 77, 1, 0, result, 0)


def test_no_result_reads_as_none() -> None:
    words = reg.words(fields(None), reg.TriggerAnswer(9))
    assert words[reg.RESULT : reg.TRIGGER] == [0] * (reg.TRIGGER - reg.RESULT)
    assert len(words) == reg.SIZE <= 125


def test_a_result_with_more_than_fits() -> None:
    defects = tuple(Defect((-5, n, 70000, 3), 10, 1e9) for n in range(500))
    verdict = PartVerdict(
        "s", "é" * 40, 7, Label.FAIL, Reason.DEFECT, (), 1e12, 1.0, defects, seq=2**40 + 3
    )
    result = Result(7, verdict.part_id, Label.FAIL, "defect", 0, verdict)
    words = reg.words(fields(result), reg.TriggerAnswer(9))
    assert all(0 <= word < WORD for word in words)
    assert words[reg.DEFECTS] == 500
    assert words[reg.BOX : reg.BOX + 4] == [0, 0, 65535, 3]
    assert reg.number(*words[reg.SEQ : reg.RESULT_PART_ID]) == 3
    assert words[reg.TRIGGER - 4 : reg.TRIGGER] == [0] * 4


def test_a_result_of_the_bridge_alone() -> None:
    result = Result(7, "a", Label.INVALID, "no_answer", 0)
    words = reg.words(fields(result), reg.TriggerAnswer(9))
    assert words[reg.VERDICT] == INVALID
    assert words[reg.REASON] == 30
