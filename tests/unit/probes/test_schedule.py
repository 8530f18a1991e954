from hypothesis import given
from hypothesis import strategies as st

from registry_server.probes.schedule import Schedule


def test_numbers_are_returned_in_order_once_due() -> None:
    schedule = Schedule()
    schedule.set_due(2, 20.0)
    schedule.set_due(1, 10.0)

    assert schedule.next_due() == 10.0
    assert schedule.pop_due(9.9) is None
    assert schedule.pop_due(25.0) == (1, 10.0)
    assert schedule.pop_due(25.0) == (2, 20.0)
    assert schedule.pop_due(25.0) is None
    assert schedule.next_due() is None


def test_new_due_time_replaces_the_earlier_one() -> None:
    schedule = Schedule()
    schedule.set_due(7, 10.0)
    schedule.set_due(7, 30.0)

    assert schedule.pop_due(20.0) is None
    assert schedule.pop_due(30.0) == (7, 30.0)


def test_removed_number_is_never_returned() -> None:
    schedule = Schedule()
    schedule.set_due(7, 10.0)
    schedule.remove(7)
    schedule.remove(7)

    assert schedule.next_due() is None
    assert schedule.pop_due(99.0) is None


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, 5), st.integers(0, 50)),
            st.tuples(st.just("remove"), st.integers(0, 5), st.just(0)),
            st.tuples(st.just("pop"), st.just(0), st.integers(0, 50)),
        ),
        max_size=400,
    )
)
def test_schedule_matches_a_dict_and_its_heap_stays_bounded(steps: list[tuple[str, int, int]]) -> None:
    schedule, model = Schedule(), dict[int, float]()
    for step, number, time in steps:
        match step:
            case "set":
                schedule.set_due(number, time)
                model[number] = time
            case "remove":
                schedule.remove(number)
                model.pop(number, None)
            case _:
                popped = schedule.pop_due(time)
                earliest = min(model.values(), default=None)
                if earliest is None or earliest > time:
                    assert popped is None
                else:
                    assert popped is not None
                    assert model.pop(popped[0]) == popped[1] == earliest
        assert len(schedule._current) == len(model)
        assert len(schedule._heap) <= 2 * len(model) + 65
