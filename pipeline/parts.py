"""Frames to parts: which views belong together, and when their part has its verdict.

1. A camera that is in no part of the configuration and was not triggered: each frame is a part of
   its own, decided with the frame.
2. A trigger (`pipeline.triggers`) is a part: of all cameras that its target names. Without a
   trigger, the views of a part are joined by their part id, else by their trigger id.
3. A part is decided when all its views are, or at its deadline: any view that fails, fails the
   part; any that is invalid or missing makes it invalid (`rules.part_label`). A view that comes
   later changes nothing.
4. When decision was killed, `recover` takes up again what the journal and the rings know.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from pipeline.config import LineConfig
from pipeline.journal import Journal
from pipeline.ring import FrameRing
from pipeline.rules import part_label
from pipeline.triggers import RECORDS, Trigger, TriggerLog
from pipeline.types import FrameRef, Label, PartKey, PartVerdict, Reason, Verdict
from pipeline.verdicts import part_of, utc_ns

_REMEMBERED = 10_000
"""Parts without a trigger that have ended, lest a late view begins them anew."""
_RECENT_ROWS = 20_000
"""Of the journal, in which a decision that was killed may have left a part half decided."""
_NEVER = 2**63 - 1


Decided = tuple[PartKey, PartVerdict]


@dataclass(slots=True)
class _Open:
    """A part that waits for views."""

    deadline_ns: int
    needed: dict[str, int]
    trigger: Trigger | None
    epoch: int
    views: list[Verdict] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not self.missing

    @property
    def missing(self) -> list[str]:
        """Cameras of which views are missing."""
        seen = [view.camera for view in self.views]
        return [camera for camera, count in self.needed.items() if seen.count(camera) < count]


class PartTable:
    """The parts that wait. Used by decision alone, and after its end by the ledger."""

    def __init__(
        self,
        config: LineConfig,
        triggers: TriggerLog | None,
        why_missing: Callable[[str], Reason] = lambda camera: Reason.NO_FRAME,
    ) -> None:
        """why_missing: of a camera that did not give its views in time."""
        self._config = config
        self._triggers = triggers
        self._why_missing = why_missing
        self._seen = 0
        self._group_of = {c: name for name, p in config.parts.items() for c in p.views}
        self._open: dict[object, _Open] = {}
        self._decided: set[int] = set()
        self._ended: dict[object, int] = {}
        """Parts without a trigger -> their deadline: views captured later are another part's."""

    @property
    def next_deadline_ns(self) -> int:
        return min((part.deadline_ns for part in self._open.values()), default=_NEVER)

    @property
    def decided(self) -> int:
        """Every trigger up to this one has its part's verdict."""
        return self._triggers.decided if self._triggers is not None else 0

    @property
    def joins_views(self) -> bool:
        return bool(self._group_of)

    @property
    def waiting(self) -> int:
        """How many parts wait."""
        return len(self._open)

    def joins(self, ref: FrameRef) -> bool:
        """Whether the frame is one of a part's views, and not a part of its own."""
        return ref.trigger_index > 0 or ref.camera in self._group_of or self._is_asked(ref.camera)

    def admit(self) -> None:
        """Take in the triggers that have come: each will have a part, whatever comes of it."""
        if self._triggers is None:
            return
        last = self._triggers.last
        for index in range(max(self._seen, self._triggers.decided, last - RECORDS) + 1, last + 1):
            self._seen = index
            trigger = self._triggers.get(index)
            if trigger is None or index in self._decided:
                continue
            needed, wait_ms = self._plan(trigger.target)
            deadline_ns = trigger.t_ns + round(wait_ms * 1e6)
            self._open[index] = _Open(deadline_ns, needed, trigger, self._triggers.epoch)

    def add(self, verdict: Verdict, ref: FrameRef) -> PartVerdict | None:
        """A decided frame. Its part, where it is one of its own; else it waits for the others."""
        if not self.joins(ref):
            return part_of(verdict)
        if ref.trigger_index and ref.trigger_index > self._seen:
            self.admit()  # a trigger is written before anybody can take its frame
        if not ref.trigger_index and self._is_asked(ref.camera):
            return None  # its trigger is not known any more, and has its verdict by itself
        key = self._key(ref)
        if key not in self._open:
            had_one = ref.trigger_index > 0 and self._triggers is not None
            if had_one or ref.t_capture_ns <= self._ended.get(key, -1):
                return None
            needed, _ = self._plan(self._group_of.get(ref.camera, ref.camera))
            self._open[key] = _Open(self._deadline_ns(ref), needed, None, ref.epoch)
        self._open[key].views.append(verdict)
        return None

    def _is_asked(self, name: str) -> bool:
        """Whether the camera takes frames for triggers alone."""
        camera = self._config.cameras.get(name)
        return camera is not None and camera.trigger.mode in ("software", "encoder")

    def _key(self, ref: FrameRef) -> object:
        """What joins the views of a part; of one without any id its own place."""
        own = (ref.camera, ref.epoch, ref.frame_id)
        group = self._group_of.get(ref.camera)
        return ref.trigger_index or (group, ref.part_id or ref.trigger_id or own)

    def _deadline_ns(self, first: FrameRef) -> int:
        _, wait_ms = self._plan(self._group_of.get(first.camera, first.camera))
        return first.t_capture_ns + round(wait_ms * 1e6)

    def committed(self) -> None:
        """What `due` gave is in the journal."""
        if self._triggers is not None:
            first = min((k for k in self._open if isinstance(k, int)), default=self._seen + 1)
            self._triggers.set_decided(first - 1)
            self._decided.clear()

    def due(self, now_ns: int, *, all_of_them: bool = False) -> list[Decided]:
        """Parts that can be decided now: complete, or at their deadline."""
        ripe = [
            key
            for key, part in self._open.items()
            if part.complete or part.deadline_ns <= now_ns or all_of_them
        ]
        return [self._end(key, now_ns) for key in ripe]

    def recover(
        self,
        decided_triggers: Collection[int],
        recent: Iterable[Verdict | PartVerdict],
        ref_of: Callable[[Verdict], FrameRef | None],
    ) -> None:
        """At the start of decision: what an earlier one had begun.

        decided_triggers: indices of this epoch that have their part. recent: the journal's last
        messages of this epoch. ref_of: what the ring's log says of a frame, as far as it goes back.
        """
        messages = list(recent)
        with_part = {view for m in messages if isinstance(m, PartVerdict) for view in m.views}
        self._decided.update(decided_triggers)
        firsts = {m.views[0] for m in messages if isinstance(m, PartVerdict) and m.views}
        for message in messages:
            if not isinstance(message, Verdict):
                continue
            if (message.camera, message.epoch, message.frame_id) in firsts:
                ref = ref_of(message)
                if ref is not None and self.joins(ref) and not ref.trigger_index:
                    self._ended[self._key(ref)] = self._deadline_ns(ref)
        for message in messages:
            if not isinstance(message, Verdict):
                continue
            if (message.camera, message.epoch, message.frame_id) in with_part:
                continue
            ref = ref_of(message)
            if ref is not None and self.joins(ref):
                self.add(message, ref)

    def _plan(self, target: str) -> tuple[dict[str, int], float]:
        """Views that a target needs, and how long its part may wait for them."""
        if (part := self._config.parts.get(target)) is not None:
            return dict(part.views), part.deadline_ms
        camera = self._config.cameras.get(target)
        wait_ms = (camera.deadline_ms if camera else None) or 500.0
        return {target: 1}, wait_ms

    def _end(self, key: object, now_ns: int) -> Decided:
        part = self._open.pop(key)
        if part.trigger is None:
            self._ended.pop(key, None)
            self._ended[key] = part.deadline_ns
            if len(self._ended) > _REMEMBERED:
                del self._ended[next(iter(self._ended))]
        missing = part.missing
        results = [(view.label, view.reason) for view in part.views]
        if missing:
            results += [(Label.INVALID, self._why_missing(camera)) for camera in missing]
        label, reason = part_label(results)
        verdict = _joined(self._config.station, part, label, reason, now_ns)
        if part.trigger is not None:
            return PartKey("trigger", part.trigger.target, part.epoch, part.trigger.index), verdict
        first = part.views[0]
        return PartKey("part", first.camera, first.epoch, first.frame_id), verdict


