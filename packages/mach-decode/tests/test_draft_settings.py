import pytest

from mach_decode.draft_settings import refuse_draft_settings
from mach_store.errors import SettingError


def test_an_environment_without_drafts_is_none_of_its_business() -> None:
    refuse_draft_settings({"LME_READ_THREADS": "4", "PATH": "/bin", "LME_V4_DRAFTS": "1"})


@pytest.mark.parametrize("name", ["LME_V4_DRAFT", "LME_RHO_GATE", "LME_RHO_GATE_MIN"])
@pytest.mark.parametrize("value", ["1", "0", ""])
def test_every_variable_of_drafts_is_refused_whatever_it_holds(name, value) -> None:
    with pytest.raises(SettingError, match="target-only") as refusal:
        refuse_draft_settings({name: value})
    assert refusal.value.variable == name
