from hypothesis import given
from hypothesis import strategies as st

from registry_server.catalog.sorted_names import SortedNames

NAMES = st.text("abc", max_size=3)


@given(st.lists(NAMES), NAMES, st.integers(0, 10), st.integers(1, 4))
def test_names_equal_a_sorted_set(toggled: list[str], after: str, count: int, max_block: int) -> None:
    names, expected = SortedNames(max_block), set[str]()
    for name in toggled:
        if name in expected:
            names.remove(name)
            expected.remove(name)
        else:
            names.add(name)
            expected.add(name)

    assert names.after("", 1_000) == sorted(name for name in expected if name)
    assert names.after(after, count) == sorted(name for name in expected if name > after)[:count]
    assert all(0 < len(block) <= max_block for block in names._blocks)
