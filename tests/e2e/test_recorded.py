"""Recorded command output in the documentation is current. ``test_readme.py`` compares the commands."""

import pytest

from docs.record import DOCUMENT, PICTURE, draw_session, record_output
from tests.support.console import blocks

# Starts many processes, each of which takes a second or more on a busy machine.
pytestmark = pytest.mark.timeout(300)


async def test_recorded_picture_is_current() -> None:
    assert await draw_session() == PICTURE.read_text(encoding="utf-8"), "run `make docs`"


async def test_hand_written_output_is_replaced_by_recorded_output() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert "\nsummarizer registered, revision 1\n" in document
    edited = document.replace("summarizer registered, revision 1\n", "all went well\nreally\n")
    assert [each.line for each in blocks(edited)] != [each.line for each in blocks(document)]
    # Ages and times in blocks that are already current stay unchanged.
    assert await record_output(edited) == document
