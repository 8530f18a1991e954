"""Names of fields in the place of those of gRPC messages, by which the registry tells what is wrong with them."""

import re
from typing import Final

_PREFIX: Final = re.compile(r"^(?:services?(?:\[[0-9]+\])?|filter)\.")
_SPECIAL: Final = (
    (re.compile(r"^health_check\.(?:http|grpc)(?=\.)"), "health_check"),
    (re.compile(r"^ttl$"), "ttl_seconds"),
    (re.compile(r"^(health_check\.(?:interval|timeout|degraded_after))$"), r"\1_ms"),
)
_FLAGS: Final = {"name_pattern": "--name", "capability_version": "--capability-version", "tags": "--tag"}
_UNDERSCORE: Final = re.compile(r"_([a-z])")


def document_name(path: str) -> str:
    """The name by which the user knows a field: that of a flag for filters, else that in JSON and YAML."""
    head, bracket, key = _PREFIX.sub("", path).partition('["')
    if path.startswith("filter."):
        root = head.partition("[")[0]
        return _FLAGS.get(root) or "--" + root.replace("labels", "label").replace("_", "-")
    for pattern, replacement in _SPECIAL:
        head = pattern.sub(replacement, head)
    return _UNDERSCORE.sub(lambda match: match[1].upper(), head) + bracket + key
