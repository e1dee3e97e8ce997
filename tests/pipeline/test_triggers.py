"""The line's triggers: what is written is read, and nothing else is believed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.triggers import PART_ID_BYTES, RECORDS, TARGET_BYTES, NoTriggers, Trigger, TriggerLog


@pytest.fixture
def log(tmp_path: Path) -> Iterator[TriggerLog]:
    log = TriggerLog(tmp_path / "triggers", create_epoch=7)
    yield log
    log.close()


def test_a_new_log_is_empty(log: TriggerLog) -> None:
    assert (log.last, log.epoch) == (0, 7)
    assert log.get(0) is None
    assert log.get(1) is None
    assert log.get(-1) is None


def fitting(most: int) -> st.SearchStrategy[str]:
    texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
    return texts.filter(lambda text: len(text.encode()) <= most)


@settings(max_examples=50, deadline=None)
@given(
    added=st.lists(
        st.tuples(
            fitting(TARGET_BYTES),
            st.integers(0, 2**63 - 1),
            st.integers(0, 2**32 - 1),
            fitting(PART_ID_BYTES),
        ),
        max_size=20,
    )
)
def test_another_process_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, added: list[tuple[str, int, int, str]]
) -> None:
    path = tmp_path_factory.mktemp("log") / "triggers"
    writer, reader = TriggerLog(path, create_epoch=1), TriggerLog(path)
    try:
        for number, (target, t_ns, trigger_id, part_id) in enumerate(added, start=1):
            made = writer.add(target, t_ns, trigger_id=trigger_id, part_id=part_id)
            assert made == Trigger(number, t_ns, target, trigger_id, part_id)
            assert reader.last == number
            assert reader.get(number) == made
        assert reader.get(len(added) + 1) is None
    finally:
        writer.close()
        reader.close()


def test_old_records_are_overwritten_and_not_believed(log: TriggerLog) -> None:
    for number in range(RECORDS + 3):
        log.add("box", number, trigger_id=number)
    assert log.last == RECORDS + 3
    assert [log.get(index) for index in (1, 2, 3)] == [None] * 3
    oldest = log.get(4)
    assert oldest is not None
    assert oldest.trigger_id == 3


@pytest.mark.parametrize("content", [b"", b"x", bytes(2 << 20), None])
def test_a_file_that_is_none_of_ours(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "triggers"
    TriggerLog(path, create_epoch=1).close()
    if content is None:  # of the right size
        content = bytes(path.stat().st_size)
    path.write_bytes(content)
    with pytest.raises(NoTriggers, match="triggers"):
        TriggerLog(path)


def test_a_log_is_made_once(tmp_path: Path) -> None:
    TriggerLog(tmp_path / "triggers", create_epoch=1).close()
    with pytest.raises(NoTriggers):
        TriggerLog(tmp_path / "triggers", create_epoch=2)
    with pytest.raises(NoTriggers):
        TriggerLog(tmp_path / "elsewhere")
