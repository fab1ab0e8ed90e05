import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing

from medqua.core.errors import UnreadableImageError
from medqua.core.vision.display import Grayscale, LookupTable, Window


def dataset(**attributes) -> Dataset:
    ds = Dataset()
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.set_original_encoding(False, True)
    for name, value in attributes.items():
        setattr(ds, name, value)
    return ds


def lut(descriptor: list[int], data: bytes | list[int]) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = descriptor
    item.add_new(0x00283006, "OW" if isinstance(data, bytes) else "US", data)
    return item


def shown(ds: Dataset, stored: list[int], *, signed: bool = False) -> list[float]:
    display = Grayscale.from_dataset(ds, signed=signed, bits_stored=12)
    return display.render(np.array([stored], np.int32)).ravel().tolist()


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@given(center=st.floats(-500, 5000), width=st.floats(50, 5000))
@settings(max_examples=30, deadline=None)
def test_windows_equal_pydicom(function, center, width):
    values = np.arange(0, 4096, 13)
    ds = dataset(WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    ds.BitsStored, ds.PixelRepresentation = 12, 0
    center, width = float(ds.WindowCenter), float(ds.WindowWidth)  # as a DS holds them
    expected = apply_windowing(values, ds) / 4095
    ours = Window(center, width, function)(values.astype(np.float64))
    assert ours == pytest.approx(expected, abs=1e-9)


def test_linear_window_of_the_standard():
    # PS3.3 C.11.2.1.2.1, note: c = 2048, w = 4096 is the identity of 12 bits
    values = np.arange(4096, dtype=np.float64)
    assert Window(2048.0, 4096.0)(values) == pytest.approx(values / 4095)
    # w = 1 is a threshold: if x <= c - 0.5, ymin; else ymax
    assert Window(10.0, 1.0)(np.array([9.0, 9.5, 9.6, 10])).tolist() == [0, 0, 1, 1]


def test_tables_clamp_at_both_ends():
    table = LookupTable.from_item(lut([3, 100, 16], [0, 30000, 65535]), little_endian=True)
    assert table(np.array([5.0, 100, 101, 102, 900])).tolist() == [0, 0, 30000, 65535, 65535]


def test_tables_of_eight_bits_and_many_entries():
    packed = LookupTable.from_item(
        lut([512, 0, 8], bytes(i // 2 for i in range(512))), little_endian=True
    )
    assert packed(np.array([0.0, 300, 511])).tolist() == [0, 150, 255]


def test_tables_of_zero_entries_mean_65536():
    words = np.arange(1 << 16, dtype=">u2").tobytes()
    table = LookupTable.from_item(lut([0, 0, 16], words), little_endian=False)
    assert table(np.array([0.0, 258, 65535])).tolist() == [0, 258, 65535]


def test_tables_that_lie_are_refused():
    with pytest.raises(UnreadableImageError, match="announces 9 entries"):
        LookupTable.from_item(lut([9, 0, 16], [1, 2]), little_endian=True)


def test_order_is_modality_then_window_then_inversion():
    ds = dataset(RescaleSlope=2, RescaleIntercept=-100, WindowCenter=100, WindowWidth=200)
    ds.VOILUTFunction = "LINEAR_EXACT"
    stored = [50, 75, 100, 150]  # 0, 50, 100, 200 after rescaling
    assert shown(ds, stored) == pytest.approx([0, 0.25, 0.5, 1])
    ds.PhotometricInterpretation = "MONOCHROME1"
    ds.PresentationLUTShape = "INVERSE"  # says the same once more
    assert shown(ds, stored) == pytest.approx([1, 0.75, 0.5, 0])


def test_a_table_is_preferred_to_windows_and_the_first_window_counts():
    ds = dataset(WindowCenter=[2, 900], WindowWidth=[4, 10], VOILUTFunction="LINEAR_EXACT")
    assert shown(ds, [0, 1, 2, 4]) == pytest.approx([0, 0.25, 0.5, 1])
    ds.VOILUTSequence = [lut([4, 0, 10], [1023, 0, 512, 0])]
    assert shown(ds, [0, 1, 2]) == pytest.approx([1, 0, 512 / 1023])


def test_a_modality_table_of_ten_bits_replaces_the_slope():
    ds = dataset(RescaleSlope=0, RescaleIntercept=7)
    ds.ModalityLUTSequence = [lut([3, 0, 10], [0, 1000, 500])]
    assert shown(ds, [0, 1, 2]) == pytest.approx([0, 1, 0.5])


def test_without_a_window_the_values_span_the_range_padding_apart():
    ds = dataset(PixelPaddingValue=4000, PixelPaddingRangeLimit=4095)
    ds["PixelPaddingValue"].VR = ds["PixelPaddingRangeLimit"].VR = "US"
    assert shown(ds, [100, 200, 300, 4000, 4095]) == pytest.approx([0, 0.5, 1, 0, 0])
    ds.PhotometricInterpretation = "MONOCHROME1"
    assert shown(ds, [100, 200, 300, 4000, 4095]) == pytest.approx([1, 0.5, 0, 0, 0])
    assert shown(dataset(), [7, 7]) == [0, 0]
    assert shown(dataset(), [-5, 1_000_000, -5]) == [0, 1, 0]


@pytest.mark.parametrize("width", [0, -3, 0.5])
def test_impossible_windows_are_ignored(width):
    assert shown(dataset(WindowCenter=5, WindowWidth=width), [0, 5, 10]) == [0, 0.5, 1]
