"""Checkpoints in each published format give the same weights; what does not fit is named."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
from collections.abc import Callable
from dataclasses import replace
from io import BufferedReader
from pathlib import Path

import av
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.models.registry import load_model
from engine.models.wan.checkpoint import merge_lora, read_decoder, read_dit
from engine.models.wan.config import LONGLIVE, TINY, WanConfig
from engine.models.wan.folder import Sources, add_model, load_wan
from engine.models.wan.keys import canonical_names, diffusers_dit_name
from engine.models.wan.model import WanModel, empty_dit
from engine.models.wan.text import HashedText
from engine.models.wan.vae import WanVaeDecoder
from engine.models.weights import WeightsError
from launch.model_cmd import main

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def dit() -> Tensors:
    """Weights of the tiny transformer, bfloat16 as published."""
    return {
        name: tensor.bfloat16() for name, tensor in WanModel.random(3, config=TINY)._dit.state_dict().items()
    }


@pytest.fixture(scope="module")
def decoder() -> Tensors:
    return dict(WanModel.random(3, config=TINY)._decoder.state_dict())


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def fsdp(tensors: Tensors) -> Tensors:
    """As a sharded trainer names them."""
    return {
        "model._fsdp_wrapped_module."
        + name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): tensor
        for name, tensor in tensors.items()
    }


def diffusers(tensors: Tensors) -> Tensors:
    """The map of the loader, backwards."""
    parts = ["attn1", "attn2", "norm2", "ffn.net.0.proj", "ffn.net.2", "scale_shift_table"]
    subs = ["to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k"]
    stems = [f"{a}.{s}" for a in parts[:2] for s in subs] + parts[2:]
    names = [f"blocks.{i}.{stem}" for i in range(TINY.dit.layers) for stem in stems]
    names += ["scale_shift_table", "proj_out", "condition_embedder.time_proj"]
    names += [
        f"condition_embedder.{e}.linear_{i}" for e in ("time_embedder", "text_embedder") for i in (1, 2)
    ]
    back = {diffusers_dit_name(name): name for name in names}
    out = {}
    for name, tensor in tensors.items():
        stem, _, end = name.rpartition(".")
        out[back[name] if name in back else f"{back.get(stem, stem)}.{end}"] = tensor
    return out


def save_pickle(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


FORMATS: dict[str, Callable[[Tensors, Path], Path]] = {
    "self-forcing-ema": lambda t, d: save_pickle(
        {"generator": {"model.x": torch.zeros(1)}, "generator_ema": prefixed(t, "model.")}, d / "a.pt"
    ),
    "causal-forcing": lambda t, d: save_pickle({"generator": fsdp(t), "critic": {}}, d / "a.pt"),
    "causvid": lambda t, d: save_pickle(prefixed(t, "model."), d / "a.pt"),
}


@pytest.mark.parametrize("name", [*FORMATS, "krea", "diffusers-shards"])
def test_every_format_gives_the_same_weights(name: str, dit: Tensors, tmp_path: Path) -> None:
    """Names, values and types."""
    if name == "krea":
        path = tmp_path / "krea.safetensors"
        save_file(prefixed(dit, "model."), path)
    elif name == "diffusers-shards":
        path, theirs = tmp_path, diffusers(dit)
        assert "blocks.0.attn1.to_out.0.weight" in theirs and "blocks.0.norm2.bias" in theirs
        keys = sorted(theirs)
        for number, part in enumerate((keys[:20], keys[20:])):
            save_file({key: theirs[key] for key in part}, tmp_path / f"shard-{number}.safetensors")
    else:
        path = FORMATS[name](dit, tmp_path)
    found = read_dit(path)
    assert found.keys() == dit.keys()
    assert all(
        torch.equal(found[key], tensor) and found[key].dtype == tensor.dtype for key, tensor in dit.items()
    )


def test_lora_is_merged(dit: Tensors, tmp_path: Path) -> None:
    """W + scale·B·A on the weights that it names, LongLive's names included; others stay."""
    key, dim = "blocks.1.self_attn.q", TINY.dit.dim
    down, up = torch.randn(4, dim), torch.randn(dim, 4)
    stem = f"base_model.model.model.{key}.lora_"
    lora = save_pickle(
        {"generator_lora": {f"{stem}A.weight": down, f"{stem}B.weight": up}}, tmp_path / "lora.pt"
    )
    base = save_pickle({"generator": prefixed(dit, "model.")}, tmp_path / "base.pt")
    found = read_dit(base, lora, lora_scale=0.5)
    wanted = (dit[f"{key}.weight"].float() + 0.5 * up @ down).bfloat16()
    assert torch.equal(found[f"{key}.weight"], wanted)
    assert torch.equal(found["blocks.1.self_attn.k.weight"], dit["blocks.1.self_attn.k.weight"])


