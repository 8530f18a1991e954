"""The filter options of ``list`` and ``watch``."""

from ossa.registry.v1.service_pb2 import ServiceFilter
from registry_cli.filters import filter_options


def test_every_filter_field_is_an_option_with_help() -> None:
    @filter_options
    def command() -> None: ...

    options = {option.name: option for option in command.__click_params__}  # type: ignore[attr-defined] # set by click
    assert set(options) == set(ServiceFilter.DESCRIPTOR.fields_by_name)
    assert [name for name, option in options.items() if not option.help] == []
