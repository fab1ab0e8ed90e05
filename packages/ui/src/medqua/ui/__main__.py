"""`medqua-ui`: the viewer, in a browser.

hatch run ui:app
medqua-ui --bundle runs/mimic/bundle
medqua-ui --server https://engine.example --passwords users.txt
medqua-ui password ada --file users.txt
"""

import asyncio
import logging
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from medqua.core.console import console, run
from medqua.core.errors import ConfigError

app = typer.Typer(
    help="The DICOM viewer. Research use only, not for diagnosis.",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


SHUTDOWN_SECONDS = 3
"""Time that requests under way have when the server is ended."""


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    bundle: Annotated[
        Path | None, typer.Option(help="Folder written by training; the demo bundle by default.")
    ] = None,
    pictures_only: Annotated[bool, typer.Option("--pictures-only", help="Load no model.")] = False,
    server: Annotated[
        str, typer.Option(help="Address of a running service (serve:app) that gives findings.")
    ] = "",
    server_key_file: Annotated[
        Path | None, typer.Option(help="File with its API key; else MEDQUA_SERVER_KEY.")
    ] = None,
    server_token_file: Annotated[
        Path | None, typer.Option(help="File with a bearer token; else MEDQUA_SERVER_TOKEN.")
    ] = None,
    archive: Annotated[
        str, typer.Option(help="DICOMweb base of an archive to fetch from and to send to.")
    ] = "",
    archive_token_file: Annotated[
        Path | None, typer.Option(help="File with the archive's bearer token.")
    ] = None,
    authorities: Annotated[
        Path | None, typer.Option(help="Certificate authorities of service and archive, PEM.")
    ] = None,
    outbox: Annotated[
        Path | None, typer.Option(help="Folder of reports on their way; beside the audit log.")
    ] = None,
    passwords: Annotated[
        Path | None, typer.Option(help="Password file: users log in (medqua-ui password).")
    ] = None,
    oidc: Annotated[
        Path | None, typer.Option(help="TOML with [oidc]: users log in at a provider.")
    ] = None,
    samples: Annotated[
        bool, typer.Option("--samples", help="Open the sample phantoms at once.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 7860,
    host_name: Annotated[
        list[str] | None,
        typer.Option(help="Host name under which it is served; repeatable."),
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate chain, PEM.")] = None,
    private_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda.")] = "cpu",
    audit: Annotated[
        Path | None, typer.Option(help="Audit log; ~/.local/state/medqua/audit.jsonl by default.")
    ] = None,
    keep_hours: Annotated[
        float, typer.Option(help="Hours without use after which uploads are deleted.", min=0.01)
    ] = 8.0,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on an error.")] = False,
) -> int:
    """Serve the viewer until Ctrl-C and print its address.

    Examples:
        medqua-ui --samples

        medqua-ui --bundle runs/mimic/bundle --port 0
    """
    if context.invoked_subcommand is not None:
        return 0
    import uvicorn

    from medqua.serve.demo import DEMO
    from medqua.ui.app import Settings, create_app, is_loopback
    from medqua.ui.archive import Archive
    from medqua.ui.audit import default_log
    from medqua.ui.server import Credentials

    names = tuple(host_name or ())
    login = passwords is not None or oidc is not None
    if not is_loopback([host]) and not login:
        raise ConfigError(
            f"--host {host} is reached from other machines, and nobody would log in: give "
            "--passwords or --oidc, or leave --host out"
        )
    if not is_loopback([host]) and not (names and certificate):
        raise ConfigError(
            f"--host {host} is reached from other machines: name the host with --host-name, and "
            "give --certificate and --private-key, or let a proxy do TLS and listen on 127.0.0.1"
        )
    if (certificate is None) != (private_key is None):
        raise ConfigError("TLS needs both --certificate and --private-key")
    if sum((bundle is not None, bool(server), pictures_only)) > 1:
        raise ConfigError("give one of --bundle, --server and --pictures-only")
    if bundle is not None and not bundle.is_dir():
        raise ConfigError(f"{bundle} is no folder; give --bundle a folder written by training")
    listening = _listen(host, port)
    settings = Settings(
        None if pictures_only or server else bundle or DEMO,
        server,
        Credentials.choose(server_key_file, server_token_file) if server else Credentials(),
        authorities,
        Archive(archive, archive_token_file, authorities) if archive else None,
        outbox,
        passwords,
        oidc,
        device=device,
        samples=samples,
        host_names=names,
        audit=audit or default_log(),
        keep_hours=keep_hours,
    )
    config = uvicorn.Config(
        create_app(settings),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,  # an open page holds a stream of events
        ssl_certfile=None if certificate is None else str(certificate),
        ssl_keyfile=None if private_key is None else str(private_key),
    )
    logging.getLogger("uvicorn.error").addFilter(_not_cut)
    scheme = "http" if certificate is None else "https"
    address = f"{scheme}://{'[::1]' if ':' in host else host}:{listening.getsockname()[1]}/"
    console.print(f"MedQua viewer: {address}", soft_wrap=True)
    console.print("Research use only, not for diagnosis. Ctrl-C ends it and deletes all uploads.")
    uvicorn.Server(config).run(sockets=[listening])
    return 0


@app.command()
def password(
    name: Annotated[str, typer.Argument(metavar="USER", help="Name of the user.")],
    file: Annotated[Path, typer.Option(help="Password file; made if it is not there.")],
    roles: Annotated[str, typer.Option(help="Of view, reveal and export.")] = "view",
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on an error.")] = False,
) -> int:
    """Add a user to a password file, or give one a new password; it is asked for.

    Example:
        medqua-ui password ada --file users.txt --roles view,reveal,export
    """
    from medqua.ui.login import add_entry, make_entry

    if sys.stdin.isatty():
        secret = str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    else:
        secret = sys.stdin.readline().rstrip("\n")
    add_entry(file, make_entry(name, secret, roles))
    console.print(f"{name} may log in with --passwords {file}.", highlight=False)
    return 0


def _not_cut(record: logging.LogRecord) -> bool:
    """Leave out of the log that the end of the server cut a page's stream of events."""
    kind = record.exc_info[0] if record.exc_info else None
    cut = kind is not None and issubclass(kind, asyncio.CancelledError)
    return not cut and not str(record.msg).startswith("Cancel %s running task(s)")


def _listen(host: str, port: int) -> socket.socket:
    """Open the listening socket.

    Raises:
        ConfigError: If the address or port cannot be had.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"{host} port {port} cannot be had ({error.strerror}); give another with --port"
        ) from None
    return listening


def main() -> int:
    """Run the command line and return its exit status."""
    return run(app)


if __name__ == "__main__":
    sys.exit(main())