def test_a_lora_that_was_forgotten_is_missed(dit: Tensors, decoder: Tensors, tmp_path: Path) -> None:
    """LongLive's base alone is not LongLive; weights may have it merged already."""
    config, said = replace(TINY, lora="lora.pt"), list[str]()
    parts = {
        "dit": save_pickle(dit, tmp_path / "dit.pt"),
        "decoder": save_pickle(decoder, tmp_path / "a.pth"),
    }
    key = "blocks.0.ffn.0.lora_"
    pair = {
        f"{key}A.weight": torch.randn(2, TINY.dit.dim),
        f"{key}B.weight": torch.randn(TINY.dit.ffn_dim, 2),
    }
    for lora in (None, save_pickle({"generator_lora": pair}, tmp_path / "lora.pt")):
        add_model(config, tmp_path / str(len(said)), Sources(**parts, lora=lora), say=said.append)
    assert [line for line in said if "no --lora: right only if lora.pt is in these weights" in line] == [
        said[1]
    ]
    assert LONGLIVE.lora


@pytest.mark.parametrize(
    ("lora", "sentence"),
    [
        ({"x.weight": torch.zeros(1)}, "x.weight is no part of a LoRA"),
        ({"x.lora_A.weight": torch.zeros(1, 1)}, "no other half"),
        ({"x.lora_A.weight": torch.zeros(1, 1), "x.lora_B.weight": torch.zeros(1, 1)}, "no weight"),
        ({"w.lora_A.weight": torch.zeros(2, 3), "w.lora_B.weight": torch.zeros(5, 2)}, r"needs \[4, 3\]"),
    ],
)
def test_lora_that_does_not_fit_is_refused(lora: Tensors, sentence: str) -> None:
    """And says why."""
    with pytest.raises(WeightsError, match=sentence):
        merge_lora({"w.weight": torch.zeros(4, 3)}, lora, scale=1.0)


class Payload:
    """What a hostile pickle might hold."""


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    """Objects other than tensors are refused unread."""
    for content in ({"generator": Payload()}, {"generator": {"a": 3}}):
        with pytest.raises(WeightsError, match=r"a\.pt"):
            read_dit(save_pickle(content, tmp_path / "a.pt"))
    for content in (pickle.dumps(Payload()), b"\x80\x05garbage", bytes(range(128, 256))):
        (tmp_path / "a.pt").write_bytes(content)
        with pytest.raises(WeightsError, match="cannot read"):
            read_dit(tmp_path / "a.pt")


def test_a_refused_pickle_says_why_and_gives_no_bad_advice(tmp_path: Path) -> None:
    """What it holds, in one line; torch itself would say how to read it without protection."""
    with pytest.raises(WeightsError, match="holds objects .*Payload.*can run code") as caught:
        read_dit(save_pickle({"generator": Payload()}, tmp_path / "a.pt"))
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


