import io
import json
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from starlette.exceptions import HTTPException

from medqua.core.errors import ConfigError
from medqua.serve.demo import DEMO, model_and_settings
from medqua.serve.http.forms import Written, form_of, respond
from medqua.serve.settings import Settings


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("application/json", "json"),
        ("application/dicom", "sr"),
        ('multipart/related; type="application/dicom"', "multipart"),
        ("multipart/related", "multipart"),
        ("application/zip;q=0.5, application/dicom;q=0.9", "sr"),
        ("application/dicom;q=0, */*;q=0.1", "json"),
        ("text/html, Application/ZIP", "zip"),
    ],
)
def test_the_header_says_in_which_form(accept: str, form: str) -> None:
    assert form_of(accept, None) == form
    assert form_of(accept, "zip") == "zip"


@pytest.mark.parametrize(
    "accept", ["text/html", 'multipart/related; type="application/json"', "*/*;q=0", ";;,"]
)
def test_a_form_that_cannot_be_given_is_refused(accept: str) -> None:
    with pytest.raises(HTTPException) as caught:
        form_of(accept, None)
    assert caught.value.status_code == 406


def test_reports_of_many_files_as_parts_and_as_a_zip() -> None:
    reports = [Written((("1.2", b"one\r\n--x"),)), Written(reason="no"), Written((("1.3", b"2"),))]
    reports.append(reports[0])  # the same image twice
    answer = respond("multipart", {}, reports)
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    parts = message_from_bytes(head + bytes(answer.body)).get_payload()
    assert [part.get_content_type() for part in parts] == 2 * ["application/dicom"]
    assert bytes(answer.body).count(b"one\r\n--x\r\n") == 1
    packed = zipfile.ZipFile(io.BytesIO(bytes(respond("zip", {"a": 1}, reports).body)))
    assert packed.namelist() == ["results.json", "1.2.dcm", "1.3.dcm"]
    assert json.loads(packed.read("results.json")) == {"a": 1}
    assert packed.read("1.2.dcm") == b"one\r\n--x"


def test_the_demo_bundle_is_served_where_none_is_named() -> None:
    assert model_and_settings([], 0) == (DEMO, [], [])
    given = ["a/b.c", "listen.port=1", "access.oidc.issuer=x"]
    assert model_and_settings(given, 0) == (Path("a/b.c"), [], given[1:])
    assert model_and_settings(["in=1", "out"], 2) == (DEMO, [Path("in=1"), Path("out")], [])
    assert model_and_settings(["m", "i", "o"], 2) == (Path("m"), [Path("i"), Path("o")], [])
    for words, paths in ((["a", "b"], 0), (["a"], 2), (["a", "b", "c", "d"], 2)):
        with pytest.raises(ConfigError, match="paths are given"):
            model_and_settings(words, paths)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["archive.url=http://a/b"], "storage.spool"),
        (["door.peers=['A']", "storage.spool=s"], "needs an archive"),
        (["archive.url=http://a", "archive.host=b", "archive.title=T"], "not both"),
        (["archive.url=ftp://a"], "http"),
        (["archive.host=a"], "archive.title"),
        (["archive.token_env=X"], "go with archive.url"),
        (["archive.attempts=0", "archive.url=http://a", "storage.spool=s"], "more than 0"),
        (["archive.tokenfile=x"], "did you mean 'token_file'"),
    ],
)
def test_settings_of_archive_and_door_that_cannot_be(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings.load(None, overrides)
