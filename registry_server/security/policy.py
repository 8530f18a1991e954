"""The policy file: identities and their permissions."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, TypeVar

import structlog
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from registry_server.errors import ConfigurationError
from registry_server.model.record import environment_term, group_term, label_term
from registry_server.security.identity import ANONYMOUS, Identity, Limits, Role
from registry_server.security.keys import parse_hash
from registry_server.security.lines import BadYaml, Document, Place, read_yaml
from registry_server.security.visibility import Visibility

MAX_FILE_BYTES: Final = 4 << 20
"""A larger file is assumed to be a mistake."""
SUBJECT: Final = "{subject}"
"""Placeholder in patterns for the subject of the token or certificate."""
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Public-key algorithms only: with a shared secret, every verifier could also create tokens."""

_PATTERN: Final = re.compile(r"[A-Za-z0-9._*/@-]{1,128}")
_SUBJECT: Final = re.compile(r"[A-Za-z0-9._@-]{1,128}")
"""Subjects that may be part of a pattern: without a slash, which so separates them from what follows."""
_CLAIM: Final = re.compile(r"[^\s.]+(\.[^\s.]+)*")

# Replacements for pydantic's messages, which are written for programmers.
_MESSAGES: Final = {
    "extra_forbidden": "is not a known key",
    "missing": "is missing",
    "too_short": "must not be empty",
    "tuple_type": "must be a list",
    "model_type": "must be a mapping",
    "string_type": "must be text",
    "string_pattern_mismatch": "must be 1 to 128 letters, digits and . _ - and begin with a letter or digit",
    "datetime": "must be a time with its zone, such as 2027-01-31T00:00:00Z",
}


def _policy_error(message: str) -> PydanticCustomError:
    return PydanticCustomError("policy", message)


def _check_hash(text: str) -> str:
    if parse_hash(text) is None:
        # The message does not repeat the text, which may be the key itself.
        raise _policy_error("must be sha256: and 64 hexadecimal digits, as `ossa-registry keys create` prints it")
    return text


def _check_pattern(text: str) -> str:
    _check_fixed_pattern(text.replace(SUBJECT, "x"))
    return text


def _check_fixed_pattern(text: str) -> str:
    if not _PATTERN.fullmatch(text):
        raise _policy_error("must be a service name, with * for any text")
    return text


def _check_url(text: str) -> str:
    if not re.fullmatch(r"https://[^\s/@]+(/\S*)?|http://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?(/\S*)?", text):
        raise _policy_error("must be an https:// URL without user and password (http:// for loopback only)")
    return text


def _check_claim(text: str) -> str:
    if not _CLAIM.fullmatch(text):
        raise _policy_error("must be the name of a claim, with dots between nested objects")
    return text


_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
_Text = Annotated[str, Field(min_length=1, max_length=512)]
_Hash = Annotated[str, AfterValidator(_check_hash)]
_Url = Annotated[str, AfterValidator(_check_url)]
_Claim = Annotated[str, AfterValidator(_check_claim)]
_RoleWord = Literal["viewer", "agent", "operator", "admin"]
_Patterns = tuple[Annotated[str, AfterValidator(_check_pattern)], ...]
_FixedPatterns = Annotated[tuple[Annotated[str, AfterValidator(_check_fixed_pattern)], ...], Field(max_length=64)]
_Values = Annotated[tuple[_Text, ...], Field(max_length=64)]


log = structlog.get_logger(__name__)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class OwnLimits(_Model):
    """Limits of one entry; the settings provide those that it omits."""

    requests_per_second: Annotated[float, Field(gt=0, le=1e9)] | None = None
    burst: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    watches: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    services: Annotated[int, Field(ge=0, le=10_000_000)] | None = None

    def with_defaults(self, default_limits: Limits) -> Limits:
        """Return the limits of the entry, with defaults for those that it omits."""
        own = {name: value for name, value in self.model_dump().items() if value is not None}
        return Limits(**{name: own.get(name, getattr(default_limits, name)) for name in Limits.__slots__})


class Sees(_Model):
    """Services that a caller sees: those that meet all conditions that are set."""

    names: _FixedPatterns | None = None
    """Patterns of which the name must match one."""
    groups: _Values | None = None
    """The group must be one of these."""
    environments: _Values | None = None
    """The environment must be one of these."""
    labels: Annotated[dict[_Text, Annotated[str, Field(max_length=512)]], Field(max_length=64)] = {}
    """Labels that it must have."""

    def visibility(self, own: tuple[str, ...]) -> Visibility | None:
        """Return the services that a caller sees; ``None`` = all.

        Args:
            own: Name patterns of services that it sees in any case.
        """
        any_of: list[tuple[str, ...]] = [(label_term(key, value),) for key, value in sorted(self.labels.items())]
        for term, values in ((group_term, self.groups), (environment_term, self.environments)):
            if values is not None:
                any_of.append(tuple(sorted(map(term, values))))
        return None if self.names is None and not any_of else Visibility(self.names, tuple(any_of), own)


