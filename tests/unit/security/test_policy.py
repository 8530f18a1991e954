"""``read_policy``: the policy file and the errors about it."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from registry_server.errors import ConfigurationError
from registry_server.security.keys import new_key
from registry_server.security.policy import Policy, read_policy
from tests.support.markdown import text_of

HASH = f"sha256:{'a' * 64}"
OTHER_HASH = f"sha256:{'b' * 64}"


def read(directory: Path, text: str) -> Policy:
    file = directory / "policy.yaml"
    file.write_text(text, encoding="utf-8")
    return read_policy(file)


def problems(directory: Path, text: str) -> list[str]:
    """Return the reported problems, each from its line number on."""
    with pytest.raises(ConfigurationError) as caught:
        read(directory, text)
    prefix = f"{directory / 'policy.yaml'}:"
    lines = str(caught.value).splitlines()
    assert all(line.startswith(prefix) for line in lines), lines
    return [line.removeprefix(prefix) for line in lines]


def test_empty_file_grants_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "") == Policy()
    assert Policy().anonymous == "none"


def test_documented_example_is_valid(tmp_path: Path) -> None:
    examples = [block.partition("```")[0] for block in text_of("docs/security.md").split("```yaml\n")[1:]]
    assert examples
    policy, restricting = (read(tmp_path, example) for example in examples)
    assert restricting.restricts()
    assert not policy.restricts()
    assert {key.role for key in policy.api_keys} >= {"agent", "operator"}
    assert policy.jwt
    assert policy.certificates


ISSUER = "jwt:\n- name: a\n  issuer: i\n  audience: [x]\n"
BAD_HASH = "must be sha256: and 64 hexadecimal digits, as `ossa-registry keys create` prints it"
BAD_ALGORITHM = "must be 'RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', 'ES256', 'ES384', 'ES512' or 'EdDSA'"
BAD_FILES = {
    "unknown key at the top": ("api_key: []\n", ["1: api_key: is not a known key"]),
    "list instead of a mapping": ("- a\n", ["1: must be a mapping"]),
    "several problems, in order": (
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
            "6: api_keys[0].rol: is not a known key",
            "8: api_keys[1].role: must be 'viewer', 'agent', 'operator' or 'admin'",
            f"11: api_keys[1].hashes[1]: {BAD_HASH}",
        ],
    ),
    "missing keys": (
        "api_keys:\n  - name: one\n",
        ["2: api_keys[0].hashes: is missing", "2: api_keys[0].role: is missing"],
    ),
    "repeated identity name": (
        f"api_keys:\n- {{name: a, role: viewer, hashes: [{HASH}]}}\n- {{name: a, role: admin, hashes: [{OTHER_HASH}]}}",
        ["3: api_keys[1].name: is already used in this file; every identity needs a unique name"],
    ),
    "reserved name": (
        f"api_keys:\n- {{name: anonymous, role: viewer, hashes: [{HASH}]}}\n",
        ["2: api_keys[0].name: is reserved"],
    ),
    "repeated API key": (
        f"api_keys:\n- {{name: a, role: viewer, hashes: [{HASH}]}}\n- {{name: b, role: admin, hashes: [{HASH}]}}\n",
        ["3: api_keys[1].hashes[0]: is already used in this file"],
    ),
    "agent without patterns": (
        f"api_keys:\n- name: a\n  role: agent\n  hashes: [{HASH}]\n",
        ["2: api_keys[0]: needs patterns: an agent may own only services whose names match one"],
    ),
    "patterns of another role": (
        f"api_keys:\n- name: a\n  role: admin\n  hashes: [{HASH}]\n  patterns: ['*']\n",
        ["5: api_keys[0].patterns: are only valid for the role agent"],
    ),
    "time without a zone": (
        f"api_keys:\n- name: a\n  role: admin\n  hashes: [{HASH}]\n  expires: 2027-01-01T00:00:00\n",
        ["5: api_keys[0].expires: must be a time with its zone, such as 2027-01-31T00:00:00Z"],
    ),
    "forbidden algorithms": (
        f"{ISSUER}  jwks_file: f\n  algorithms: [none, HS256]\n  rules: [{{role: viewer}}]\n",
        [f"6: jwt[0].algorithms[{i}]: {BAD_ALGORITHM}" for i in (0, 1)],
    ),
    "two key sources, one without TLS": (
        f"{ISSUER}  jwks_file: f\n  jwks_url: http://idp.test/keys\n  rules: [{{role: viewer}}]\n",
        ["6: jwt[0].jwks_url: must be an https:// URL without user and password (http:// for loopback only)"],
    ),
    "no key source": (
        "jwt:\n- name: a\n  issuer: i\n  audience: [x]\n  rules: [{role: viewer, claim: c}]\n",
        [
            "2: jwt[0]: needs either jwks_url or jwks_file",
            "5: jwt[0].rules[0]: needs both claim and has, or neither for all tokens",
        ],
    ),
    "certificate rule with two names": (
        "certificates:\n- uri: a\n  dns: b\n  role: viewer\n",
        ["2: certificates[0]: needs exactly one of uri, dns and common_name"],
    ),
    "unclosed bracket": ("anonymous:\n  [\n", ["3: is not YAML: did not find expected node content"]),
    "word tagged as a number": ("anonymous: !!int none\n", ["1: is not a valid int"]),
    "repeated mapping key": ("anonymous: none\nanonymous: viewer\n", ["2: has the key 'anonymous' twice"]),
    "alias": ("a: &a [1]\nb: *a\n", ["2: has an alias (*NAME); aliases are not supported"]),
    "limits out of range": (
        f"api_keys:\n- name: a\n  role: admin\n  hashes: [{HASH}]\n  limits:\n    watches: -1\n    burst: a\n",
        [
            "6: api_keys[0].limits.watches: must be greater than or equal to 0",
            "7: api_keys[0].limits.burst: must be a valid integer",
        ],
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_problems_are_reported_with_their_lines(name: str, tmp_path: Path) -> None:
    text, expected = BAD_FILES[name]
    assert problems(tmp_path, text) == expected


def test_pattern_that_admits_names_of_other_subjects_is_logged(tmp_path: Path) -> None:
    text = f"""{ISSUER}  jwks_file: f
  rules:
    - {{role: agent, patterns: ["{{subject}}", "plain-*"]}}
    - role: agent
      claim: a
      has: b
      patterns: ["{{subject}}",
                 "x-{{subject}}-*"]
certificates:
- {{uri: "x/*", role: agent, patterns: ["{{subject}}*"]}}
"""
    with capture_logs() as logs:
        read(tmp_path, text)
    assert [(line["line"], line["rule"], line["pattern"]) for line in logs] == [
        (12, "jwt[0].rules[1].patterns[1]", "x-{subject}-*"),
        (14, "certificates[0].patterns[0]", "{subject}*"),
    ]


def test_key_in_place_of_its_hash_is_not_repeated_in_the_error(tmp_path: Path) -> None:
    key = new_key()
    text = f"api_keys:\n- name: a\n  role: admin\n  hashes: [{key}]\n"
    assert key not in "\n".join(problems(tmp_path, text))


def test_unreadable_file_is_reported_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^security\.policy_file: cannot read .*No such file"):
        read_policy(tmp_path / "nowhere")
    (tmp_path / "policy.yaml").write_bytes(b"anonymous: none\n# \xff\n")
    with pytest.raises(ConfigurationError, match=r"policy\.yaml:2: is not UTF-8 text"):
        read_policy(tmp_path / "policy.yaml")
