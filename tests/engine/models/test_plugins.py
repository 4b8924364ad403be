"""Models of other packages: found by their entry points, loaded, refused in a sentence."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.plugin import PACED, install
from engine.kv_pool import SlabPool
from engine.models.registry import load_model, model_names
from engine.passes import Passes
from engine.sampler import denoise, initial_latents
from engine.session_state import SessionState, Stage
from engine.steering import Steering
from scheduler.messages import SessionId

CPU = torch.device("cpu")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in which Python looks for packages."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("turboserve_paced", "broken_model"):
        sys.modules.pop(name, None)


def declare(site: Path, package: str, name: str, value: str) -> None:
    """Put a package's metadata there that names one model."""
    info = site / f"{package}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[turboserve.models]\n{name} = {value}\n")


def costs(path: Path, *pass_ms: float, decode_ms: float = 0.0) -> Path:
    """A cost table of one KV length, in a file."""
    path.write_text(json.dumps({"buckets": [12], "pass_ms": [list(pass_ms)], "decode_ms": decode_ms}))
    return path


def test_an_installed_package_brings_its_model(site: Path) -> None:
    """By name, like our own; before it is installed there is no such name."""
    assert "paced" not in model_names()
    with pytest.raises(ValueError, match="unknown model 'paced'"):
        load_model("paced", device=CPU)
    install(PACED, site)
    assert {"paced", "shapes"} <= set(model_names())
    assert load_model("paced", device=CPU).spec.name == "paced"


def test_a_package_that_cannot_be_imported_is_named(site: Path) -> None:
    """With what the import raised; all other models stay usable."""
    (site / "broken_model.py").write_text("raise RuntimeError('no such thing')\n")
    declare(site, "broken", "odd", "broken_model:load")
    with pytest.raises(ValueError, match=r"'odd' of broken can't be imported: no such thing"):
        load_model("odd", device=CPU)
    assert load_model("shapes", device=CPU).spec.name == "shapes"


def test_two_packages_with_one_name_are_refused(site: Path) -> None:
    """Neither is chosen by chance."""
    declare(site, "first", "odd", "one:load")
    declare(site, "second", "odd", "two:load")
    with pytest.raises(ValueError, match="'odd' is in several packages: first, second"):
        load_model("odd", device=CPU)


def test_our_own_models_cannot_be_replaced(site: Path) -> None:
    """A package that names its model `shapes` changes nothing."""
    declare(site, "thief", "shapes", "broken_model:load")
    assert load_model("shapes", device=CPU).spec.name == "shapes"


def test_a_model_must_be_called_as_it_was_asked_for(site: Path) -> None:
    """The name that clients see is the one it was started with."""
    install(PACED, site)
    declare(site, "alias", "quick", "turboserve_paced:load")
    with pytest.raises(ValueError, match="'quick' made one that is called 'paced'"):
        load_model("quick", device=CPU)


def test_paced_takes_what_its_table_says(site: Path, tmp_path: Path) -> None:
    """A pass of two sessions lasts at least t(2); a larger batch than the table has is out of memory."""
    install(PACED, site)
    model = load_model("paced", device=CPU, weights=costs(tmp_path / "c.json", 5.0, 60.0))
    pool = SlabPool(model, slots=3)
    states = [chunk(pool.allocate(), model.spec.chunk_latent_frames, number) for number in range(3)]
    began = time.monotonic()
    Passes(model, pool).run(states[:2])
    assert time.monotonic() - began >= 0.060
    run = Passes(model, pool).run(states)
    assert run.out_of_memory and len(run.outcomes) == 3


def test_pictures_of_paced_follow_prompt_and_past(site: Path, tmp_path: Path) -> None:
    """Equal for equal inputs, others for another prompt or another past."""
    install(PACED, site)
    model = load_model("paced", device=CPU, weights=costs(tmp_path / "c.json", 0.01))

    def picture(prompt: str, *, past: float = 0.0) -> torch.Tensor:
        pool = SlabPool(model, slots=1)
        state = chunk(pool.allocate(), model.spec.chunk_latent_frames, index=1)
        pool.kv[state.slot] = past
        pool.prompt_slot(state.slot).copy_(model.prompt_kv(model.encode_prompts([prompt]))[0])
        state.x = initial_latents(model.spec, seed=1, index=1, device=CPU)
        for step in range(len(model.spec.sigmas)):
            state.step = step
            velocity = Passes(model, pool).attempt([state])
            assert isinstance(velocity, torch.Tensor)
            state.x = denoise(model.spec, state.x, velocity[0], seed=1, index=1, step=step)
        rgb, next_state = model.decode(state.x, pool.decoder[state.slot])
        assert rgb.shape == (12, 64, 64, 3) and rgb.dtype == torch.uint8
        assert next_state.shape == (model.spec.decoder_state_numel,)
        return rgb

    assert torch.equal(picture("red"), picture("red"))
    assert not torch.equal(picture("red"), picture("blue"))
    assert not torch.equal(picture("red"), picture("red", past=1.0))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"buckets": [1], "pass_ms": [[0]]}', '{"buckets": [2, 1], "pass_ms": [[1]]}']
)
def test_costs_that_are_none_are_refused(site: Path, tmp_path: Path, text: str) -> None:
    """With the file's name."""
    install(PACED, site)
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"cannot read costs from .*bad\.json"):
        load_model("paced", device=CPU, weights=path)


def chunk(slot: int, frames: int, index: int) -> SessionState:
    """A session in the middle of a chunk."""
    return SessionState(
        session=SessionId(f"s{slot}"),
        epoch=0,
        slot=slot,
        steering=Steering(seed=0),
        seq=index,
        frame=0,
        stage=Stage.DENOISE,
        index=index,
        x=torch.zeros(frames, 3, 2, 2),
    )