class RoleSees(_Model):
    """What callers of each role see, unless their entry sets it."""

    anonymous: Sees | None = None
    viewer: Sees | None = None
    agent: Sees | None = None
    operator: Sees | None = None
    admin: Sees | None = None


class Grant(_Model):
    """Role that an entry grants, and for agents the patterns of service names that they may own."""

    role: _RoleWord
    patterns: _Patterns = ()
    sees: Sees | None = None
    """The services that it sees; ``None`` = those that its role sees."""
    limits: OwnLimits | None = None


class ApiKey(Grant):
    """An identity with an API key. It has several hashes while one key replaces another."""

    name: _Name
    hashes: Annotated[tuple[_Hash, ...], Field(min_length=1, max_length=16)]
    expires: AwareDatetime | None = None


class JwtRule(Grant):
    """Grant for tokens in which a claim has a value; without a claim, for all tokens of the issuer."""

    claim: _Claim | None = None
    has: _Text | None = None


class JwtIssuer(_Model):
    """An issuer whose tokens are accepted."""

    name: _Name
    issuer: _Text
    audience: Annotated[tuple[_Text, ...], Field(min_length=1)]
    jwks_url: _Url | None = None
    jwks_file: _Text | None = None
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("RS256", "ES256", "EdDSA")
    leeway_seconds: Annotated[int, Field(ge=0, le=600)] = 30
    subject_claim: _Claim = "sub"
    rules: Annotated[tuple[JwtRule, ...], Field(min_length=1)]


class CertificateRule(Grant):
    """Grant for clients whose certificate has a matching name."""

    uri: _Text | None = None
    dns: _Text | None = None
    common_name: _Text | None = None

    @property
    def name_pattern(self) -> tuple[str, str]:
        """Kind of the name, and its pattern."""
        return next((kind, text) for kind in ("uri", "dns", "common_name") if (text := getattr(self, kind)))


class Policy(_Model):
    """The complete policy file."""

    anonymous: Literal["none", "viewer"] = "none"
    """Role of callers without a credential."""
    sees: RoleSees = RoleSees()
    api_keys: tuple[ApiKey, ...] = ()
    jwt: tuple[JwtIssuer, ...] = ()
    certificates: tuple[CertificateRule, ...] = ()

    def restricts(self) -> bool:
        """Return whether any caller sees only some services."""
        grants = (*self.api_keys, *self.certificates, *(rule for issuer in self.jwt for rule in issuer.rules))
        return any(sees and sees.visibility(()) for sees in (self.sees.anonymous, *(grant.sees for grant in grants)))


class Problem(NamedTuple):
    """A problem in the file."""

    place: Place
    description: str


def granted_identity(
    grant: Grant, name: str, method: str, subject: str, default_limits: Limits, expires: float | None
) -> Identity:
    """Return the identity that an entry grants.

    Args:
        grant: The entry.
        name: Name of the identity.
        method: Authentication method.
        subject: Replacement for ``{subject}`` in patterns.
        default_limits: Limits where the entry sets none.
        expires: Expiry of the credential, in seconds since the epoch.
    """
    # A subject that is not valid in a name, or contains * or /, must not become part of a pattern.
    is_plain = _SUBJECT.fullmatch(subject)
    patterns = tuple(
        pattern.replace(SUBJECT, subject) for pattern in grant.patterns if SUBJECT not in pattern or is_plain
    )
    limits = grant.limits.with_defaults(default_limits) if grant.limits else default_limits
    visibility = grant.sees.visibility(patterns) if grant.sees else None
    return Identity(name, Role[grant.role.upper()], method, patterns, limits, expires, visibility)


