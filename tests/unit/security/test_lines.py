"""``read_yaml``: values as PyYAML parses them, with their lines."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from registry_server.security.lines import BadYaml, read_yaml


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_parsed_or_refused_with_a_line(text: str) -> None:
    try:
        lines = list(read_yaml(text).lines.values())
    except BadYaml as error:
        lines = [error.line]
    assert all(line >= 1 for line in lines)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(BadYaml):
        read_yaml("[" * 20_000)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_values_equal_those_of_pyyaml(value: object) -> None:
    text = yaml.safe_dump(value, allow_unicode=False)
    assert json.dumps(read_yaml(text).value) == json.dumps(yaml.safe_load(text))