def cut_short(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def test_what_is_no_checkpoint_is_named(dit: Tensors, tmp_path: Path) -> None:
    """A download that broke off, and files of other kinds."""
    with pytest.raises(WeightsError, match="cut off, as an unfinished download"):
        read_dit(cut_short(save_pickle({"generator": dit}, tmp_path / "a.pt")))
    save_file(dit, tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match=r"b\.safetensors: .*is it whole"):
        read_dit(cut_short(tmp_path / "b.safetensors"))
    for content in (b"", b"GGUF" + bytes(99), b"some text\n", b"{}"):
        (tmp_path / "c.pt").write_bytes(content)
        with pytest.raises(WeightsError, match=r"c\.pt is neither a file of torch nor safetensors"):
            read_dit(tmp_path / "c.pt")
    with pytest.raises(WeightsError, match="none of generator_ema, generator, but critic"):
        read_dit(save_pickle({"critic": dit, "generator_ema": {}}, tmp_path / "d.pt"))


@pytest.mark.timeout(60)
def test_a_checkpoint_that_holds_itself_is_refused(tmp_path: Path) -> None:
    """To look into it has an end."""
    content: dict[str, object] = {}
    content["model"] = content
    with pytest.raises(WeightsError, match="none of generator_ema, generator, but model"):
        read_dit(save_pickle(content, tmp_path / "a.pt"))


def test_a_file_is_read_by_what_it_is(dit: Tensors, tmp_path: Path) -> None:
    """Also a pickle of the old kind, which can't be mapped, and safetensors under another name."""
    torch.save({"generator": dit}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(dit, tmp_path / "a.bin")
    for name in ("old.pt", "a.bin"):
        assert read_dit(tmp_path / name).keys() == dit.keys()


def test_the_part_is_the_one_that_was_trained_for(dit: Tensors, tmp_path: Path) -> None:
    """Averaged weights, but for LongLive, whose LoRA belongs to the others; or the one that is named."""
    both = {"generator": dit, "generator_ema": {name: tensor + 1 for name, tensor in dit.items()}}
    path, key = save_pickle(both, tmp_path / "a.pt"), "head.head.bias"
    assert torch.equal(read_dit(path)[key], dit[key] + 1)
    assert torch.equal(read_dit(path, parts=LONGLIVE.parts)[key], dit[key])
    with pytest.raises(WeightsError, match="none of critic"):
        read_dit(path, parts=("critic",))


def shards(tensors: Tensors, folder: Path, count: int = 3) -> Path:
    """As diffusers writes them, with an index."""
    folder.mkdir(parents=True)
    files = [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    where = {name: files[place % count] for place, name in enumerate(sorted(tensors))}
    for file in files:
        save_file({name: tensors[name] for name, there in where.items() if there == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def test_shards_are_those_of_the_index(dit: Tensors, tmp_path: Path) -> None:
    """Of a folder or a repository; another variant beside them is left alone, a missing one is named."""
    folder = shards(diffusers(dit), tmp_path / "repository" / "transformer")
    save_file(diffusers(dit), folder / "model.fp16.safetensors")
    for path in (folder, tmp_path / "repository"):
        assert read_dit(path).keys() == dit.keys()
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(WeightsError, match="lacks 1 of its shards: model-00002-of-00003.safetensors"):
        read_dit(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.fp16.safetensors").unlink()
    with pytest.raises(WeightsError, match="lacks 1 of its shards: model-00002-of-00003.safetensors"):
        read_dit(folder)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": {"a": "../b.safetensors"}}'])
def test_a_bad_index_is_refused(index: str, tmp_path: Path) -> None:
    """And reads nothing outside its folder."""
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(WeightsError, match="no index of shards|outside its folder"):
        read_dit(tmp_path)


def test_two_names_for_one_tensor_are_refused() -> None:
    """With and without a wrapper's prefix."""
    with pytest.raises(ValueError, match="are both head"):
        canonical_names(["head.head.bias", "model.head.head.bias"])


def test_add_checks_writes_and_loads(
    dit: Tensors, decoder: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From published files to a served model, by the command; a second time it is refused."""
    source = save_pickle({"generator_ema": fsdp(dit)}, tmp_path / "dit.pt")
    small = save_pickle({**decoder, "encoder.0.weight": torch.zeros(1)}, tmp_path / "taew2_1.pth")
    models = tmp_path / "models"
    command = ["add", str(source), "--preset", "wan-tiny", "--decoder", str(small), "--dir", str(models)]
    assert main(command) == 0
    assert "licence: none" in capsys.readouterr().out
    model = load_model("wan-tiny", device=torch.device("cpu"), weights=models / "wan-tiny")
    assert isinstance(model, WanModel)
    assert torch.equal(model._dit.state_dict()["head.head.weight"], dit["head.head.weight"].float())
    video = tmp_path / "check.mp4"
    assert main(["check", "wan-tiny", "--dir", str(models), "--save", str(video)]) == 0
    assert "names, shapes and types fit" in capsys.readouterr().out
    with av.open(str(video)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == 2 * (3 * 12 - 3) and frames[0].shape == (64, 64, 3) and frames[0].std() > 1
    assert main(command) == 1
    assert "is there already" in capsys.readouterr().err


def test_misfits_are_named(dit: Tensors, decoder: Tensors, tmp_path: Path) -> None:
    """A missing, an unknown and a misshapen tensor, and one of a wrong type; nothing is written."""
    wrong = dict(dit)
    del wrong["patch_embedding.bias"]
    wrong["img_emb.proj.0.weight"] = torch.zeros(1)
    wrong["head.head.bias"] = torch.zeros(7)
    wrong["text_embedding.0.bias"] = dit["text_embedding.0.bias"].to(torch.int8)
    save_file(decoder, tmp_path / "decoder.safetensors")
    with pytest.raises(WeightsError) as caught:
        add_model(
            TINY,
            tmp_path / "out",
            Sources(dit=save_pickle(wrong, tmp_path / "dit.pt"), decoder=tmp_path / "decoder.safetensors"),
        )
    message = str(caught.value)
    assert "dit.pt is not for wan-tiny" in message and "missing (1): patch_embedding.bias" in message
    assert "unknown (1): img_emb.proj.0.weight" in message and "head.head.bias is [7], needs [64]" in message
    assert "text_embedding.0.bias is torch.int8" in message
    assert [path.name for path in tmp_path.glob("*out*")] == []


def test_fp8_is_a_line_of_the_manifest(dit: Tensors, decoder: Tensors, tmp_path: Path) -> None:
    """A state made with it fits only an engine that computes so."""
    save_file(decoder, tmp_path / "decoder.safetensors")
    save_file(dit, tmp_path / "dit.safetensors")
    folder = tmp_path / "out"
    parts = {name: tmp_path / f"{name}.safetensors" for name in ("dit", "decoder")}
    add_model(TINY, folder, Sources(**parts))
    plain = load_model("wan-tiny", device=torch.device("cpu"), weights=folder)
    manifest = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(manifest | {"fp8": True}))
    small = load_model("wan-tiny", device=torch.device("cpu"), weights=folder)
    assert isinstance(small, WanModel) and small._dit.fused is not None
    assert small.spec.weights_hash != plain.spec.weights_hash
    (folder / "model.json").write_text(json.dumps(manifest | {"fp8": "yes"}))
    with pytest.raises(WeightsError, match="must be true or false"):
        load_model("wan-tiny", device=torch.device("cpu"), weights=folder)


def test_settings_of_a_checkpoint_of_ones_own(
    dit: Tensors, decoder: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They go into the manifest and from there into the model; a wrong one stops `add` before it reads."""
    save_file(decoder, tmp_path / "decoder.safetensors")
    save_file(dit, tmp_path / "dit.safetensors")
    command = ["add", str(tmp_path / "dit.safetensors"), "--preset", "wan-tiny", "--dir", str(tmp_path)]
    command += ["--decoder", str(tmp_path / "decoder.safetensors")]
    for wrong, sentence in (
        ("shift=0.5", "shift must be at least 1"),
        ("shape=8", "no setting of a model; known: shift"),
        ("steps=[250,500]", "steps must fall"),
        ("text_device=moon", "must be cpu or cuda"),
        ("text_device=cuda:x", "must be cpu or cuda"),
        ("shift", "KEY=VALUE"),
        ("window_frames=0", "in a window of 0"),
        ("sink_frames=12", "no room for a sink of 12"),
    ):
        assert main([*command, "--set", wrong]) == 1
        assert sentence in capsys.readouterr().err
    wanted = ("shift=8", "steps=[1000,500]", "window_frames=9", "sink_frames=0", "text_device=cpu")
    assert main([*command, *(part for setting in wanted for part in ("--set", setting))]) == 0
    spec = load_model("wan-tiny", device=torch.device("cpu"), weights=tmp_path / "wan-tiny").spec
    assert spec.sigmas == (1.0, 8 * 0.5 / 4.5) and (spec.window_frames, spec.sink_frames) == (9, 0)


def test_the_decoder_may_be_wans_vae(dit: Tensors, tmp_path: Path) -> None:
    """Told by its tensors, noted in the manifest."""
    vae = WanVaeDecoder(width=TINY.decoder_width * 3 // 2)
    save_file(dict(vae.state_dict()), tmp_path / "vae.safetensors")
    save_file(dit, tmp_path / "dit.safetensors")
    sources = Sources(dit=tmp_path / "dit.safetensors", decoder=tmp_path / "vae.safetensors")
    add_model(TINY, tmp_path / "out", sources)
    model = load_model("wan-tiny", device=torch.device("cpu"), weights=tmp_path / "out")
    assert isinstance(model, WanModel) and isinstance(model._decoder, WanVaeDecoder)


def test_a_wrong_text_encoder_stops_add_before_it_reads(dit: Tensors, tmp_path: Path) -> None:
    """And a folder without one; checkpoints have tens of gigabytes."""
    said: list[str] = []
    for name in ("text_encoder", "tokenizer"):
        (tmp_path / "text" / name).mkdir(parents=True)
    (tmp_path / "text" / "text_encoder" / "config.json").write_text('{"model_type": "t5", "d_model": 48}')
    for text, sentence in ((tmp_path / "text", "is of a t5"), (tmp_path, "has no text_encoder")):
        sources = Sources(dit=tmp_path / "not read.pt", decoder=tmp_path / "nor this", text=text)
        with pytest.raises(WeightsError, match=sentence):
            add_model(TINY, tmp_path / "out", sources, say=said.append)
    assert said == []


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    dit: Tensors, decoder: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file may not be so large here."""
    save_file(decoder, tmp_path / "decoder.safetensors")
    save_file(dit, tmp_path / "dit.safetensors")
    command = [
        "add",
        str(tmp_path / "dit.safetensors"),
        "--preset",
        "wan-tiny",
        "--dir",
        str(tmp_path / "models"),
    ]
    command += ["--decoder", str(tmp_path / "decoder.safetensors")]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        assert main(command) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "dit.safetensors can't be written" in capsys.readouterr().err
    assert not [*(tmp_path / "models").iterdir()]


def test_a_device_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """Of no kind known, and a GPU too many."""
    for device, sentence in (("gpu", "must be cpu, cuda or cuda:N"), ("cuda:99", "torch sees")):
        assert main(["check", "wan-tiny", "--device", device]) == 1
        assert sentence in capsys.readouterr().err


def test_a_model_too_large_for_a_device_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As torch has it where there is a GPU."""

    def load(name: str, *, device: torch.device, weights: Path | None) -> None:
        raise torch.OutOfMemoryError("tried to allocate 28 GiB")

    monkeypatch.setattr("engine.models.registry.load_model", load)
    assert main(["check", "wan-tiny"]) == 1
    assert "wan-tiny does not fit into the memory of cpu: tried to" in capsys.readouterr().err


def test_tensors_that_share_memory_are_written(dit: Tensors, decoder: Tensors, tmp_path: Path) -> None:
    """Which the format of the folder can't."""
    width = TINY.dit.dim
    qkv = torch.randn(3 * width, width)
    names = [f"blocks.0.self_attn.{part}.weight" for part in "qkv"]
    shared = {**dit, **dict(zip(names, qkv.chunk(3), strict=True))}
    save_file(decoder, tmp_path / "decoder.safetensors")
    sources = Sources(dit=save_pickle(shared, tmp_path / "dit.pt"), decoder=tmp_path / "decoder.safetensors")
    add_model(TINY, tmp_path / "out", sources)
    model = load_model("wan-tiny", device=torch.device("cpu"), weights=tmp_path / "out")
    assert isinstance(model, WanModel)
    assert torch.equal(model._dit.state_dict()[names[2]], qkv[2 * width :])


def test_encoder_of_a_vae_is_left_out(tmp_path: Path) -> None:
    """Only what decodes is read."""
    names = ("encoder.conv1.weight", "conv1.weight", "conv2.weight", "decoder.conv1.weight")
    path = save_pickle({name: torch.zeros(1) for name in names}, tmp_path / "vae.pth")
    assert set(read_decoder(path)) == {"conv2.weight", "decoder.conv1.weight"}


def test_weights_are_hashed_again_only_when_they_change(
    dit: Tensors, decoder: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `add` once; whatever is in the way of trusting what was kept, they are hashed."""
    hashed: list[str] = []
    of_file = hashlib.file_digest

    def counted(file: BufferedReader, kind: str) -> object:
        hashed.append(Path(file.name).name)
        return of_file(file, kind)

    def load() -> str:
        hashed.clear()
        return load_model("wan-tiny", device=torch.device("cpu"), weights=folder).spec.weights_hash

    monkeypatch.setattr("hashlib.file_digest", counted)
    save_file(decoder, tmp_path / "decoder.safetensors")
    save_file(dit, tmp_path / "dit.safetensors")
    folder, both = tmp_path / "out", ["dit.safetensors", "decoder.safetensors"]
    add_model(TINY, folder, Sources(dit=tmp_path / both[0], decoder=tmp_path / both[1]))
    assert hashed == both
    first = load()
    assert hashed == []
    digests = folder / "digests.json"
    for spoiled in ("{", "[]", '{"dit.safetensors": 1}', None):
        digests.unlink() if spoiled is None else digests.write_text(spoiled)
        assert (load(), hashed) == (first, both)
        assert (load(), hashed) == (first, [])
    os.utime(folder / "dit.safetensors", ns=(1, 1))
    assert (load(), hashed) == (first, both[:1])
    save_file({**dit, "head.head.bias": dit["head.head.bias"] + 1}, folder / "dit.safetensors")
    assert load() != first and hashed == both[:1]


def test_what_is_said_about_weights_is_no_part_of_their_hash(
    dit: Tensors, decoder: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines of two versions, of which one knows a card's newer licence, take over each other's sessions."""
    save_file(decoder, tmp_path / "decoder.safetensors")
    save_file(dit, tmp_path / "dit.safetensors")
    parts = {name: tmp_path / f"{name}.safetensors" for name in ("dit", "decoder")}
    add_model(TINY, tmp_path / "out", Sources(**parts))
    text = HashedText(TINY.dit.text_shape)
    monkeypatch.setattr("engine.models.wan.folder._text_encoder", lambda *given: text)

    def hash_of(config: WanConfig) -> tuple[str, str]:
        loaded = load_wan(config, torch.device("cpu"), tmp_path / "out")
        return loaded.spec.weights_hash, WanModel.random(0, config=config).spec.weights_hash

    newer = replace(TINY, licence="another", source="elsewhere", parts=("generator",))
    assert hash_of(newer) == hash_of(TINY)
    assert not {*hash_of(replace(TINY, shift=8.0))} & {*hash_of(TINY)}


def test_missing_folder_says_how_to_make_it(tmp_path: Path) -> None:
    """The source and the command are in the message."""
    with pytest.raises(WeightsError, match=r"published by gdhe17/Self-Forcing.*turboserve model add"):
        load_model("wan-1.3b-causal", device=torch.device("cpu"), weights=tmp_path / "none")


def test_empty_transformer_takes_no_memory() -> None:
    """Its weights come from the file."""
    assert all(tensor.is_meta for tensor in empty_dit(TINY).state_dict().values())
