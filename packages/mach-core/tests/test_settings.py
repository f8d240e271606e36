import os

from mach.settings import DEFAULT_HUB, CoreSettings


def test_empty_variables_count_as_unset() -> None:
    settings = CoreSettings.from_environment(
        {"HF_ENDPOINT": "", "HF_TOKEN": "", "LME_MODELS_DIR": os.pathsep}
    )
    assert settings == CoreSettings(hub_endpoint=DEFAULT_HUB, cache_root=os.path.expanduser("~/.cache/mach"))


def test_every_variable_is_read_and_no_token_is_shown() -> None:
    settings = CoreSettings.from_environment(
        {
            "HF_ENDPOINT": "http://mirror/",
            "HF_TOKEN": "hf-secret",
            "LME_CATALOG_URL": "http://catalog",
            "LME_CATALOG_TOKEN": "lme-secret",
            "LME_MODELS_DIR": f"a{os.pathsep}{os.pathsep}b",
        },
        cache_root="/cache",
    )
    assert (settings.hub_endpoint, settings.models_directories) == ("http://mirror", ("a", "b"))
    assert (settings.hub_token, settings.catalog_token) == ("hf-secret", "lme-secret")
    assert settings.cache_root == "/cache"
    assert "secret" not in repr(settings)
