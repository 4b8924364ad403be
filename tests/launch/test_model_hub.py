"""Which files of a repository on the hub a model is made of."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from launch.model_hub import TRANSFORMER, VAE, choose, find

FORCING = ["README.md", "chunkwise/causal_forcing.pt", "framewise/causal_forcing.pt"]
DIFFUSERS = [
    *("model_index.json", "transformer/config.json", "vae/diffusion_pytorch_model.safetensors"),
    *(f"transformer/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)),
    *("text_encoder/model.safetensors", "tokenizer/tokenizer.json"),
]
WAN = ["models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", "google/umt5-xxl/tokenizer.json"]


@pytest.mark.parametrize(
    ("names", "wanted", "usual", "chosen", "inside"),
    [
        (FORCING, "chunkwise/causal_forcing.pt", TRANSFORMER, [FORCING[1]], FORCING[1]),
        (["README.md", "krea.safetensors"], None, TRANSFORMER, ["krea.safetensors"], "krea.safetensors"),
        (DIFFUSERS, None, TRANSFORMER, [DIFFUSERS[1], *DIFFUSERS[3:5]], "transformer"),
        (DIFFUSERS, None, VAE, [DIFFUSERS[2]], "vae"),
        (DIFFUSERS, "vae", TRANSFORMER, [DIFFUSERS[2]], "vae"),
        (
            ["a-00001-of-00001.safetensors", "a.safetensors.index.json", "lora/b.safetensors"],
            None,
            TRANSFORMER,
            ["a-00001-of-00001.safetensors", "a.safetensors.index.json"],
            "",
        ),
    ],
)
def test_no_more_is_fetched_than_is_needed(
    names: Sequence[str], wanted: str | None, usual: str, chosen: Sequence[str], inside: str
) -> None:
    """A repository may hold several checkpoints of many gigabytes, and a transformer is no decoder."""
    assert choose(names, wanted, usual) == (chosen, inside)


@pytest.mark.parametrize(
    ("names", "wanted", "sentence"),
    [
        (FORCING, None, "which of chunkwise/causal_forcing.pt, framewise/causal_forcing.pt"),
        (FORCING, "chunk", "no chunk among chunkwise/causal_forcing.pt"),
        (["README.md"], None, "no weights at all"),
    ],
)
def test_a_choice_is_left_to_the_user(names: Sequence[str], wanted: str | None, sentence: str) -> None:
    """With what there is in the message."""
    with pytest.raises(ValueError, match=sentence):
        choose(names, wanted)


class Hub(ModuleType):
    """The two calls of the hub's client that are used, on a folder."""

    def __init__(self, folder: Path, names: Sequence[str], card: dict[str, str] | None) -> None:
        super().__init__("huggingface_hub")
        self.folder, self.names, self.card = folder, names, card
        self.fetched: list[Sequence[str]] = []

    def model_info(self, repo: str) -> SimpleNamespace:
        if repo != "some/thing":
            raise OSError("404\n\nthere is none")
        siblings = [SimpleNamespace(rfilename=name) for name in self.names]
        return SimpleNamespace(sha="abc", siblings=siblings, card_data=self.card)

    def snapshot_download(self, repo: str, *, revision: str, allow_patterns: Sequence[str]) -> str:
        assert (repo, revision) == ("some/thing", "abc")
        self.fetched.append(allow_patterns)
        return str(self.folder)


def test_a_download_shows_the_licence_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its card, before anything is fetched; a file may be named in the id."""
    hub, said = Hub(tmp_path, FORCING, {"license": "cc-by-nc-sa-4.0"}), list[str]()
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert find("some/thing:framewise", say=said.append) == tmp_path / "framewise"
    assert said[0] == "some/thing: licence by its card: cc-by-nc-sa-4.0"
    assert hub.fetched == [["framewise/causal_forcing.pt"]] and "framewise" in said[1]
    hub.card, hub.names = None, WAN
    parts = ("text_encoder", "models_t5_umt5-xxl-enc-bf16.pth", "google")
    assert find("some/thing", parts=parts, say=said.append) == tmp_path
    assert hub.fetched[-1] == [WAN[0], WAN[2]] and said[2].endswith("it says nothing")
    hub.names = DIFFUSERS
    assert find("some/thing", folder=VAE, say=said.append) == tmp_path / "vae"
    assert hub.fetched[-1] == [DIFFUSERS[2]]
    with pytest.raises(ValueError, match=r"tells nothing of no/such: 404 there is none"):
        find("no/such", say=said.append)


def test_what_is_here_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    """A path, perhaps with a file of it; what is neither a path nor an id is an error."""
    (tmp_path / "a.pt").touch()
    assert find(str(tmp_path / "a.pt"), say=print) == tmp_path / "a.pt"
    assert find(str(tmp_path), "a.pt", say=print) == tmp_path / "a.pt"
    with pytest.raises(ValueError, match=r"holds no b\.pt"):
        find(str(tmp_path), "b.pt", say=print)
    for nothing in ("/no/such/file", "./no/such", "nothing.pt"):
        with pytest.raises(ValueError, match="nothing at"):
            find(nothing, say=print)