def read_policy(file: Path) -> Policy:
    """Read and validate a policy file.

    Raises:
        ConfigurationError: The file cannot be read or is not valid: one line per problem, starting with file and line
            number. No line repeats a value.
    """
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"security.policy_file: cannot read {str(file)!r}: {error.strerror}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigurationError(f"security.policy_file: {str(file)!r} is larger than {MAX_FILE_BYTES >> 20} MiB")
    try:
        document = read_yaml(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{file}:{line}: is not UTF-8 text") from None
    except BadYaml as error:
        raise ConfigurationError(f"{file}:{error.line}: {error}") from None
    try:
        # Through JSON, whose strict mode accepts lists as tuples and text as dates, but not "1" as a number.
        policy = Policy.model_validate_json(json.dumps(document.value or {}))
    except ValidationError as error:
        problems = list(_schema_problems(error.errors(include_url=False, include_input=False)))
        raise ConfigurationError("\n".join(_format_problems(file, document, problems))) from None
    if problems := [*_name_problems(policy), *_key_problems(policy), *_rule_problems(policy)]:
        raise ConfigurationError("\n".join(_format_problems(file, document, problems)))
    for place, pattern in _overlapping_patterns(policy):
        # A subject may contain every character that a name may contain but the slash, so no other separator ends it.
        log.warning(
            "policy pattern admits names of other subjects",
            line=document.line_of(place),
            rule=_place_prefix(place).removesuffix(": "),
            pattern=pattern,
            hint="the subject team also admits names of the subject team-b; write {subject}/; see docs/security.md",
        )
    return _with_sees_of_roles(policy)


_G = TypeVar("_G", bound=Grant)


def _with_sees_of_roles(policy: Policy) -> Policy:
    """Return the policy with ``sees`` in each entry whose role has it."""

    def complete(grants: tuple[_G, ...]) -> tuple[_G, ...]:
        return tuple(
            grant.model_copy(update={"sees": getattr(policy.sees, grant.role)}) if grant.sees is None else grant
            for grant in grants
        )

    jwt = tuple(issuer.model_copy(update={"rules": complete(issuer.rules)}) for issuer in policy.jwt)
    keys, certificates = complete(policy.api_keys), complete(policy.certificates)
    return policy.model_copy(update={"api_keys": keys, "jwt": jwt, "certificates": certificates})


def _overlapping_patterns(policy: Policy) -> Iterator[tuple[Place, str]]:
    """Return the patterns in which ``*`` can extend a subject to another one."""
    grants: list[tuple[Place, Grant]] = [
        (("jwt", i, "rules", j), rule) for i, issuer in enumerate(policy.jwt) for j, rule in enumerate(issuer.rules)
    ]
    grants += [(("certificates", i), rule) for i, rule in enumerate(policy.certificates)]
    for place, grant in grants:
        for k, pattern in enumerate(grant.patterns):
            fixed, _, rest = pattern.partition("*")
            ended = "/" in fixed.rpartition(SUBJECT)[2] and SUBJECT not in rest
            if SUBJECT in pattern and "*" in pattern and not ended:
                yield (*place, "patterns", k), pattern


def _format_problems(file: Path, document: Document, problems: list[Problem]) -> Iterator[str]:
    sorted_problems = sorted((document.line_of(place), place, description) for place, description in problems)
    for line, place, description in sorted_problems:
        yield f"{file}:{line}: {_place_prefix(place)}{description}"


def _place_prefix(place: Place) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    return f"{text}: " if text else ""


def _schema_problems(details: list[ErrorDetails]) -> Iterator[Problem]:
    places = [detail["loc"] for detail in details]
    for detail in details:
        kind, place = detail["type"], detail["loc"]
        if kind == "too_short" and any(other != place and other[: len(place)] == place for other in places):
            continue  # the list is not too short: pydantic counts only its valid items
        if kind.startswith(("datetime", "timezone")):
            kind = "datetime"
        yield Problem(place, _MESSAGES.get(kind) or detail["msg"].replace("Input should be", "must be"))


# Problems between values that are valid individually.


def _name_problems(policy: Policy) -> Iterator[Problem]:
    names: set[str] = set()
    entries: list[tuple[Place, str]] = [(("api_keys", i), key.name) for i, key in enumerate(policy.api_keys)]
    entries += [(("jwt", i), issuer.name) for i, issuer in enumerate(policy.jwt)]
    for place, name in entries:
        if name in names:
            yield Problem((*place, "name"), "is already used in this file; every identity needs a unique name")
        if name in {ANONYMOUS, "certificate"}:
            yield Problem((*place, "name"), "is reserved")
        names.add(name)


def _key_problems(policy: Policy) -> Iterator[Problem]:
    hashes: set[str] = set()
    for i, key in enumerate(policy.api_keys):
        for j, text in enumerate(key.hashes):
            if text in hashes:
                yield Problem(("api_keys", i, "hashes", j), "is already used in this file")
            hashes.add(text)
        yield from _grant_problems(key, ("api_keys", i), subject=False)


def _rule_problems(policy: Policy) -> Iterator[Problem]:
    issuers: set[str] = set()
    for i, issuer in enumerate(policy.jwt):
        if issuer.issuer in issuers:
            yield Problem(("jwt", i, "issuer"), "is already used in this file")
        issuers.add(issuer.issuer)
        if (issuer.jwks_url is None) == (issuer.jwks_file is None):
            yield Problem(("jwt", i), "needs either jwks_url or jwks_file")
        for j, rule in enumerate(issuer.rules):
            if (rule.claim is None) != (rule.has is None):
                yield Problem(("jwt", i, "rules", j), "needs both claim and has, or neither for all tokens")
            yield from _grant_problems(rule, ("jwt", i, "rules", j))
    for i, certificate in enumerate(policy.certificates):
        if [certificate.uri, certificate.dns, certificate.common_name].count(None) != 2:  # noqa: PLR2004 - one of three
            yield Problem(("certificates", i), "needs exactly one of uri, dns and common_name")
        yield from _grant_problems(certificate, ("certificates", i))


def _grant_problems(grant: Grant, place: Place, *, subject: bool = True) -> Iterator[Problem]:
    if grant.role == "agent" and not grant.patterns:
        yield Problem(place, "needs patterns: an agent may own only services whose names match one")
    if grant.role != "agent" and grant.patterns:
        yield Problem((*place, "patterns"), "are only valid for the role agent")
    if not subject and any(SUBJECT in pattern for pattern in grant.patterns):
        yield Problem((*place, "patterns"), f"cannot contain {SUBJECT}: an API key has no subject")
