from collections.abc import Generator

import pytest

from registry_server.catalog.resemblance import resembling


def result(steps: Generator[None, None, list[str]]) -> tuple[list[str], int]:
    """Return the result and the number of steps."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, count
        count += 1


TEXTS = ["translate", "translation", "summarize", "sum", "@acme/weather", "OCR"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("transalte", ["translate", "translation"]),
        ("TRANSLATION", ["translation", "translate"]),
        ("weather", ["@acme/weather"]),
        ("sun", ["sum"]),
        ("summarise", ["summarize"]),
        ("ocr", ["OCR"]),
        ("vision", []),
        ("", []),
    ],
)
def test_resembling_texts_are_found(wanted: str, expected: list[str]) -> None:
    assert result(resembling(wanted, TEXTS, 3))[0] == expected


def test_full_comparisons_are_bounded() -> None:
    texts = [f"agent-{i:06}" for i in range(20_000)]
    found, steps = result(resembling("agent-00001", texts, 3))
    assert found == ["agent-000001", *found[1:]]
    assert len(found) == 3
    assert steps <= 20_000 / 500 + 200


def test_steps_are_short_for_long_texts() -> None:
    wanted = "".join(chr(ord("a") + i * i % 26) + str(i) for i in range(200))
    assert result(resembling(wanted, ["b" * 512] * 1_000, 3)) == ([], 15)
