"""How the service is run: one TOML file, every key with its default here, unknown keys refused.

    [listen]                        [[access.keys]]
    port = 8443                     name = "pacs"
    certificate = "tls/cert.pem"    sha256 = "..."      # medqua-serve key prints it
    private_key = "tls/key.pem"     roles = ["infer"]

Defaults are closed: without a file the service listens on the loopback interface alone.
"""

import ipaddress
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from medqua.core.errors import ConfigError

MIB = 1 << 20
Role = Literal["infer", "read", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Listen:
    """Where the service is reached."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    host: str = "127.0.0.1"
    """Address to listen on; another than loopback needs keys or OpenID Connect."""
    port: int = 8080
    """TCP port; 0 takes a free one."""
    certificate: Path | None = None
    """TLS certificate chain, PEM."""
    private_key: Path | None = None
    """Its private key, PEM."""
    client_authorities: Path | None = None
    """Certificate authorities, PEM: clients must then show a certificate of theirs."""
    hostnames: tuple[str, ...] = ()
    """Names by which clients may call a service without access control, beside loopback's."""
    drain_seconds: float = 30.0
    """After SIGTERM, seconds that requests under way are given to end."""


@dataclass(frozen=True)
class Limits:
    """What one request, and all together, may cost."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    body_bytes: int = 256 * MIB
    """Largest body of a request, in bytes."""
    bytes_in_flight: int = 1024 * MIB
    """Bytes of all bodies held at a time."""
    files: int = 1000
    """Files of one request, those in ZIPs counted."""
    file_bytes: int = 128 * MIB
    """Largest file, in bytes; also after a ZIP is unpacked."""
    unpacked_bytes: int = 512 * MIB
    """All files of one request, in bytes, after ZIPs are unpacked."""
    pixels: int = 64 * 10**6
    """Largest number of rows times columns of an image."""
    body_seconds: float = 60.0
    """Time in which a body must have arrived, in seconds."""
    deadline_seconds: float = 60.0
    """Time in which a file is answered, in seconds; a client may ask for less."""
    decode_seconds: float = 30.0
    """Wall time of decoding one file, in seconds, after which its process is killed."""
    decode_cpu_seconds: int = 20
    """Processor time of decoding one file, in whole seconds."""
    decode_memory_bytes: int = 3072 * MIB
    """Address space of a decoding process, in bytes."""
    requests_per_second: float = 50.0
    """Sustained requests of one client; 0 sets no limit."""
    burst: int = 200
    """Requests that a client may make at once before the rate counts."""


@dataclass(frozen=True)
class Batching:
    """How images are gathered and by whom they are read."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    max_batch_size: int = 8
    """Images in one forward pass."""
    max_queue_delay: float = 0.005
    """Seconds that the first image of a batch waits for others."""
    max_queue: int = 64
    """Images admitted and not yet answered; what comes above is answered 429."""
    workers: int = 1
    """Processes that hold the model."""
    decoders: int = 2
    """Processes that decode files."""
    threads: int = 0
    """Threads of one worker; 0 shares the machine's cores among them."""
    worker_seconds: float = 120.0
    """Time after which a worker that does not answer a batch is killed, in seconds."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1."""


@dataclass(frozen=True)
class Key:
    """An API key, known by its hash alone."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    """Who holds it; stands in the audit log."""
    sha256: str
    """SHA-256 of the key, hexadecimal."""
    roles: tuple[Role, ...] = ("infer",)
    """What its holder may do."""


@dataclass(frozen=True)
class OpenIdConnect:
    """Bearer tokens of an identity provider."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    issuer: str
    """Issuer URL, as it stands in the tokens."""
    audience: str
    """This service's name at the provider."""
    jwks_url: str
    """Where the provider publishes its signing keys."""
    roles_claim: str = "roles"
    """Claim that lists roles; dots lead into nested objects."""
    algorithms: tuple[str, ...] = ("RS256", "ES256")
    """Signature algorithms taken; none with a shared secret."""
    leeway_seconds: float = 30.0
    """Allowed difference of clocks, in seconds."""


@dataclass(frozen=True)
class Access:
    """Who may call."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    keys: tuple[Key, ...] = ()
    """API keys."""
    oidc: OpenIdConnect | None = None
    """An identity provider."""

    @property
    def open(self) -> bool:
        """Whether nobody has to show anything."""
        return not self.keys and self.oidc is None


@dataclass(frozen=True)
class Storage:
    """What is kept on disk."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    spool: Path | None = None
    """Folder of accepted jobs; None offers no jobs."""
    spool_bytes: int = 20 * 1024 * MIB
    """Bytes of files waiting there; a job above is answered 429."""
    keep_hours: float = 72.0
    """Hours for which results of a finished job are kept."""
    audit: Path | None = None
    """Audit log, JSON lines, appended to; None keeps none."""
    audit_repository: str = ""
    """Where it goes as DICOM audit messages too: tls://HOST:PORT or udp://HOST:PORT (syslog)."""
    audit_authorities: Path | None = None
    """Certificate authorities of the repository, PEM; the system's by default."""

    def __post_init__(self) -> None:
        if self.audit_repository and self.audit is None:
            raise ConfigError("storage.audit_repository needs storage.audit, from which it is sent")


@dataclass(frozen=True)
class Archive:
    """Where reports go: by STOW-RS to `url`, or by C-STORE to `host`, `port` and `title`."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    url: str = ""
    """Base of its DICOMweb service, such as https://pacs.example/dicom-web."""
    token_file: Path | None = None
    """File with a bearer token for it, read anew for each delivery."""
    token_env: str = ""
    """Environment variable with that token, where there is no file."""
    authorities: Path | None = None
    """Certificate authorities of the archive, PEM; the system's by default."""
    host: str = ""
    """Its address for C-STORE."""
    port: int = 104
    """Its port for C-STORE."""
    title: str = ""
    """Its AE title."""
    own_title: str = "MEDQUA"
    """AE title that is shown to it."""
    tls: bool = False
    """Whether C-STORE goes over TLS; then `port` is often 2762."""
    certificate: Path | None = None
    """Certificate that is shown to it by C-STORE, PEM."""
    private_key: Path | None = None
    """Its private key, PEM."""
    answer_seconds: float = 30.0
    """Wait for its answer, in seconds."""
    read_back: bool = True
    """Of a DICOMweb service: look at what it holds after a report was stored, since it may keep
    another object of the same UID and not say so."""
    attempts: int = 40
    """Attempts after which a report is laid aside; with the pauses below, about 31 hours."""
    first_pause: float = 5.0
    """Pause after the first failure, in seconds; it doubles each time."""
    longest_pause: float = 3600.0
    """No pause is longer, in seconds."""

    @property
    def named(self) -> bool:
        """Whether there is one."""
        return bool(self.url or self.host)

    def __post_init__(self) -> None:
        if self.url and self.host:
            raise ConfigError("archive.url and archive.host: give one of them, not both")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ConfigError("archive.url: give its base with http:// or https://")
        if bool(self.host) != bool(self.title):
            raise ConfigError("an archive by C-STORE needs both archive.host and archive.title")
        if (self.token_file or self.token_env) and not self.url:
            raise ConfigError("archive.token_file and token_env go with archive.url")
        if self.tls and not self.host:
            raise ConfigError("archive.tls goes with archive.host; a URL says https itself")
        if self.certificate and not self.tls:
            raise ConfigError("archive.certificate goes with archive.tls, for C-STORE")
        if (self.certificate is None) != (self.private_key is None):
            raise ConfigError("TLS needs both archive.certificate and archive.private_key")


@dataclass(frozen=True)
class Door:
    """Where images come in by C-STORE."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    peers: tuple[str, ...] = ()
    """AE titles that may connect; without any the door stays shut."""
    title: str = "MEDQUA"
    """Own AE title; peers must call it."""
    host: str = "127.0.0.1"
    """Address to listen on. AE titles are no authentication: keep it in the archive's network, or
    ask for certificates."""
    port: int = 11112
    """TCP port; 0 takes a free one."""
    certificate: Path | None = None
    """TLS certificate chain, PEM; None listens without TLS."""
    private_key: Path | None = None
    """Its private key, PEM."""
    authorities: Path | None = None
    """Certificate authorities, PEM: peers must then show a certificate of theirs."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise ConfigError("TLS needs both door.certificate and door.private_key")
        if self.authorities and not self.certificate:
            raise ConfigError("door.authorities goes with door.certificate")


@dataclass(frozen=True)
class Report:
    """What a report is, and what comes with it."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    device: str = "MedQua"
    """Name of this installation as observer; UIDs of reports follow from it."""
    capture: bool = False
    """Send a picture with the findings burnt in too (secondary capture)."""
    key_object: bool = False
    """Send a key object selection too, where a finding is present by the operating points."""


@dataclass(frozen=True)
class Settings:
    """All of it.

    Raises:
        ConfigError: Values that contradict each other, or that would leave a door open.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    listen: Listen = field(default_factory=Listen)
    """Where the service is reached."""
    limits: Limits = field(default_factory=Limits)
    """What a request may cost."""
    batching: Batching = field(default_factory=Batching)
    """How images are gathered."""
    access: Access = field(default_factory=Access)
    """Who may call."""
    storage: Storage = field(default_factory=Storage)
    """What is kept."""
    archive: Archive = field(default_factory=Archive)
    """Where reports go."""
    door: Door = field(default_factory=Door)
    """Where images come in by C-STORE."""
    report: Report = field(default_factory=Report)
    """What a report is."""

    def __post_init__(self) -> None:
        if self.access.open and not _is_loopback(self.listen.host):
            raise ConfigError(
                f"listen.host is {self.listen.host!r}, and nobody would have to show a key: add "
                "[[access.keys]] or [access.oidc], or listen on 127.0.0.1"
            )
        if (self.listen.certificate is None) != (self.listen.private_key is None):
            raise ConfigError("TLS needs both listen.certificate and listen.private_key")
        if self.archive.named and self.storage.spool is None:
            raise ConfigError("an archive needs storage.spool, where reports wait for it")
        if self.door.peers and not self.archive.named:
            raise ConfigError("door.peers needs an archive, to which reports of images go")
        _check_numbers(self)
        for key in self.access.keys:
            if len(key.sha256) != 64 or not set(key.sha256) <= set("0123456789abcdef"):
                raise ConfigError(
                    f"access.keys: sha256 of {key.name!r} is not 64 hexadecimal digits; "
                    "`medqua-serve key` prints a key and its hash"
                )
        names = [key.name for key in self.access.keys]
        if len(set(names)) < len(names):
            raise ConfigError("access.keys: a name stands twice; the audit log needs one a key")
        oidc = self.access.oidc
        if oidc and (not oidc.algorithms or any(a[:2] in ("HS", "no") for a in oidc.algorithms)):
            raise ConfigError(
                f"access.oidc.algorithms is {list(oidc.algorithms)}: give signatures by a public "
                "key, such as RS256 or ES256"
            )

    @classmethod
    def load(cls, file: Path | None = None, overrides: Sequence[str] = ()) -> "Settings":
        """Read settings.

        Args:
            file: TOML; None takes the defaults.
            overrides: `section.key=value` in TOML's notation; plain words need no quotes.

        Raises:
            ConfigError: A file that cannot be read, an unknown key, a wrong value.
        """
        document: dict[str, Any] = {}
        if file is not None:
            try:
                document = tomllib.loads(file.read_text())
            except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise ConfigError(f"{file} cannot be read as TOML: {error}") from None
        for override in overrides:
            name, equals, text = override.partition("=")
            *path, key = name.strip().split(".")
            if not equals or not path:
                raise ConfigError(f"{override!r}: give section.key=value")
            table = document
            for part in path:
                table = table.setdefault(part, {})
                if not isinstance(table, dict):
                    raise ConfigError(f"{override!r}: {part} is no section")
            table[key] = _value(text)
        return cls.from_dict(document)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Settings":
        """Check plain values and build settings of them.

        Raises:
            ConfigError: As in `load`.
        """
        try:
            return TypeAdapter(cls).validate_python(document)
        except ValidationError as error:
            if isinstance(cause := error.errors()[0].get("ctx", {}).get("error"), ConfigError):
                raise cause from None
            raise ConfigError(_explain(error)) from None


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(error: ValidationError) -> str:
    """Say of the first wrong value where it stands and what is needed."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = ".".join(path)
    if first["type"] != "unexpected_keyword_argument":
        return f"{where} is {first.get('input')!r}: {first['msg']}"
    known = _known(Settings, path[:-1])
    near = get_close_matches(path[-1], known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"unknown key {where}; {hint}"


def _known(kind: Any, path: Sequence[str]) -> list[str]:
    """Return the keys of the section that a path leads to."""
    for part in path:
        if not part.isdigit() and is_dataclass(kind):
            kind = get_type_hints(kind).get(part)
            kind = next((k for k in (*get_args(kind), kind) if is_dataclass(k)), kind)
    return [f.name for f in fields(kind)] if is_dataclass(kind) else []


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_numbers(settings: Settings) -> None:
    """Refuse numbers below their least: 0 where that means no limit or no wait, else above 0."""
    zero = ("port", "max_queue_delay", "threads", "requests_per_second", "drain_seconds")
    for section in fields(settings):
        for entry in fields(part := getattr(settings, section.name)):
            value = getattr(part, entry.name)
            if (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and not (value > 0 or (value == 0 and entry.name in zero))
            ):
                least = "0 or more" if entry.name in zero else "more than 0"
                raise ConfigError(f"{section.name}.{entry.name} is {value}: give {least}")
    if settings.batching.max_queue < settings.batching.max_batch_size:
        raise ConfigError(
            f"batching.max_queue = {settings.batching.max_queue} is below max_batch_size = "
            f"{settings.batching.max_batch_size}: a batch would never fill"
        )
