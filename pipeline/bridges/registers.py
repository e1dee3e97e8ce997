"""The Modbus register map: what stands at which address, for server and client. No library needed.

All registers are 16 bit words at one address in both the holding and the input table. A number of
32 bits has its high word first; text is UTF-8, two bytes a word, the first one high, filled with
zeros. docs/plc.md has the table, and the handshake.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pipeline.bridges.core import REASON_CODES, WORD, Fields, Refusal

MAP_VERSION: Final = 1
BOXES: Final = 8
TEXT_WORDS: Final = 16

# What the bridge says
VERSION, SESSION, HEARTBEAT, READY, BUSY, ERROR, OVERRUN, ERROR_CODE = range(8)
TRIGGER_ACK, TRIGGER_STATUS, RESULT_COUNT, RESULT_ACK, LOST = range(8, 13)
RESULT: Final = 20
RESULT_NUMBER, VERDICT, REASON, RESULT_TRIGGER_ID = 20, 21, 22, 23
SCORE, THRESHOLD, DEFECTS, SEQ, RESULT_PART_ID = 25, 27, 29, 30, 32
BOX: Final = 48  # BOXES times x0, y0, x1, y1, peak x 1000 in two words

# What the PLC says
TRIGGER, TRIGGER_ID, PART_ID, ACKNOWLEDGE, RESET = 100, 101, 103, 119, 120
WRITABLE: Final = range(TRIGGER, RESET + 1)
SIZE: Final = RESET + 1
"""Fits into one read request of 125 registers: a look at all of it is of one moment."""


def two_words(number: float) -> list[int]:
    """A number from 0 to 2^32 - 1 in two words; beyond that the nearest of them."""
    whole = min(max(round(number), 0), 2**32 - 1)
    return [whole >> 16, whole & 0xFFFF]


def number(high: int, low: int) -> int:
    return high << 16 | low


def text_words(text: str) -> list[int]:
    """At most `2 * TEXT_WORDS` bytes, cut where a character ends."""
    raw = text.encode()[: 2 * TEXT_WORDS].decode(errors="ignore").encode()
    raw = raw.ljust(2 * TEXT_WORDS, b"\0")
    return [raw[at] << 8 | raw[at + 1] for at in range(0, len(raw), 2)]


def text(words: list[int]) -> str:
    """Raises `UnicodeDecodeError` for what is no UTF-8."""
    return b"".join(word.to_bytes(2, "big") for word in words).rstrip(b"\0").decode()


@dataclass(frozen=True, slots=True)
class TriggerAnswer:
    """The number of the last trigger that was answered, and what became of it."""

    ack: int
    status: Refusal = Refusal.ACCEPTED


def words(fields: Fields, answer: TriggerAnswer) -> list[int]:
    """All registers of one moment; those that the PLC writes read as 0, except for its ack."""
    out = [0] * SIZE
    out[VERSION : LOST + 1] = [
        MAP_VERSION,
        fields.session,
        fields.heartbeat,
        fields.ready,
        fields.busy,
        fields.error,
        fields.overrun,
        fields.error_code,
        answer.ack,
        answer.status,
        fields.count,
        fields.ack,
        min(fields.lost, WORD - 1),
    ]
    out[ACKNOWLEDGE] = fields.ack
    result = fields.result
    if result is None:
        return out
    out[RESULT_NUMBER] = (fields.ack + 1) % WORD
    out[REASON] = REASON_CODES.get(result.reason, REASON_CODES["unknown"])
    out[RESULT_TRIGGER_ID:SCORE] = two_words(result.trigger_id)
    if result.verdict is not None:
        out[SCORE:THRESHOLD] = two_words(result.verdict.image_score * 1000)
        out[THRESHOLD:DEFECTS] = two_words(result.verdict.image_threshold * 1000)
        out[SEQ:RESULT_PART_ID] = two_words(result.verdict.seq % 2**32)
    out[DEFECTS] = min(len(result.defects), WORD - 1)
    out[RESULT_PART_ID:BOX] = text_words(result.part_id)
    for n, defect in enumerate(result.defects[:BOXES]):
        box = [min(max(edge, 0), WORD - 1) for edge in defect.box_xyxy]
        out[BOX + 6 * n : BOX + 6 * n + 6] = [*box, *two_words(defect.peak_score * 1000)]
    out[VERDICT] = result.code
    return out
