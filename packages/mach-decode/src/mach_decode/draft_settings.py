"""Owns the environment variables of DeepSeek-V4's drafts, which this version can only refuse.

It has no draft decoding: a variable that asks for it must not be passed over in silence.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from mach_store.errors import SettingError

_DRAFT = "LME_V4_DRAFT"
_GATE_PREFIX = "LME_RHO_GATE"


def refuse_draft_settings(environment: Mapping[str, str] = os.environ) -> None:
    """Raise if the environment asks for drafts, or for a gate on them.

    Raises:
        SettingError: `LME_V4_DRAFT` or an `LME_RHO_GATE…` is set; the message names it.
    """
    for name in sorted(environment):
        if name == _DRAFT or name.startswith(_GATE_PREFIX):
            raise SettingError(
                name, environment[name], "unset: this version decodes deepseek_v4 target-only, without drafts"
            )
