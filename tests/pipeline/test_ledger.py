"""The last line of the accounting: what a dead line leaves in its rings."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.board import Board
from pipeline.config import LineConfig, dump_resolved
from pipeline.errors import ResourceError
from pipeline.journal import Journal, read_verdicts
from pipeline.ledger import settle
from pipeline.ring import ANSWERED, FrameRing
from pipeline.ringfile import LOG_RECORDS, create_ring
from pipeline.station import Station
from pipeline.types import FrameRef, Label, Reason, Verdict
from pipeline.verdicts import part_of

SHAPE = (33, 36, 1)


@pytest.fixture
def station(tmp_path: Path) -> Station:
    camera = {"source": {"kind": "synthetic", "width": 36, "height": 33}}
    config = LineConfig.model_validate(
        {
            "station": "ledger",
            "run_dir": str(tmp_path / "run"),
            "state_dir": str(tmp_path / "state"),
            "shm_dir": str(tmp_path),
            "cameras": {"left": camera, "right": camera},
        }
    )
    (tmp_path / "line.json").write_text(dump_resolved(config))
    return Station.of(config)


@pytest.fixture
def journal(station: Station) -> Iterator[Journal]:
    journal = Journal(station.journal)
    yield journal
    journal.close()


def make(station: Station, camera: str, epoch: int = 1, slots: int = 4) -> FrameRing:
    station.shm_dir.mkdir(exist_ok=True)
    create_ring(station.ring(camera), SHAPE, slots, epoch)
    return FrameRing(station.ring(camera))


def take(ring: FrameRing, fault: Reason | None = None, *, fill: bool = True) -> FrameRef:
    slot = None if fault else ring.free_slot()
    ref = ring.begin(
        t_capture_ns=5, source_index=0, slot=slot, fault=fault, trigger_id=6, part_id="p"
    )
    if slot is not None and fill:
        ring.commit(ref, 6)
    return ref


def decided(ref: FrameRef) -> Verdict:
    return Verdict("ledger", ref.camera, ref.epoch, ref.frame_id, Label.PASS, Reason.OK)


def found(station: Station) -> dict[tuple[str, int, int], str]:
    return {
        (v.camera, v.epoch, v.frame_id): f"{v.label}/{v.reason}"
        for v in read_verdicts(station.journal)
    }


def test_nothing_to_settle(station: Station, journal: Journal) -> None:
    assert settle(station, journal) == 0
    station.shm_dir.mkdir()
    assert settle(station, journal) == 0
    make(station, "left").close()
    assert settle(station, journal) == 0
    assert not station.shm_dir.exists()


def test_every_id_has_a_verdict_before_the_ring_goes(station: Station, journal: Journal) -> None:
    left, right = make(station, "left"), make(station, "right", epoch=2)
    refs = [take(left), take(left), take(left, Reason.DROPPED), take(left), take(left, fill=False)]
    take(right, Reason.BROKEN_FRAME)
    # The first is decided and noted, the second journaled and no more, when the line dies.
    for ref in refs[:2]:
        verdict = decided(ref)
        journal.commit([(verdict, part_of(verdict))])
    left.set_decided_id(1)
    # An answer that nobody judged is no verdict.
    left.finish(refs[3].slot, refs[3].generation, ANSWERED, raw_peak=0.0)
    left.close()
    right.close()
    Board(station.board, station.stages, create=True).close()

    assert settle(station, journal) == 4
    assert not station.shm_dir.exists()
    assert found(station) == {
        ("left", 1, 1): "pass/ok",
        ("left", 1, 2): "pass/ok",
        ("left", 1, 3): "invalid/dropped",
        ("left", 1, 4): "invalid/line_died",
        ("left", 1, 5): "invalid/line_died",
        ("right", 2, 1): "invalid/broken_frame",
    }
    last = [v for v in read_verdicts(station.journal) if v.frame_id == 5]
    assert (last[0].trigger_id, last[0].part_id) == (6, "p")
    assert journal.last["part/"] == 12  # each with its part
    assert settle(station, journal) == 0


def test_more_than_the_log_holds(station: Station, journal: Journal) -> None:
    ring = make(station, "left")
    for _ in range(LOG_RECORDS + 700):
        take(ring, Reason.DROPPED)
    ring.set_decided_id(100)
    ring.close()
    assert settle(station, journal) == LOG_RECORDS + 600
    labels = found(station)
    assert sorted(n for _, _, n in labels) == list(range(101, LOG_RECORDS + 701))
    reasons = [labels["left", 1, n] for n in range(101, LOG_RECORDS + 701)]
    assert reasons == ["invalid/line_died"] * 600 + ["invalid/dropped"] * LOG_RECORDS


def test_a_ring_of_a_camera_that_is_configured_no_more(station: Station, journal: Journal) -> None:
    ring = make(station, "old")
    take(ring)
    ring.close()
    assert settle(station, journal) == 1
    assert found(station) == {("old", 1, 1): "invalid/line_died"}


def test_what_is_no_ring_goes_and_what_is_not_ours_stays(
    station: Station, journal: Journal
) -> None:
    ring = make(station, "left")
    take(ring)
    ring.close()
    (station.shm_dir / "half.ring").write_bytes(b"\0" * 100)
    (station.shm_dir / "strange").write_text("somebody else's")
    assert settle(station, journal) == 1
    assert [path.name for path in station.shm_dir.iterdir()] == ["strange"]
    assert settle(station, journal) == 0


def test_a_journal_that_cannot_be_written_keeps_the_ring(station: Station) -> None:
    ring = make(station, "left")
    take(ring)
    ring.close()
    one, two = Journal(station.journal), Journal(station.journal)
    other = decided(FrameRef("right", 1, 1, -1, 0, 0))
    one.commit([(other, None)])
    with pytest.raises(ResourceError):
        settle(station, two)
    assert station.ring("left").exists()
    assert settle(station, one) == 1
    one.close()
    two.close()
    assert found(station)["left", 1, 1] == "invalid/line_died"


def test_a_ring_that_cannot_be_mapped_is_kept(station: Station, tmp_path: Path) -> None:
    """Too little memory is no reason to forget frames."""
    ring = make(station, "left", slots=4000)
    take(ring)
    ring.close()
    script = """
        import resource, sys
        from pathlib import Path
        from pipeline.errors import ResourceError
        from pipeline.journal import Journal
        from pipeline.ledger import settle
        from pipeline.station import Station
        station = Station.attach(Path(sys.argv[1]))
        journal = Journal(station.journal)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        room = pages * resource.getpagesize() + 2**24
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        try:
            settle(station, journal)
        except ResourceError as error:
            print(error)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "Cannot allocate memory; expected 64 MiB that can be mapped" in done.stdout
    assert station.ring("left").exists()
    journal = Journal(station.journal)
    assert settle(station, journal) == 1
    journal.close()
