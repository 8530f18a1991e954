"""The policy file: what it may say, and what is said about a bad one."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from registry_cli.main import main
from registry_server.errors import ConfigurationError
from registry_server.security.identity import Identity, Role
from registry_server.security.keys import PREFIX, digest_of, hash_text, new_key, parse_hash
from registry_server.security.lines import BadYaml, read_yaml
from registry_server.security.patterns import matches
from registry_server.security.policy import Policy, read_policy
from tests.support.markdown import text_of

HASH = f"sha256:{'a' * 64}"
OTHER_HASH = f"sha256:{'b' * 64}"


def read(directory: Path, text: str) -> Policy:
    file = directory / "policy.yaml"
    file.write_text(text, encoding="utf-8")
    return read_policy(file)


def problems(directory: Path, text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read(directory, text)
    prefix = f"{directory / 'policy.yaml'}:"
    lines = str(caught.value).splitlines()
    assert all(line.startswith(prefix) for line in lines), lines
    return [line.removeprefix(prefix) for line in lines]


def test_an_empty_file_lets_nobody_do_anything(tmp_path: Path) -> None:
    assert read(tmp_path, "") == Policy()
    assert Policy().anonymous == "none"


def test_the_example_of_the_documentation_is_one(tmp_path: Path) -> None:
    examples = [block.partition("```")[0] for block in text_of("docs/security.md").split("```yaml\n")[1:]]
    assert examples
    whole = read(tmp_path, examples[0])
    assert {key.role for key in whole.api_keys} >= {"agent", "operator"}
    assert whole.jwt
    assert whole.certificates


ISSUER = "jwt:\n- name: a\n  issuer: i\n  audience: [x]\n"
NO_HASH = "must be sha256: and 64 hexadecimal digits, as `ossa-registry keys create` prints it"
NO_ALGORITHM = "must be 'RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', 'ES256', 'ES384', 'ES512' or 'EdDSA'"
BAD = {
    "unknown at the top": ("api_key: []\n", ["1: api_key: is unknown here"]),
    "no mapping": ("- a\n", ["1: must be a mapping"]),
    "several problems at once, in order": (
        f"""anonymous: admin
api_keys:
  - name: one
    role: viewer
    hashes: [{HASH}]
    rol: x
  - name: two
    role: king
    hashes:
      - {OTHER_HASH}
      - not-a-hash
