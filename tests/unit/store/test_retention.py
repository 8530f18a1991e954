from registry_server.store.retention import EventRetention

HOUR_MS = 3_600_000


def test_only_the_number_counts_without_an_age() -> None:
    retention = EventRetention(100)
    for revision in range(1, 1001):
        retention.add_event(revision, revision, 500)
    assert 100 <= retention.max_length <= 200


def test_events_are_kept_up_to_an_age() -> None:
    retention = EventRetention(100, max_age_seconds=3600)
    for revision in range(1, 1001):
        retention.add_event(revision, revision * HOUR_MS // 500, 500)
    assert 500 <= retention.max_length <= 500 + 64


def test_size_limits_the_events_beyond_the_number() -> None:
    retention = EventRetention(100, max_age_seconds=3600, max_bytes=100_000)
    for revision in range(1, 1001):
        retention.add_event(revision, 0, 500)
    assert 200 - 64 <= retention.max_length <= 200
    for revision in range(1001, 1100):
        retention.add_event(revision, 0, 50_000)
    assert retention.max_length == 100


def test_process_continues_with_the_events_of_earlier_ones() -> None:
    retention = EventRetention(100, max_age_seconds=3600)
    retention.start_at(oldest_revision=1, oldest_at_ms=0, revision=2001, at_ms=2 * HOUR_MS, size=500)
    retention.add_event(2001, 2 * HOUR_MS, 500)
    assert 1000 <= retention.max_length <= 1000 + 2000 // 32 + 1
    retention.add_event(5, 3 * HOUR_MS, 500)
    assert retention.max_length == 100, "another history"
