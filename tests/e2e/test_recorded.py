"""What is shown of the command line is what it prints now. Its commands are compared by ``test_readme.py``."""

import pytest

from docs.record import DOCUMENT, PICTURE, draw_session, record_output
from tests.support.console import blocks

# Many processes, each of which takes a second or more on a busy machine.
pytestmark = pytest.mark.timeout(300)


async def test_the_picture_is_what_is_drawn_now() -> None:
    assert await draw_session() == PICTURE.read_text(encoding="utf-8"), "run `make docs`"


async def test_what_was_typed_instead_of_recorded_is_replaced() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert "\nsummarizer registered, revision 1\n" in document
    typed = document.replace("summarizer registered, revision 1\n", "all went well\nreally\n")
    assert [each.line for each in blocks(typed)] != [each.line for each in blocks(document)]
    # Ages and times of what is level already are not touched.
    assert await record_output(typed) == document
