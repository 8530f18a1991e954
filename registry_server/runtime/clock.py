"""The wall clock as a parameter: code that needs it takes a ``Clock``, so that tests can advance it."""

import time
from collections.abc import Callable

from google.protobuf.timestamp_pb2 import Timestamp

Clock = Callable[[], int]
"""Returns the wall clock in nanoseconds since the epoch."""

system_clock: Clock = time.time_ns


def timestamp(nanoseconds: int) -> Timestamp:
    """Convert nanoseconds since the epoch to a ``Timestamp`` of millisecond precision.

    The JSON form of a service holds milliseconds; finer values would make the two forms differ.
    """
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=rest // 1_000_000 * 1_000_000)
