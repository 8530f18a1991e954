from hypothesis import given
from hypothesis import strategies as st

from registry_server.health.schedule import Schedule


def test_names_come_out_when_they_are_due_and_not_before() -> None:
    schedule = Schedule()
    schedule.set("late", 20.0)
    schedule.set("early", 10.0)

    assert schedule.next_due() == 10.0
    assert schedule.pop_due(9.9) is None
    assert schedule.pop_due(25.0) == ("early", 10.0)
    assert schedule.pop_due(25.0) == ("late", 20.0)
    assert schedule.pop_due(25.0) is None
    assert schedule.next_due() is None


def test_only_the_time_that_was_set_last_counts() -> None:
    schedule = Schedule()
    schedule.set("agent", 10.0)
    schedule.set("agent", 30.0)

    assert len(schedule) == 1
    assert schedule.pop_due(20.0) is None
    assert schedule.pop_due(30.0) == ("agent", 30.0)


def test_a_discarded_name_never_comes_out() -> None:
    schedule = Schedule()
    schedule.set("agent", 10.0)
    schedule.discard("agent")
    schedule.discard("agent")

    assert "agent" not in schedule
    assert schedule.pop_due(99.0) is None


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.sampled_from("abcdef"), st.integers(0, 50)),
            st.tuples(st.just("discard"), st.sampled_from("abcdef"), st.just(0)),
            st.tuples(st.just("pop"), st.just(""), st.integers(0, 50)),
        ),
        max_size=400,
    )
)
def test_it_equals_a_plain_dict_and_does_not_grow_beyond_its_names(steps: list[tuple[str, str, int]]) -> None:
    schedule, model = Schedule(), dict[str, float]()
    for step, name, time in steps:
        match step:
            case "set":
                schedule.set(name, time)
                model[name] = time
            case "discard":
                schedule.discard(name)
                model.pop(name, None)
            case _:
                popped = schedule.pop_due(time)
                earliest = min(model.values(), default=None)
                if earliest is None or earliest > time:
                    assert popped is None
                else:
                    assert popped is not None
                    assert model.pop(popped[0]) == popped[1] == earliest
        assert len(schedule) == len(model)
        assert len(schedule._heap) <= 2 * len(model) + 65
