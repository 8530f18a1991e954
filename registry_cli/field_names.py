"""Translation of gRPC field paths, which the registry reports in errors, to the names that users of the CLI see."""

import re
from typing import Final

_PREFIX: Final = re.compile(r"^(?:services?(?:\[[0-9]+\])?|filter)\.")
_SPECIAL_PATHS: Final = (
    (re.compile(r"^health_check\.(?:http|grpc)(?=\.)"), "health_check"),
    (re.compile(r"^ttl$"), "ttl_seconds"),
    (re.compile(r"^(health_check\.(?:interval|timeout|degraded_after))$"), r"\1_ms"),
)
_FLAGS: Final = {"name_pattern": "--name", "capability_version": "--capability-version", "tags": "--tag"}
_UNDERSCORE: Final = re.compile(r"_([a-z])")


def document_name(path: str) -> str:
    """Return the flag of a filter field, or the JSON and YAML path of any other field."""
    head, bracket, key = _PREFIX.sub("", path).partition('["')
    if path.startswith("filter."):
        root = head.partition("[")[0]
        return _FLAGS.get(root) or "--" + root.replace("labels", "label").replace("_", "-")
    for pattern, replacement in _SPECIAL_PATHS:
        head = pattern.sub(replacement, head)
    return _UNDERSCORE.sub(lambda match: match[1].upper(), head) + bracket + key