""",
        [
            "1: anonymous: must be 'none' or 'viewer'",
            "6: api_keys[0].rol: is unknown here",
            "8: api_keys[1].role: must be 'viewer', 'agent', 'operator' or 'admin'",
            f"11: api_keys[1].hashes[1]: {NO_HASH}",
        ],
    ),
    "missing": ("api_keys:\n  - name: one\n", ["2: api_keys[0].hashes: is missing", "2: api_keys[0].role: is missing"]),
    "a name twice": (
        f"api_keys:\n- {{name: a, role: viewer, hashes: [{HASH}]}}\n- {{name: a, role: admin, hashes: [{OTHER_HASH}]}}",
        ["3: api_keys[1].name: stands in the file already; every identity needs its own"],
    ),
    "a name of the registry itself": (
        f"api_keys:\n- {{name: anonymous, role: viewer, hashes: [{HASH}]}}\n",
        ["2: api_keys[0].name: is taken by the registry itself"],
    ),
    "a key twice": (
        f"api_keys:\n- {{name: a, role: viewer, hashes: [{HASH}]}}\n- {{name: b, role: admin, hashes: [{HASH}]}}\n",
        ["3: api_keys[1].hashes[0]: stands in the file already"],
    ),
    "an agent without names": (
        f"api_keys:\n- name: a\n  role: agent\n  hashes: [{HASH}]\n",
        ["2: api_keys[0]: needs patterns: an agent may have only services whose names match"],
    ),
    "names without an agent": (
        f"api_keys:\n- name: a\n  role: admin\n  hashes: [{HASH}]\n  patterns: ['*']\n",
        ["5: api_keys[0].patterns: are for the role agent alone"],
    ),
    "a date without a zone": (
        f"api_keys:\n- name: a\n  role: admin\n  hashes: [{HASH}]\n  expires: 2027-01-01T00:00:00\n",
        ["5: api_keys[0].expires: must be a time with its zone, such as 2027-01-31T00:00:00Z"],
    ),
    "no algorithm": (
        f"{ISSUER}  jwks_file: f\n  algorithms: [none, HS256]\n  rules: [{{role: viewer}}]\n",
        [f"6: jwt[0].algorithms[{i}]: {NO_ALGORITHM}" for i in (0, 1)],
    ),
    "keys from two places, over an open line": (
        f"{ISSUER}  jwks_file: f\n  jwks_url: http://idp.test/keys\n  rules: [{{role: viewer}}]\n",
        ["6: jwt[0].jwks_url: must be an https:// URL without user and password (http:// for this machine alone)"],
    ),
    "keys from nowhere": (
        "jwt:\n- name: a\n  issuer: i\n  audience: [x]\n  rules: [{role: viewer, claim: c}]\n",
        [
            "2: jwt[0]: needs one of jwks_url and jwks_file",
            "5: jwt[0].rules[0]: needs both of claim and has, or none for all tokens",
        ],
    ),
    "a certificate of two kinds": (
        "certificates:\n- uri: a\n  dns: b\n  role: viewer\n",
        ["2: certificates[0]: needs one of uri, dns and common_name"],
    ),
    "an open bracket": ("anonymous:\n  [\n", ["3: is not YAML: did not find expected node content"]),
    "a word as a number": ("anonymous: !!int none\n", ["1: is not a int"]),
    "a key twice in a mapping": ("anonymous: none\nanonymous: viewer\n", ["2: has the key 'anonymous' twice"]),
    "an alias": ("a: &a [1]\nb: *a\n", ["2: has an alias (*NAME), which is not taken here"]),
    "limits that are none": (
        f"api_keys:\n- name: a\n  role: admin\n  hashes: [{HASH}]\n  limits:\n    watches: -1\n    burst: a\n",
        [
            "6: api_keys[0].limits.watches: must be greater than or equal to 0",
            "7: api_keys[0].limits.burst: must be a valid integer",
        ],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_told_with_its_line(name: str, tmp_path: Path) -> None:
    text, expected = BAD[name]
    assert problems(tmp_path, text) == expected


def test_a_key_in_the_place_of_its_hash_is_not_repeated(tmp_path: Path) -> None:
    key = new_key()
    text = f"api_keys:\n- name: a\n  role: admin\n  hashes: [{key}]\n"
    assert key not in "\n".join(problems(tmp_path, text))


def test_a_file_that_cannot_be_read_is_told_by_its_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^security\.policy_file: cannot read .*No such file"):
        read_policy(tmp_path / "nowhere")
    (tmp_path / "policy.yaml").write_bytes(b"anonymous: none\n# \xff\n")
    with pytest.raises(ConfigurationError, match=r"policy\.yaml:2: is not UTF-8 text"):
        read_policy(tmp_path / "policy.yaml")


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    try:
        lines = list(read_yaml(text).lines.values())
    except BadYaml as error:
        lines = [error.line]
    assert all(line >= 1 for line in lines)


def test_depth_is_refused() -> None:
    with pytest.raises(BadYaml):
        read_yaml("[" * 20_000)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_yaml_is_read_as_others_read_it(value: object) -> None:
    text = yaml.safe_dump(value, allow_unicode=False)
    assert json.dumps(read_yaml(text).value) == json.dumps(yaml.safe_load(text))


# Names.


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("fleet-*", "fleet-1", True),
        ("fleet-*", "fleet-", True),
        ("fleet-*", "a-fleet-1", False),
        ("*", "anything", True),
        ("a.b", "axb", False),
        ("a*c*e", "abcde", True),
        ("a**e", "abcde", True),
        ("Fleet-*", "fleet-1", False),
        ("a", "a\n", False),
    ],
)
def test_a_pattern_matches_the_whole_name(pattern: str, name: str, *, expected: bool) -> None:
    assert matches(pattern, name) is expected


@pytest.mark.parametrize("role", Role)
def test_only_an_agent_is_held_to_patterns(role: Role) -> None:
    identity = Identity("someone", role, "api-key", ("fleet-*",))
    assert identity.may_own("fleet-1") is (role >= Role.AGENT)
    assert identity.may_own("other") is (role > Role.AGENT)


# Keys.


def test_a_key_has_256_random_bits_and_its_hash_is_sha_256() -> None:
    first, second = new_key(), new_key()
    assert first != second
    assert first.startswith(PREFIX)
    assert len(first) == len(PREFIX) + 43
    assert hash_text(first) == f"sha256:{hashlib.sha256(first.encode()).hexdigest()}"
    assert parse_hash(hash_text(first)) == digest_of(first)


@pytest.mark.parametrize("text", ["", "sha256:", HASH.upper(), HASH + "a", HASH[:-1], HASH + "\n", "md5:" + "a" * 64])
def test_what_is_no_hash_is_none(text: str) -> None:
    assert parse_hash(text) is None


def test_the_command_makes_a_key_and_tells_its_hash() -> None:
    made = CliRunner().invoke(main, ["keys", "create"])
    assert made.exit_code == 0
    key, hash_ = (line.split()[1] for line in made.output.splitlines())
    assert hash_text(key) == hash_
    told = CliRunner().invoke(main, ["keys", "hash"], input=f"{key}\n")
    assert told.output.strip() == hash_
    assert CliRunner().invoke(main, ["keys", "hash"], input="").exit_code == 1
