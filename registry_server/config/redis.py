"""Settings of the connection to Redis."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from registry_server.config.addresses import EMBEDDED, RedisUrl, bad_setting, check_redis_url
from registry_server.config.fields import Metavar, Milliseconds, Number, OptionalFile, SettingsGroup

_KEY_PREFIX = re.compile(r"[A-Za-z0-9{}._:/-]{1,128}")
_ONE_HASH_TAG = re.compile(r"[^{}]*\{[^{}]+\}[^{}]*")
_DEFAULT_TIMEOUT_MS = 2_000


def _default_wait_timeout(group: dict[str, Any]) -> int:
    # A short redis.timeout_ms alone must not be an error.
    timeout: int = group.get("timeout_ms", _DEFAULT_TIMEOUT_MS)
    return min(1_000, max(timeout // 2, 1))


class RedisSettings(SettingsGroup):
    """Redis."""

    url: Annotated[RedisUrl, AfterValidator(check_redis_url), Metavar("URL")] = RedisUrl(EMBEDDED)
    """Redis to store the registry in: 'embedded' starts a private redis-server that stores its data in the data
    directory. Otherwise a URL that starts with redis://, rediss://, unix://, redis+sentinel://, redis+cluster:// or,
    with TLS, rediss+sentinel:// or rediss+cluster://. Set a URL with a password in the environment or the file, because
    other users of the machine can see flags."""
    key_prefix: str = "ossa:services"
    """Prefix of all keys: 1 to 128 characters of A-Z a-z 0-9 { } . _ : / -, without a colon at the end.
    redis+cluster:// requires exactly one hash tag, as in {ossa}:services."""
    tls_ca_file: OptionalFile = None
    """CA certificates for the certificate of Redis, as PEM, for rediss:// URLs. By default those of the system."""
    tls_cert_file: OptionalFile = None
    """Client certificate for a Redis that requires one, as PEM."""
    tls_key_file: OptionalFile = None
    """Private key of the client certificate, as unencrypted PEM."""
    timeout_ms: Milliseconds = _DEFAULT_TIMEOUT_MS
    """Maximum time to wait for a response from Redis, in milliseconds."""
    wait_replicas: Annotated[Number, Field(ge=0, le=100)] = 0
    """Number of Redis replicas that must confirm a change before it is answered. If fewer confirm it, the call fails
    with UNAVAILABLE and the reason NOT_REPLICATED. 0 disables the wait."""
    wait_timeout_ms: Milliseconds = Field(default_factory=_default_wait_timeout)
    """Maximum time to wait for these replicas, in milliseconds. Must be less than redis.timeout_ms. The default is
    reduced to half of redis.timeout_ms if that is less."""
    repair: bool = True
    """Whether the processes write the state that they hold back to a Redis that restarted empty or with older data.
    If false, the state of Redis is accepted, and watchers receive an unregistered event for each lost service."""
    events_max_length: Annotated[Number, Field(ge=100, le=10_000_000)] = 10_000
    """Number of events to keep in the Redis stream and in each process, so that watches can resume."""
    events_max_age: Annotated[Number, Field(ge=0, le=31 * 86_400)] = 86_400
    """Age in seconds up to which the Redis stream keeps events beyond redis.events_max_length for the history, as far
    as they fit in 64 MiB. 0 keeps only that number."""

    @field_validator("tls_key_file")
    @classmethod
    def _check_pair(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if (key is None) != (info.data.get("tls_cert_file") is None):
            raise bad_setting("must be given together with {other}", other="redis.tls_cert_file")
        return key

    @property
    def safe_url(self) -> str:
        """The URL with passwords masked, for logs."""
        return str(self.url)

    @field_validator("key_prefix")
    @classmethod
    def _check_key_prefix(cls, prefix: str, info: ValidationInfo) -> str:
        if not _KEY_PREFIX.fullmatch(prefix) or prefix.endswith(":"):
            raise bad_setting("must be 1 to 128 characters of A-Z a-z 0-9 { } . _ : / - without a colon at the end")
        url = info.data.get("url")
        if isinstance(url, RedisUrl) and url.is_cluster and not _ONE_HASH_TAG.fullmatch(prefix):
            # One script writes all keys of a change, and a cluster runs it only if they are all in one slot.
            raise bad_setting(
                "must have one hash tag, as in '{ossa}:services', for the Redis Cluster of {other}", other="redis.url"
            )
        return prefix

    @field_validator("wait_replicas")
    @classmethod
    def _check_wait_replicas(cls, replicas: int, info: ValidationInfo) -> int:
        url = info.data.get("url")
        if replicas and isinstance(url, RedisUrl) and url.get_secret_value() == EMBEDDED:
            raise bad_setting("must be 0 for the embedded Redis of {other}, which has no replicas", other="redis.url")
        return replicas

    @field_validator("wait_timeout_ms")
    @classmethod
    def _check_wait_timeout(cls, wait_timeout: int, info: ValidationInfo) -> int:
        timeout: int = info.data.get("timeout_ms", wait_timeout + 1)
        if wait_timeout >= max(timeout, 2):  # half of 1 is not a time
            raise bad_setting("must be less than {other} ({limit})", other="redis.timeout_ms", limit=timeout)
        return wait_timeout