def _joined(station: str, part: _Open, label: Label, reason: Reason, now_ns: int) -> PartVerdict:
    worst = max(part.views, key=_severity, default=None)
    trigger = part.trigger
    first = part.views[0] if part.views else None
    if first is not None:
        t_utc_ns = min(view.t_capture_utc_ns for view in part.views)
    else:
        t_utc_ns = utc_ns(trigger.t_ns if trigger else now_ns, now_ns)
    part_id = trigger.part_id if trigger else ""
    return PartVerdict(
        station=station,
        part_id=part_id or _first(view.part_id for view in part.views),
        trigger_id=trigger.trigger_id if trigger else first.trigger_id if first else 0,
        label=label,
        reason=reason,
        views=tuple((view.camera, view.epoch, view.frame_id) for view in part.views),
        image_score=worst.image_score if worst else 0.0,
        image_threshold=worst.image_threshold if worst else 0.0,
        defects=worst.defects if worst else (),
        mm_per_px=worst.mm_per_px if worst else 0.0,
        detail=_first(view.detail for view in part.views if view.reason is reason),
        t_capture_utc_ns=t_utc_ns,
    )


def _severity(view: Verdict) -> tuple[bool, float]:
    threshold = view.image_threshold
    return view.label is Label.FAIL, view.image_score / threshold if threshold > 0 else 0.0


def _first(texts: Iterable[str]) -> str:
    return next((text for text in texts if text), "")


def recover(parts: PartTable, journal: Journal, rings: Mapping[str, FrameRing], epoch: int) -> None:
    """Parts that a decision which was killed had begun."""

    def ref_of(verdict: Verdict) -> FrameRef | None:
        ring = rings.get(verdict.camera)
        taken = ring.taken(verdict.frame_id) if ring and ring.epoch == verdict.epoch else None
        return taken.ref if taken else None

    # A part of one view is decided in one transaction with it.
    recent = journal.recent(epoch, _RECENT_ROWS) if parts.joins_views else []
    parts.recover(journal.decided_triggers(epoch, parts.decided), recent, ref_of)
