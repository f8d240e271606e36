import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from mach_store.bank_cache import BankCache
from mach_store.counters import LayerCounters
from mach_store.errors import ExpertReadError, NativeReaderMissingError, SidecarCorruptionError
from mach_store.expert_arrays import ExpertArrays
from mach_store.scatter_reader import NATIVE_MODULE, open_reader, python_twin
from mach_store.settings import StoreSettings


@pytest.fixture
def without_native(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, NATIVE_MODULE, None)


def test_the_native_reader_is_used_where_it_is_installed() -> None:
    reader = open_reader(StoreSettings(read_threads=3))
    assert (reader.native, reader.reason, reader.threads) == (True, "", 3)


def test_without_the_native_reader_production_fails_fast_and_says_what_to_do(without_native) -> None:
    with pytest.raises(NativeReaderMissingError, match="install mach-native") as caught:
        open_reader(StoreSettings())
    assert "LME_FALLBACK_POLICY=diagnostic-python" in str(caught.value)
    assert "tools/build_mlx_pread_ext.py" in str(caught.value)


def test_the_diagnostic_policy_reads_with_python_and_reports_it(without_native) -> None:
    reader = open_reader(StoreSettings(fallback_policy="diagnostic-python"))
    assert not reader.native
    assert NATIVE_MODULE in reader.reason


def test_direct_reads_are_not_silently_given_up(without_native) -> None:
    with pytest.raises(NativeReaderMissingError, match="LME_DIRECT_IO"):
        open_reader(StoreSettings(fallback_policy="diagnostic-python", direct_io=True))


def test_the_diagnostic_policy_prefers_the_native_reader_where_there_is_one() -> None:
    assert open_reader(StoreSettings(fallback_policy="diagnostic-python")).native


def test_a_wrong_checksum_names_file_layer_and_expert(schema, file_source, reader) -> None:
    source = file_source({4: schema()}, 6)
    source.broken = {(4, 5)}
    arrays = ExpertArrays(schema(), 3, mx.float32, reader)
    counters = LayerCounters()
    with pytest.raises(SidecarCorruptionError, match=r"experts0.bin: layer 4, expert 5: .*export") as caught:
        reader.read(arrays.plan, source, 4, [1, 5, 2], [0, 1, 2], counters)
    assert (caught.value.layer, caught.value.expert) == (4, 5)
    assert caught.value.path == source.path_of(4, 0, 0)
    assert counters.bytes_read == 0


def test_a_file_that_ends_early_names_file_layer_and_expert(schema, file_source, reader) -> None:
    source = file_source({4: schema()}, 6)
    with open(source.path_of(4, 0, 0), "r+b") as handle:
        handle.truncate(5 * schema().nbytes + 10)
    arrays = ExpertArrays(schema(), 3, mx.float32, reader)
    with pytest.raises(ExpertReadError, match=r"experts0.bin: layer 4, expert 5: cannot be read") as caught:
        reader.read(arrays.plan, source, 4, [1, 5, 2], [0, 1, 2], LayerCounters())
    assert (caught.value.layer, caught.value.expert) == (4, 5)


def test_both_readers_fill_the_same_arrays(schema, file_source, native_reader) -> None:
    source = file_source({0: schema()}, 6)
    filled = []
    for reader in (native_reader, python_twin()):
        arrays = ExpertArrays(schema(), 4, mx.float32, reader)
        counters = LayerCounters()
        reader.read(arrays.plan, source, 0, [5, 0, 3], [2, 0, 3], counters)
        assert counters.bytes_read == 3 * schema().nbytes
        filled.append([np.array(a).tobytes() for parts in arrays.components.values() for a in parts.values()])
    assert filled[0] == filled[1]


def test_importing_the_store_does_not_need_the_native_reader() -> None:
    code = (
        f"import sys; sys.modules[{NATIVE_MODULE!r}] = None\n"
        "import mach_store.bank_cache, mach_store.gather_switch_glu, mach_store.sidecar.export"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_bank_reports_which_reader_it_uses(schema, file_source, reader) -> None:
    source = file_source({0: schema()}, 4)
    bank = BankCache(source, reader, budget_bytes=1 << 20, top_k=2, compute=mx.float32)
    assert bank.stats()["native_reader"] is reader.native
