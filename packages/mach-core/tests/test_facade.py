import sys
from pathlib import Path

import pytest

from mach.facade import absent_attributes, lazy_attributes


def test_an_absent_distribution_is_named() -> None:
    get, names = lazy_attributes("mach", {"load": ("no_such_package.loader", "load")}, "mach-decode")
    with pytest.raises(ImportError, match="mach.load needs the distribution 'mach-decode'") as caught:
        get("load")
    assert caught.value.name == "no_such_package"
    assert names() == ["load"]


def test_an_import_error_inside_the_target_passes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_target.py").write_text("import something_else_entirely\n")
    monkeypatch.syspath_prepend(tmp_path)
    get, _ = lazy_attributes("mach", {"thing": ("broken_target", "thing")}, "mach-decode")
    with pytest.raises(ImportError) as caught:
        get("thing")
    assert caught.value.name == "something_else_entirely"
    assert "mach-decode" not in str(caught.value)


def test_a_present_target_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good_target.py").write_text("thing = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    get, _ = lazy_attributes("mach", {"thing": ("good_target", "thing")}, "mach-decode")
    assert get("thing") == 42
    del sys.modules["good_target"]


def test_absent_names_give_their_reason_and_others_do_not_exist() -> None:
    get, names = absent_attributes("mach", ("soon",), "not in this version")
    with pytest.raises(ImportError, match="mach.soon: not in this version"):
        get("soon")
    with pytest.raises(AttributeError):
        get("never")
    assert names() == []
