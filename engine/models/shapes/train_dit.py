"""Train the transformer of `shapes` by teacher forcing on encoded clips."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.models.shapes.concepts import SLOTS, TEXT_LEN
from engine.models.shapes.model import ShapesConfig, ShapesNet
from engine.models.shapes.train_data import Clips, load_clips, load_codec
from engine.models.shapes.train_sheet import export_weights
from engine.models.shapes.train_util import Job, MuonAdam, Peers, Progress, autocast, ease

__all__ = ["train_dit"]

_PEAK_LR = 2e-3
_CONTEXT_NOISE = 0.15  # largest deviation added to the clean context, against drift
_START_SHARE = 0.5  # share of batches whose first chunk is a session's first
_FIRST_WEIGHT = 2.0  # of that chunk: it decides shape and number, later ones follow what they see
_SELF_FROM = 0.55  # from this part of the run on, half of the batches see the model's own chunks as context
_SMALL_COVER = 0.03  # share of the picture below which objects stop gaining weight
_EMA = 0.998


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """R training clips; noisy chunks begin at `first_noisy`."""

    clean: Tensor
    """[R, Kc·F, C, h, w]"""
    target: Tensor
    """[R, Kn·F, C, h, w]"""
    weight: Tensor
    """[R, Kn·F, 1, h, w]"""
    tokens: Tensor
    """[R, K, T]"""
    actions: Tensor
    """[R, K·F, A]"""
    first_noisy: int


def train_dit(job: Job) -> Path:
    """Train, resuming `out/dit.pt`; write it, weights and a sample sheet every five minutes.

    Under torchrun every process draws its own clips and the gradients are averaged.
    """
    torch.manual_seed(job.seed)
    peers = Peers()
    clips = load_clips(job.out, job.device)
    run = _Run(job, peers)
    draws = torch.Generator().manual_seed(job.seed + 7919 * run.steps + peers.rank)
    torch.manual_seed(job.seed + 7919 * run.steps + peers.rank)
    common = torch.Generator().manual_seed(job.seed + run.steps)  # choices that all processes make alike
    progress = Progress("dit", job.minutes)
    while (fraction := peers.agree(progress.fraction())) < 1.0 or not progress.steps:
        run.set_lr(ease(fraction, progress.steps, warmup=60))
        from_start, from_self = torch.rand(2, generator=common).tolist()
        batch = _draw(clips, job, draws, first_noisy=0 if from_start < _START_SHARE else 1)
        progress.update(**run.step(batch, own_context=fraction > _SELF_FROM and from_self < 0.5))
        if peers.rank == 0 and progress.is_checkpoint_due():
            run.save()
    return run.save() if peers.rank == 0 else job.out


class _Run:
    """The model in training, its average, its optimizers."""

    def __init__(self, job: Job, peers: Peers) -> None:
        self.steps = 0
        self._job, self._config, self._peers = job, job.config, peers
        self._net = ShapesNet(job.config).to(job.device)
        _, decoder = load_codec(job)
        self._net.decoder.load_state_dict(decoder.state_dict())
        self._net.decoder.requires_grad_(False)
        self._average = {
            name: p.detach().clone() for name, p in self._net.named_parameters() if p.requires_grad
        }
        self._optimizer = _make_optimizer(self._net)
        if (job.out / "dit.pt").exists():
            self._resume(torch.load(job.out / "dit.pt", weights_only=True, map_location=job.device))

    def _resume(self, saved: dict[str, object]) -> None:
        self.steps = int(str(saved["steps"]))
        self._net.load_state_dict(saved["net"], strict=False)  # type: ignore[arg-type]  # no decoder in it
        self._average.update(saved["average"])  # type: ignore[call-overload]
        if saved["optimizer"]:  # weights alone have none
            self._optimizer.load_state_dict(saved["optimizer"])  # type: ignore[arg-type]

    def set_lr(self, factor: float) -> None:
        """Scale the peak learning rate."""
        self._optimizer.set_lr(_PEAK_LR * factor)

    def step(self, batch: _Batch, *, own_context: bool) -> dict[str, Tensor]:
        """One update; returns losses of the first and of the other chunks, each []."""
        if own_context:
            batch = self._with_own_context(batch)
        sigma = _sigmas(batch, self._config)
        out = self._forward(batch, sigma)
        squares = (batch.weight * (out - batch.target) ** 2).mean(dim=(2, 3, 4)).unflatten(1, (-1, 3)).mean(2)
        # As an error of the velocity: else the noisiest levels, where most is unknowable, drown the last.
        error = (squares / sigma**2).mean(dim=0)
        weights = torch.ones_like(error)
        if batch.first_noisy == 0:
            weights[0] = _FIRST_WEIGHT
        loss = (error * weights).sum() / weights.sum()
        self._optimizer.zero_grad()
        loss.backward()
        self._peers.average_gradients(self._net.parameters())
        nn.utils.clip_grad_norm_(self._net.parameters(), 1.0)
        self._optimizer.step()
        self._follow()
        self.steps += 1
        parts = error.detach()
        if batch.first_noisy == 0:
            return {"first": parts[0], "next": parts[1:].mean()}
        return {"later": parts.mean()}

    def _forward(self, batch: _Batch, sigma: Tensor) -> Tensor:
        span = self._config.dit.chunk_frames
        level = sigma.repeat_interleave(span, dim=1)[:, :, None, None, None]
        noisy = (1 - level) * batch.target + level * torch.randn_like(batch.target)
        with autocast(self._job.device):
            embeds = self._net.embed(batch.tokens)
            out: Tensor = self._net.dit.predict_clip(
                batch.clean, noisy, sigma, embeds, batch.first_noisy, batch.actions
            )
        return out.float()

    @torch.no_grad()
    def _with_own_context(self, batch: _Batch) -> _Batch:
        """Replace the clean chunks by what the model itself makes of them in its last denoising step."""
        count = batch.target.shape[1] // self._config.dit.chunk_frames
        last = batch.target.new_full((len(batch.target), count), self._config.sigmas[-1])
        made = self._forward(batch, last)
        known = batch.first_noisy * self._config.dit.chunk_frames
        clean = torch.cat([batch.clean[:, :known], made], dim=1)[:, : batch.clean.shape[1]]
        return replace(batch, clean=clean)

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(_EMA, (1 + self.steps) / (20 + self.steps))
        current = [p.data for name, p in self._net.named_parameters() if name in self._average]
        torch._foreach_lerp_(list(self._average.values()), current, 1 - decay)

    def save(self) -> Path:
        """Write the resumable state, the averaged weights and a sample sheet; returns the weights' path."""
        state = {
            "steps": self.steps,
            "net": {k: v for k, v in self._net.state_dict().items() if not k.startswith("decoder.")},
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
        }
        partial = self._job.out / "dit.partial"
        torch.save(state, partial)
        partial.replace(self._job.out / "dit.pt")
        return export_weights(self._job)


