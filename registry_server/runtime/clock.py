"""Time as a parameter: whoever needs the wall clock takes a ``Clock``, so that tests can move it."""

import time
from collections.abc import Callable

from google.protobuf.timestamp_pb2 import Timestamp

Clock = Callable[[], int]
"""Returns the wall clock in nanoseconds since the epoch."""

system_clock: Clock = time.time_ns


def timestamp(nanoseconds: int) -> Timestamp:
    """Turns nanoseconds since the epoch into a ``Timestamp`` of millisecond precision.

    Milliseconds are what the JSON form of a service can hold; finer values would differ between the two forms.
    """
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=rest // 1_000_000 * 1_000_000)
