import io
import struct
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medqua.core.errors import UnreadableImageError
from medqua.serve.settings import Limits
from medqua.serve.zip_archive import LimitError, is_zip, unpack

LIMITS = Limits(files=10, file_bytes=1000, unpacked_bytes=3000)


def pack(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def test_files_come_out_as_they_went_in():
    files = {"a/b.dcm": b"1", "c.png": bytes(900), "..\\..\\d": b"4"}
    parts = {part.name: part.content for part in unpack("z.zip", pack(files), LIMITS)}
    assert parts == {f"z.zip/{name}": content for name, content in files.items()}


def test_what_systems_leave_behind_is_left_out():
    files = {".DS_Store": b"", "__MACOSX/a": b"", "a/._b": b"", "a/": b"", "a/b": b"1"}
    assert [part.name for part in unpack("", pack(files), LIMITS)] == ["a/b"]


def test_a_file_over_the_limit_is_refused_alone():
    small, large = unpack("", pack({"small": b"1", "large": bytes(10**7)}), LIMITS)
    assert small.content == b"1"
    assert large.content is None
    assert "over 1,000 bytes" in str(large.refusal)


def test_many_files_and_many_bytes():
    with pytest.raises(LimitError, match="over 10 files"):
        list(unpack("", pack({str(n): b"" for n in range(11)}), LIMITS))
    with pytest.raises(LimitError, match="over 3,000 bytes"):
        list(unpack("", pack({str(n): bytes(900) for n in range(5)}), LIMITS))


def test_a_directory_that_lies_about_sizes_gains_nothing():
    packed = bytearray(pack({"a": bytes(10**6)}))
    at = packed.rfind(b"PK\x01\x02")
    struct.pack_into("<L", packed, at + 24, 10)  # uncompressed size
    (part,) = unpack("", bytes(packed), LIMITS)
    assert part.content is None or len(part.content) <= 10


def test_other_methods_and_passwords_are_refused():
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        (part,) = unpack("", pack({"a": b"1"}, method), LIMITS)
        assert "another method" in str(part.refusal)
    packed = bytearray(pack({"a": b"1"}))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        packed[packed.find(mark) + offset] |= 1
    (part,) = unpack("", bytes(packed), LIMITS)
    assert "encrypted" in str(part.refusal)


def test_a_directory_that_is_too_long_is_not_parsed():
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 5, 5, 2**31, 0, 0)
    with pytest.raises(LimitError):
        list(unpack("", b"PK\x03\x04" + end, LIMITS))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 100, 0, 0)
    with pytest.raises(UnreadableImageError, match="ZIP64"):
        list(unpack("", b"PK\x03\x04" + end, LIMITS))


def test_dicom_with_a_preamble_of_a_zip_is_dicom():
    assert not is_zip(b"PK\x03\x04" + bytes(124) + b"DICM")
    assert is_zip(pack({"a": b""}))


@given(st.data())
def test_damage_is_never_a_defect(data: st.DataObject):
    packed = bytearray(pack({"a/b.dcm": b"1" * 50, "c": b"2"}))
    for _ in range(data.draw(st.integers(1, 8))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(packed)))
    for content in (bytes(packed), bytes(packed[:cut])):
        try:
            for part in unpack("", content, LIMITS):
                assert (part.content is None) != (part.refusal is None)
        except (UnreadableImageError, LimitError):
            pass