def _make_optimizer(net: ShapesNet) -> MuonAdam:
    """Muon for the matrices inside the blocks only."""
    matrices = [p for p in net.dit.blocks.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in net.parameters() if p.requires_grad and id(p) not in inside]
    return MuonAdam(matrices, others, weight_decay=0.02)


def _sigmas(batch: _Batch, config: ShapesConfig) -> Tensor:
    """A noise level [R, Kn] per noisy chunk, from exactly those that streaming will ask for."""
    rows, count = batch.target.shape[0], batch.target.shape[1] // config.dit.chunk_frames

    def draw(levels: tuple[float, ...], columns: int) -> Tensor:
        return torch.tensor(levels)[torch.randint(len(levels), (rows, columns))]

    if batch.first_noisy > 0:
        return draw(config.sigmas, count).to(batch.target.device)
    return torch.cat([draw(config.first_sigmas, 1), draw(config.sigmas, count - 1)], dim=1).to(
        batch.target.device
    )


def _draw(clips: Clips, job: Job, generator: torch.Generator, *, first_noisy: int) -> _Batch:
    """Random clips of one window: from a session's start (first_noisy 0), or from its middle, with that
    many more chunks as mere context before."""
    dit, device = job.config.dit, job.device
    span, window = dit.chunk_frames, dit.window_frames // dit.chunk_frames
    total = clips.ids.shape[1]
    chunks = window + first_noisy
    rows = torch.randint(len(clips.ids), (job.batch,), generator=generator)
    begin = torch.randint(total - chunks + 1, (job.batch,), generator=generator) * min(first_noisy, 1)
    chunk_index = begin[:, None] + torch.arange(chunks)
    frame_index = begin[:, None] * span + torch.arange(chunks * span)
    latents = clips.latents[rows[:, None], frame_index].float().to(device)
    mask = clips.masks[rows[:, None], frame_index].float().to(device) / 255
    weight = _weight(mask, latents)
    deviation = _CONTEXT_NOISE * torch.rand(job.batch, 1, 1, 1, 1, device=device)
    clean = latents[:, :-span]
    return _Batch(
        clean=clean + deviation * torch.randn_like(clean),
        target=latents[:, first_noisy * span :],
        weight=weight[:, first_noisy * span :, None],
        tokens=_tokens(clips.ids[rows[:, None], chunk_index].long()).to(device),
        actions=clips.actions[rows[:, None], frame_index].float().to(device),
        first_noisy=first_noisy,
    )


def _weight(mask: Tensor, latents: Tensor) -> Tensor:
    """Weights [R, K·F, h, w] of mean 1: what the objects cover counts most, small ones no less than large,
    pale ones (white on white) no less than bright ones."""
    cover = (mask > 0.02).float() + mask
    weight = 0.4 + 0.6 * cover / (cover.mean(dim=(1, 2, 3), keepdim=True) + _SMALL_COVER)
    contrast = latents.var(dim=(1, 3, 4)).mean(dim=1).sqrt()[:, None, None, None]
    weight = weight * (contrast.mean() / contrast).clamp(0.6, 2.5)
    return weight / weight.mean()


def _tokens(ids: Tensor) -> Tensor:
    """Slot indices [R, K, S] → concept tokens [R, K, T], as concepts.scene_tokens does for one."""
    sizes = torch.tensor([0] + [len(slot) for slot in SLOTS[:-1]], device=ids.device)
    tokens = ids + 1 + sizes.cumsum(0)
    return nn.functional.pad(tokens, (0, TEXT_LEN - ids.shape[-1]))
