from pathlib import Path

import pytest

from medqua.core.errors import ConfigError
from medqua.serve.settings import Settings

KEY = 'name = "a"\nsha256 = "' + 64 * "a" + '"\n'


def test_defaults_are_closed():
    settings = Settings.load()
    assert settings.listen.host == "127.0.0.1"
    assert settings.access.open
    assert settings.storage.audit is None


def test_a_file_and_overrides(tmp_path: Path):
    file = tmp_path / "serve.toml"
    file.write_text(f'[listen]\nport = 9000\n[[access.keys]]\n{KEY}roles = ["infer", "read"]')
    settings = Settings.load(
        file, ["listen.host=0.0.0.0", "limits.body_bytes=5", "storage.spool=a/b"]
    )
    assert (settings.listen.host, settings.listen.port) == ("0.0.0.0", 9000)
    assert settings.limits.body_bytes == 5
    assert settings.storage.spool == Path("a/b")
    assert settings.access.keys[0].roles == ("infer", "read")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[listen]\nhost = "0.0.0.0"', "nobody would have to show a key"),
        ('[listen]\nhost = "::"', "nobody would have to show a key"),
        ("[listen]\nprot = 1", r"unknown key listen\.prot; did you mean 'port'"),
        ("[listn]\nport = 1", r"unknown key listn; did you mean 'listen'"),
        (f"[[access.keys]]\n{KEY}rols = []", "did you mean 'roles'"),
        (f'[[access.keys]]\n{KEY}roles = ["root"]', "access.keys.0.roles.0 is 'root'"),
        ('[[access.keys]]\nname = "a"\nsha256 = "secret"', "64 hexadecimal"),
        (f"[[access.keys]]\n{KEY}[[access.keys]]\n{KEY}", "a name stands twice"),
        ('[listen]\ncertificate = "c.pem"', "needs both"),
        ('[listen]\nport = "many"', "listen.port is 'many'"),
        ("[limits]\nfiles = 0", "limits.files is 0: give more than 0"),
        ("[limits]\ndeadline_seconds = nan", "deadline_seconds is nan"),
        ("[batching]\nmax_queue = 4", "would never fill"),
        (
            '[access.oidc]\nissuer = "i"\naudience = "a"\njwks_url = "u"\nalgorithms = ["HS256"]',
            "public key",
        ),
        ("[listen", "cannot be read as TOML"),
    ],
)
def test_what_is_wrong_is_refused_by_name(tmp_path: Path, text: str, message: str):
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Settings.load(file)


@pytest.mark.parametrize("override", ["port=1", "listen.port", "listen.port.x.y=1"])
def test_overrides_that_name_nothing(override: str):
    with pytest.raises(ConfigError):
        Settings.load(None, ["listen.port=1", override])
