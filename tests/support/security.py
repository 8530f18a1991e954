"""Policies, keys, tokens and certificates for tests."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jwt
import yaml
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from registry_server.security.keys import hash_text, new_key
from tests.support.markdown import text_of

ISSUER: Final = "https://issuer.test"
AUDIENCE: Final = "ossa-registry"
ROLES: Final = ("viewer", "agent", "operator", "admin")

_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
_EC = ec.generate_private_key(ec.SECP256R1())
_ED = ed25519.Ed25519PrivateKey.generate()
SIGNERS: Final[Mapping[str, Any]] = {"RS256": _RSA, "ES256": _EC, "EdDSA": _ED}
"""Private keys by algorithm; the key id equals the algorithm."""


def jwks(algorithms: Sequence[str] = tuple(SIGNERS)) -> dict[str, Any]:
    """Return the public keys as a JWK Set."""
    kinds: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}
    return {
        "keys": [
            {**json.loads(kinds[name].to_jwk(SIGNERS[name].public_key())), "kid": name, "use": "sig", "alg": name}
            for name in algorithms
        ]
    }


def token(
    subject: str = "someone", *, algorithm: str = "RS256", key: Any = None, headers: Any = None, **claims: Any
) -> str:
    """Return a token that is valid for an hour by default; claims override the defaults, ``None`` omits a claim."""
    now = int(time.time())
    all_claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + 3600, **claims}
    return jwt.encode(
        {name: value for name, value in all_claims.items() if value is not None},
        SIGNERS[algorithm] if key is None else key,
        algorithm=algorithm,
        headers={"kid": algorithm, **(headers or {})},
    )


class Policy:
    """A policy file with a key for each role, a second agent, an expired key and an issuer of tokens.

    Agents may use names that start with ``fleet-``.
    """

    def __init__(self, directory: Path, **changes: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.file = directory / "policy.yaml"
        self.jwks_file = directory / "jwks.json"
        self.jwks_file.write_text(json.dumps(jwks()), encoding="utf-8")
        self.keys = {name: new_key() for name in (*ROLES, "other", "expired")}
        self.document: dict[str, Any] = {
            "api_keys": [
                self.entry("viewer"),
                self.entry("agent", patterns=["fleet-*"]),
                self.entry("operator"),
                self.entry("admin"),
                self.entry("other", role="agent", patterns=["fleet-*", "other-*"]),
                self.entry("expired", role="admin", expires="2020-01-01T00:00:00Z"),
            ],
            "jwt": [
                {
                    "name": "test",
                    "issuer": ISSUER,
                    "audience": [AUDIENCE],
                    "jwks_file": str(self.jwks_file),
                    "leeway_seconds": 1,
                    "rules": [
                        {"claim": "roles", "has": role, "role": role}
                        | ({"patterns": ["{subject}", "fleet-*"]} if role == "agent" else {})
                        for role in ROLES
                    ],
                }
            ],
            **changes,
        }
        self.write()

    def entry(self, name: str, role: str = "", **fields: Any) -> dict[str, Any]:
        """Return a policy entry for the key of this name."""
        return {"name": name, "role": role or name, "hashes": [hash_text(self.keys[name])], **fields}

    def write(self) -> None:
        """Write the current document to the policy file."""
        self.file.write_text(yaml.safe_dump(self.document), encoding="utf-8")

    @property
    def section(self) -> dict[str, Any]:
        """Return the ``security`` settings of a server."""
        return {"policy_file": self.file}

    def metadata(self, name: str) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a gRPC call with the key of this name."""
        return bearer(self.keys[name])

    def headers(self, name: str) -> dict[str, str]:
        """Return the headers of an HTTP request with the key of this name."""
        return {"Authorization": f"Bearer {self.keys[name]}"}


def bearer(credential: str) -> tuple[tuple[str, str], ...]:
    """Return gRPC metadata with a bearer credential."""
    return (("authorization", f"Bearer {credential}"),)


def registry_acl(password: str) -> list[str]:
    """Return the rules of ``ACL SETUSER`` in docs/security.md, with a password."""
    (rules,) = re.findall(r"^ACL SETUSER registry (.*)$", text_of("docs/security.md"), flags=re.MULTILINE)
    assert ">PASSWORD" in rules
    return str(rules).replace("PASSWORD", password).split()
