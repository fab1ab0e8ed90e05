"""`medqua-ui`: the viewer, in a browser.

hatch run ui:app
medqua-ui --bundle runs/mimic/bundle
"""

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


@app.command()
def serve(
    bundle: Annotated[
        Path | None, typer.Option(help="Folder written by training, to see findings.")
    ] = None,
    samples: Annotated[
        bool, typer.Option("--samples", help="Open the sample phantoms at once.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 7860,
    host_name: Annotated[
        list[str] | None,
        typer.Option(help="Host name under which a proxy with a login serves it; repeatable."),
    ] = None,
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
    import uvicorn

    from medqua.ui.app import Settings, create_app, is_loopback
    from medqua.ui.audit import default_log

    names = tuple(host_name or ())
    if not is_loopback([host]) and not names:
        raise ConfigError(
            f"--host {host} is reached from other machines, and nobody logs in here: put a proxy "
            "with a login before it and name it with --host-name, or leave --host out"
        )
    if bundle is not None and not bundle.is_dir():
        raise ConfigError(f"{bundle} is no folder; give --bundle a folder written by training")
    listening = _listen(host, port)
    settings = Settings(
        bundle, device, samples, names, audit or default_log(), keep_hours=keep_hours
    )
    config = uvicorn.Config(
        create_app(settings), log_level="warning", access_log=False, server_header=False
    )
    address = f"http://{'[::1]' if ':' in host else host}:{listening.getsockname()[1]}/"
    console.print(f"MedQua viewer: {address}", soft_wrap=True)
    console.print("Research use only, not for diagnosis. Ctrl-C ends it and deletes all uploads.")
    uvicorn.Server(config).run(sockets=[listening])
    return 0


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
