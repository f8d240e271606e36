import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from mach.errors import CheckpointNotFoundError
from mach_decode import checkpoint_download
from mach_decode.checkpoint_download import obtain_checkpoint


@pytest.fixture
def hub(monkeypatch):
    """What was asked of the hub; its answer is set by the test."""

    class Hub:
        asked: list[str] = []
        answer: object = None

    hub = Hub()
    hub.asked = []

    def snapshot_download(name: str, *, allow_patterns: list[str]) -> str:
        hub.asked.append(name)
        if isinstance(hub.answer, Exception):
            raise hub.answer
        return str(hub.answer)

    monkeypatch.setattr(checkpoint_download, "snapshot_download", snapshot_download)
    return hub


def test_a_directory_is_taken_as_it_is(sliced, hub) -> None:
    assert obtain_checkpoint(str(sliced)) == sliced
    assert hub.asked == []


def test_an_installed_name_needs_no_network(hub) -> None:
    assert (obtain_checkpoint("mach-pico") / "config.json").is_file()
    assert hub.asked == []


def test_a_directory_wins_over_a_repository_of_its_name(sliced, hub, monkeypatch) -> None:
    monkeypatch.chdir(sliced.parent.parent)
    name = f"{sliced.parent.name}/{sliced.name}"
    assert obtain_checkpoint(name).samefile(sliced)
    assert hub.asked == []


def test_a_repository_is_downloaded(sliced, hub) -> None:
    hub.answer = sliced
    assert obtain_checkpoint("someone/some-model") == sliced
    assert hub.asked == ["someone/some-model"]


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline\nmany lines"), OSError("no route")])
def test_an_unreachable_hub_is_one_line_that_says_what_to_do(hub, error) -> None:
    hub.answer = error
    with pytest.raises(CheckpointNotFoundError, match="download it first and give its directory") as caught:
        obtain_checkpoint("someone/some-model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nothing-here", "/nowhere/at/all", "a/b/c"])
def test_what_cannot_be_a_repository_never_asks_the_hub(hub, name) -> None:
    with pytest.raises(CheckpointNotFoundError):
        obtain_checkpoint(name)
    assert hub.asked == []
