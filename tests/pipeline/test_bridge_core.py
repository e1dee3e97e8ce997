"""What a PLC sees: a pass only for a fresh pass of this very trigger, whatever happens."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bridges.core import (
    BUFFER,
    CODES,
    FAIL,
    INVALID,
    PASS,
    PENDING,
    REASON_CODES,
    WORD,
    BridgeState,
    ErrorCode,
    Fields,
    Refusal,
)
from pipeline.types import Label, PartVerdict, Reason

MS = 1_000_000
STALE_MS = 200
MAX_AGE_MS = 1000
UTC = 1_700_000_000 * 10**9


@dataclass
class Bench:
    """A state, and a clock that only goes on when it is told."""

    triggered: bool = True
    now_ns: int = 5 * 10**9
    state: BridgeState = field(init=False)

    def __post_init__(self) -> None:
        self.state = BridgeState(STALE_MS, MAX_AGE_MS, triggered=self.triggered, now_ns=self.now_ns)

    def wait(self, ms: float) -> Bench:
        self.now_ns += round(ms * MS)
        return self

    def beat(self, *, ready: bool = True, camera: str = "ready", age_ms: float = 0.0) -> Bench:
        sent = UTC + self.now_ns - round(age_ms * MS)
        self.state.hear_heartbeat(sent, ready, {"cam": camera}, self.now_ns, UTC + self.now_ns)
        return self

    def trigger(self, trigger_id: int = 1, part_id: str = "") -> Refusal:
        return self.state.trigger(trigger_id, part_id, self.now_ns)

    def answer(
        self,
        trigger_id: int = 1,
        label: Label = Label.PASS,
        part_id: str = "p",
        captured_ms: float = 0.0,
    ) -> Bench:
        """captured_ms: how long ago."""
        reason = {Label.PASS: Reason.OK, Label.FAIL: Reason.DEFECT}.get(label, Reason.LATE)
        captured = UTC + self.now_ns - round(captured_ms * MS)
        verdict = PartVerdict(
            "s", part_id, trigger_id, label, reason, (), t_capture_utc_ns=captured
        )
        self.state.hear_part(verdict, self.now_ns, UTC + self.now_ns)
        return self

    def look(self) -> Fields:
        return self.state.look(self.now_ns)

    def verdicts(self) -> list[tuple[int, int, str]]:
        """Trigger id, code and reason of all that waits; acknowledges it."""
        found = []
        while (result := (fields := self.look()).result) is not None:
            found.append((result.trigger_id, result.code, result.reason))
            assert self.state.acknowledge(fields.ack + 1)
        return found


def ready() -> Bench:
    return Bench().beat()


def test_words_are_far_apart() -> None:
    words = [PASS, FAIL, INVALID, 0, 0xFFFF]
    distances = {(a ^ b).bit_count() for a in words[:3] for b in words if a != b}
    assert min(distances) == 8
    assert (PASS ^ FAIL).bit_count() == 16
    assert set(CODES) == set(Label)


def test_every_reason_has_a_number_of_its_own() -> None:
    assert set(Reason) <= set(REASON_CODES)
    assert len(set(REASON_CODES.values())) == len(REASON_CODES)


@pytest.mark.parametrize("label", list(Label))
def test_a_trigger_and_its_answer(label: Label) -> None:
    bench = ready()
    assert bench.trigger(7, "A-17") is Refusal.ACCEPTED
    assert bench.look().busy
    bench.wait(50).beat().answer(7, label, "A-17", captured_ms=40)
    fields = bench.look()
    assert (fields.ready, fields.busy, fields.error) == (True, False, False)
    assert (fields.count, fields.ack) == (1, 0)
    assert fields.result is not None
    assert (fields.result.code, fields.result.part_id) == (CODES[label], "A-17")
    assert bench.state.acknowledge(1)
    assert bench.look().result is None


def test_nothing_heard_is_an_error() -> None:
    bench = Bench()
    fields = bench.look()
    assert (fields.ready, fields.error, fields.error_code) == (False, True, ErrorCode.NO_LINE)
    assert bench.trigger() is Refusal.ERROR


@pytest.mark.parametrize("ms", [STALE_MS + 0.001, 10_000])
def test_a_silent_line_is_an_error_and_no_pass_outlives_it(ms: float) -> None:
    bench = ready()
    bench.trigger(1)
    bench.answer(1).wait(STALE_MS)
    assert bench.look().result.code == PASS  # type: ignore[union-attr]
    bench.wait(ms - STALE_MS)
    fields = bench.look()
    assert (fields.ready, fields.error, fields.error_code) == (False, True, ErrorCode.STALE)
    assert fields.result is not None
    assert fields.result.code == INVALID
    bench.beat()
    assert bench.look().ready
    assert [code for _, code, _ in bench.verdicts()] == [INVALID]  # for good


def test_a_heartbeat_that_lay_somewhere_is_none() -> None:
    bench = Bench().beat(age_ms=STALE_MS)
    assert bench.look().error_code is ErrorCode.NO_LINE
    assert bench.beat(age_ms=-STALE_MS).look().error_code is ErrorCode.NO_LINE
    assert bench.beat(age_ms=STALE_MS - 1).look().ready


def test_a_line_that_is_not_ready() -> None:
    bench = Bench().beat(ready=False)
    fields = bench.look()
    assert (fields.ready, fields.error, fields.error_code) == (False, False, ErrorCode.NOT_READY)
    fields = bench.beat(camera="lost").look()
    assert (fields.ready, fields.error, fields.error_code) == (False, False, ErrorCode.CAMERA)


def test_answers_of_no_trigger_here_are_passed_over() -> None:
    bench = ready()
    bench.answer(5)  # of a bridge before this one
    bench.trigger(5, "A")
    bench.wait(20).answer(5, part_id="A", captured_ms=21)  # of the same id, but taken before
    bench.answer(5, part_id="B")  # another part
    bench.answer(5, part_id="A", captured_ms=-1)  # from the future: the clock was set
    bench.answer(6)
    assert bench.look().result is None
    assert bench.state.strangers == 5
    bench.answer(5, Label.FAIL, "A")
    bench.answer(5, Label.PASS, "A")  # twice
    assert bench.verdicts() == [(5, FAIL, "defect")]


def test_a_pass_grows_old() -> None:
    bench = ready()
    bench.trigger(1)
    bench.wait(MAX_AGE_MS).beat().answer(1)
    assert bench.look().result.code == PASS  # type: ignore[union-attr]
    bench.wait(0.001)
    assert bench.verdicts() == [(1, INVALID, "too_old")]


def test_a_trigger_without_an_answer() -> None:
    bench = ready()
    bench.trigger(1, "A")
    bench.wait(MAX_AGE_MS + 1).beat()
    assert bench.verdicts() == [(1, INVALID, "no_answer")]
    bench.answer(1, part_id="A")  # at last
    assert bench.verdicts() == []


def test_a_trigger_that_the_line_did_not_take() -> None:
    bench = ready()
    bench.trigger(1)
    bench.state.give_up(1)
    bench.state.give_up(1)
    assert not bench.look().busy
    bench.answer(1)
    assert bench.verdicts() == []
    assert bench.trigger(1) is Refusal.USED_ID


@pytest.mark.parametrize("trigger_id", [0, -1, 2**32])
def test_ids_that_are_none(trigger_id: int) -> None:
    assert ready().trigger(trigger_id) is Refusal.BAD_ID
    assert ready().trigger(2**32 - 1) is Refusal.ACCEPTED


def test_too_many_triggers() -> None:
    bench = ready()
    assert {bench.trigger(n) for n in range(1, PENDING + 1)} == {Refusal.ACCEPTED}
    assert bench.trigger(PENDING + 1) is Refusal.TOO_MANY


def test_an_id_may_come_again_after_a_reset_but_not_at_once() -> None:
    bench = ready()
    bench.trigger(1)
    bench.state.reset(bench.now_ns)
    assert bench.trigger(1) is Refusal.USED_ID
    bench.wait(MAX_AGE_MS + 1).beat()
    bench.state.reset(bench.now_ns)
    assert bench.trigger(1) is Refusal.ACCEPTED


def test_overflow() -> None:
    bench = ready()
    for n in range(1, BUFFER + 4):
        bench.trigger(n)
        bench.answer(n, Label.PASS if n % 2 else Label.FAIL)
    fields = bench.look()
    assert (fields.overrun, fields.error, fields.error_code) == (True, True, ErrorCode.OVERRUN)
    assert (fields.count, fields.lost) == (BUFFER, 3)
    expected = [(n, PASS if n % 2 else FAIL) for n in range(1, BUFFER + 1)]
    assert [(n, code) for n, code, _ in bench.verdicts()] == expected  # exact, and in order
    assert bench.look().overrun  # until the PLC says that it knows
    bench.state.reset(bench.now_ns)
    fields = bench.look()
    assert (fields.overrun, fields.error, fields.ready, fields.lost) == (False, False, True, 3)


def test_a_reset_forgets_what_is_on_its_way() -> None:
    bench = ready()
    bench.trigger(1)
    bench.trigger(2)
    bench.answer(1)
    bench.state.reset(bench.now_ns)
    bench.answer(2)
    fields = bench.look()
    assert (fields.count, fields.ack, fields.result, fields.busy) == (1, 1, None, False)


def test_acknowledgements() -> None:
    bench = ready()
    for n in (1, 2, 3):
        bench.trigger(n)
        bench.answer(n)
    assert not bench.state.acknowledge(4)
    assert not bench.state.acknowledge(WORD - 1)
    assert bench.state.acknowledge(0)  # nothing new
    assert bench.state.acknowledge(2)
    assert not bench.state.acknowledge(1)
    assert bench.look().result.trigger_id == 3  # type: ignore[union-attr]


def test_counters_wrap() -> None:
    bench = ready()
    for n in range(1, WORD + 5):
        assert bench.trigger(n) is Refusal.ACCEPTED
        bench.answer(n)
        fields = bench.look()
        assert fields.count == n % WORD
        assert fields.result is not None
        assert fields.result.trigger_id == n
        assert bench.state.acknowledge(n % WORD)
    assert bench.look().count == bench.look().ack == 4


def test_the_heartbeat_counts_while_the_stream_is_read() -> None:
    bench = ready()
    first = bench.look().heartbeat
    for _ in range(10):
        bench.wait(20)
        bench.state.beat(bench.now_ns)
        bench.state.beat(bench.now_ns)
    assert bench.look().heartbeat == first + 10
    bench.wait(1000)
    assert bench.look().heartbeat == first + 10


def test_every_life_has_a_session() -> None:
    sessions = {Bench().look().session for _ in range(20)}
    assert len(sessions) > 15
    assert 0 not in sessions


def test_all_parts_for_lines_that_are_triggered_by_wire() -> None:
    bench = Bench(triggered=False).beat()
    bench.answer(0, captured_ms=1)  # before the bridge was there
    bench.wait(10).answer(0, part_id="a", captured_ms=5).answer(7, Label.FAIL, "b")
    assert bench.verdicts() == [(0, PASS, "ok"), (7, FAIL, "defect")]
    bench.wait(MAX_AGE_MS + 10).beat().answer(0, captured_ms=MAX_AGE_MS + 1)
    assert bench.verdicts() == [(0, INVALID, "too_old")]
    bench.state.hear_missed(bench.now_ns)
    fields = bench.look()
    assert (fields.overrun, fields.error, fields.lost) == (True, True, 1)


def test_missed_verdicts_of_triggers_are_told_by_their_time() -> None:
    bench = ready()
    bench.trigger(1)
    bench.state.hear_missed(bench.now_ns)
    assert not bench.look().overrun


# Whatever happens

TRIGGER_IDS = st.integers(1, 6)
EVENTS = st.one_of(
    st.tuples(st.just("wait"), st.integers(1, 400)),
    st.tuples(st.just("beat"), st.integers(0, 300)),
    st.tuples(st.just("trigger"), TRIGGER_IDS),
    st.tuples(st.just("give up"), TRIGGER_IDS),
    st.tuples(st.just("acknowledge"), st.integers(0, 20)),
    st.tuples(st.just("reset"), st.just(0)),
    st.tuples(st.just("missed"), st.just(0)),
    st.tuples(st.just("look"), st.just(0)),
    st.tuples(
        st.just("answer"),
        st.tuples(TRIGGER_IDS, st.sampled_from(list(Label)), st.integers(-50, 1500)),
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=60))
def test_a_pass_is_only_ever_a_fresh_pass_of_this_trigger(
    events: list[tuple[str, int | tuple[int, Label, int]]],
) -> None:
    bench = Bench()
    triggered: dict[int, int] = {}  # -> when, the last time that it was accepted
    passed: dict[int, int] = {}  # -> when an answer that is a pass and of that trigger came
    beats: list[int] = []
    seen: dict[int, int] = {}  # result number -> code
    for kind, what in events:
        if isinstance(what, tuple):
            trigger_id, label, captured_ms = what
            bench.answer(trigger_id, label, captured_ms=captured_ms)
            taken = bench.now_ns - captured_ms * MS
            at = triggered.get(trigger_id)
            if label is Label.PASS and at is not None and at <= taken <= bench.now_ns:
                passed[trigger_id] = at
        elif kind == "wait":
            bench.wait(what)
        elif kind == "beat":
            bench.beat(age_ms=what)
            if what < STALE_MS:
                beats.append(bench.now_ns)
        elif kind == "trigger" and bench.trigger(what) is Refusal.ACCEPTED:
            triggered[what] = bench.now_ns
            passed.pop(what, None)
        elif kind == "give up":
            bench.state.give_up(what)
        elif kind == "acknowledge":
            bench.state.acknowledge(what)
        elif kind == "reset":
            bench.state.reset(bench.now_ns)
        elif kind == "missed":
            bench.state.hear_missed(bench.now_ns)
        fields = bench.look()
        assert (fields.count - fields.ack) % WORD <= BUFFER
        assert fields.error or beats
        if fields.result is None:
            assert fields.count == fields.ack
            continue
        number, code = fields.ack + 1, fields.result.code
        assert code in CODES.values()
        assert seen.setdefault(number, code) == code or code == INVALID
        seen[number] = code
        if code == PASS:
            trigger_id = fields.result.trigger_id
            assert passed[trigger_id] == fields.result.born_ns == triggered[trigger_id]
            assert bench.now_ns - triggered[trigger_id] <= MAX_AGE_MS * MS
            assert bench.now_ns - beats[-1] <= STALE_MS * MS
