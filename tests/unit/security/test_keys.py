"""API keys and their hashes."""

import hashlib

import pytest
from click.testing import CliRunner

from registry_cli.main import main
from registry_server.security.keys import PREFIX, digest_of, hash_text, new_key, parse_hash

HASH = f"sha256:{'a' * 64}"


def test_key_has_256_random_bits_and_a_sha_256_hash() -> None:
    first, second = new_key(), new_key()
    assert first != second
    assert first.startswith(PREFIX)
    assert len(first) == len(PREFIX) + 43
    assert hash_text(first) == f"sha256:{hashlib.sha256(first.encode()).hexdigest()}"
    assert parse_hash(hash_text(first)) == digest_of(first)


@pytest.mark.parametrize("text", ["", "sha256:", HASH.upper(), HASH + "a", HASH[:-1], HASH + "\n", "md5:" + "a" * 64])
def test_malformed_hash_is_not_parsed(text: str) -> None:
    assert parse_hash(text) is None


def test_key_commands_create_a_key_and_print_its_hash() -> None:
    created = CliRunner().invoke(main, ["keys", "create"])
    assert created.exit_code == 0
    key, hash_ = (line.split()[1] for line in created.output.splitlines())
    assert hash_text(key) == hash_
    hashed = CliRunner().invoke(main, ["keys", "hash"], input=f"{key}\n")
    assert hashed.output.strip() == hash_
    assert CliRunner().invoke(main, ["keys", "hash"], input="").exit_code == 1
