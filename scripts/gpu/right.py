"""Whether the device computes what the CPU does, and every path what the others do.

Shape legend: N rows, K kept rows, B utterances, S feature frames, T encoder frames, D model size.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu.boxed import Found
from gpu.models import MODULES, FixedGates, encode, features, local_gates, mini, random_backbone
from localgp.encoder.run import EncoderOutput
from localgp.errors import ConfigError
from localgp.gates import GlobalGates, RandomGates
from localgp.kernels.ragged import Ragged

ROOT = Path(__file__).resolve().parents[2]
COUNTS = ("tests/test_counts.py", "tests/test_counts_whisper.py")
SIZES = (7, 48, 128, 384, 768, 1024, 1536, 2048, 3072, 4096)
FP32, BF16 = 1e-4, 2e-2  # largest difference over largest value
ENCODERS = (("mini", 801), ("owsm_v3.1_small", 3001), ("owsm_v3.1_medium", 3001))


def environment(found: Found) -> None:
    """What this machine is, and whether Triton compiles here."""
    from localgp.kernels.rows import gather_norm

    properties = torch.cuda.get_device_properties(0)
    found.say(
        "machine",
        card=properties.name,
        capability=f"{properties.major}.{properties.minor}",
        memory_gib=round(properties.total_memory / 2**30, 1),
        torch=torch.__version__,
        cuda=torch.version.cuda,
    )
    x, index = torch.randn(9, 48, device="cuda"), torch.tensor([3, 1], device="cuda")
    ones = torch.ones(48, device="cuda")
    gather_norm(x, index, ones, ones, 1e-5, torch.float32)
    try:
        from localgp.kernels.triton_rows import gather_norm as compiled

        compiled(x, index, ones, ones, 1e-5, torch.float32)
        found.say("Triton compiles")
    except (
        Exception
    ) as error:  # whatever its tool chain raises: then the plain versions run, which the line above did
        found.say("Triton does not compile", error=f"{type(error).__name__}: {error}"[:300])
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    wide = torch.randn(2**29, device="cuda")
    product, copy = (_milliseconds(run) for run in (lambda: a @ b, wide.clone))
    found.say("products, bf16", tflop_per_s=round(2 * size**3 / product / 1e9))
    found.say("copies, read and written", gb_per_s=round(2 * wide.nbytes / copy / 1e6))


def interpreted(found: Found) -> None:
    """The tests of Triton's kernels, in its interpreter."""
    _tests(found, "tests/test_kernels.py", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


def counts(found: Found) -> None:
    """The tests of what is launched and waited for, counted on the CPU."""
    _tests(found, *COUNTS, CUDA_VISIBLE_DEVICES="")


def _tests(found: Found, *paths: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *paths]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    outcome = [line for line in result.stdout.splitlines() if " passed" in line or line.startswith("FAILED")]
    found.true(
        " ".join(paths), result.returncode == 0, outcome="; ".join(outcome)[-600:] or result.stderr[-600:]
    )


def kernels(found: Found) -> None:
    """Triton's kernels against the plain versions: the tests' cases, and at the models' sizes."""
    _tests(found, "tests/test_kernels.py")
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        worst: dict[str, float] = {}
        for size in SIZES:
            for rows in (1, 749, 8988):
                for name, error in _errors(size, rows, dtype).items():
                    worst[name] = max(worst.get(name, 0.0), error)
        for name, error in worst.items():
            found.near(f"{name} {str(dtype)[6:]}", error, limit)


def _errors(size: int, rows: int, dtype: torch.dtype) -> dict[str, float]:
    """Of each kernel, for two utterances of which a half is kept."""
    from localgp.kernels import triton_kernels as ours
    from localgp.kernels.kept import Reference
    from localgp.kernels.rows import gather_norm_reference, scatter_add_reference
    from tests.counting import plus_reference, times_reference

    torch.manual_seed(size + rows)
    layout = Ragged([rows // 3, rows - rows // 3], "cuda")
    x, other, residual = torch.randn(3, rows, size, device="cuda")
    kept = ours.compact(torch.rand(1, rows, device="cuda") < 0.5, layout)[0]
    half, taps, bias = x.to(dtype), torch.randn(size, 31, device="cuda").to(dtype), other[0].to(dtype)
    weight = (torch.randn(2 * size, size, device="cuda") / size**0.5).to(dtype)
    back = (torch.randn(size, size, device="cuda") / size**0.5).to(dtype)
    norm = kept.index_N, other[0], residual[0], 1e-12, dtype, kept.count
    index = kept.index_N[: int(kept.count)].long()
    exists = slice(int(kept.count))
    put = [k.product_to_rows(half, back, None, kept, residual.clone(), add=True) for k in (ours, Reference)]
    added = [f(residual.clone(), index, half[exists], 0.5) for f in (ours.scatter_add, scatter_add_reference)]
    multiplied = [other.to(dtype), other.to(dtype)]
    ours.times(multiplied[0], half, taps, bias, layout)
    times_reference(multiplied[1], half, taps, bias, layout)
    both = [f(half, half, torch.cat([taps, taps]), None, layout) for f in (ours.plus, plus_reference)]
    normed = [f(x, *norm)[exists] for f in (ours.gather_norm, gather_norm_reference)]
    products = [k.product(half, weight, None, kept, "swish")[exists] for k in (ours, Reference)]
    pairs = {"product": products, "product_to_rows": put, "scatter_add": added, "gather_norm": normed}
    return {name: relative(*pair) for name, pair in (pairs | {"times": multiplied, "plus": both}).items()}


@torch.no_grad()
def paths(found: Found) -> None:
    """Masked, gathered and packed, and ESPnet's own forward, in fp32 and bf16."""
    for name, frames in ENCODERS:
        backbone = mini("cuda") if name == "mini" else random_backbone(name, "cuda")
        inputs = features(2, "cuda", frames)
        global_ = (
            GlobalGates(backbone.shape.encoder_layers, backbone.shape.size, [*MODULES, "cgmlp"]).cuda().eval()
        )
        policies: dict[str, Any] = {
            "dense": None,
            "random": RandomGates(MODULES, 0.3).eval(),
            "global": global_,
            "local": local_gates(backbone, *inputs, 0.3),
            "local cosine": local_gates(backbone, *inputs, 0.3, "cosine"),
        }
        encoder: Any = backbone.net.encoder
        positions = encoder.embed.out[1].pe
        dtype, kept = positions.dtype, positions.clone()
        for kind, policy in policies.items():
            masked = encode(backbone, *inputs, policy, path="masked")
            for path in ("gathered", "packed"):
                ours = encode(backbone, *inputs, policy, path=path)
                found.near(f"{name} {kind} fp32 {path} against masked", relative(ours.x, masked.x), FP32)
                if policy is not None:
                    found.near(f"{name} {kind} fp32 {path}, other decisions", _differing(ours, masked), 1e-3)
            if policy is None:
                found.near(f"{name} fp32 packed against ESPnet", relative(ours.x, encoder(*inputs)[0]), FP32)
            with torch.autocast("cuda", torch.bfloat16):
                halves = {path: encode(backbone, *inputs, policy, path=path) for path in ("masked", "packed")}
            errors = {path: _typical(half.x, masked.x) for path, half in halves.items()}
            if kind in ("dense", "random"):  # what is learnt decides otherwise near its threshold, in bf16
                found.near(f"{name} {kind} bf16 packed", errors["packed"], BF16)
            found.say(
                f"{name} {kind} bf16, typical error", **{p: float(f"{e:.3g}") for p, e in errors.items()}
            )
            if policy is not None:
                shares = {path: round(_differing(half, masked), 5) for path, half in halves.items()}
                found.say(f"{name} {kind} bf16, other decisions than in fp32", **shares)
        after = encoder.embed.out[1].pe
        same = after.dtype == dtype and torch.equal(after[:, : kept.shape[1]], kept)
        found.true(f"{name} positions untouched by bf16", same, dtype=str(after.dtype))


@torch.no_grad()
def against_cpu(found: Found) -> None:
    """The embedded model here and on the CPU: states, and what LocalGP decides."""
    outputs = []
    for device in ("cpu", "cuda"):
        backbone = mini(device)
        inputs = features(3, device, 801)
        policy = local_gates(mini("cpu"), *features(3, "cpu", 801), 0.3).to(device)
        outputs.append({path: encode(backbone, *inputs, policy, path=path) for path in ("masked", "packed")})
    for path, there in outputs[0].items():
        here = outputs[1][path]
        found.near(f"{path}: states", relative(here.x, there.x), FP32)
        found.near(f"{path}: other decisions", _differing(here, there), 1e-3)
    found.say("kept", share=round(float(torch.stack(_decisions(outputs[1]["packed"])).mean()), 4))


@torch.no_grad()
def ragged(found: Found) -> None:
    """Utterances of different lengths together and alone, one of a single frame, and one in which nothing runs."""
    for name in ("mini", "owsm_v3.1_small"):
        backbone = mini("cuda") if name == "mini" else random_backbone(name, "cuda")
        lengths = [3001, 1203, 7, 402, 398]
        feats, _ = features(len(lengths), "cuda")
        generator = torch.Generator().manual_seed(5)
        layers = backbone.shape.encoder_layers
        decisions = {
            module: (torch.rand(layers, len(lengths), 749, generator=generator) < 0.7).float()
            for module in MODULES
        }
        for decision in decisions.values():
            decision[:, 3] = 0.0
            decision[0] = 0.0
        for kind in ("dense", "fixed", "local"):
            for dtype, limit in ((torch.float32, FP32), (torch.bfloat16, BF16)):
                policy: Any = None
                if kind == "local":
                    policy = local_gates(backbone, *features(1, "cuda"), 0.3)
                with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                    if kind == "fixed":
                        # One utterance at a time is asked for, in their order
                        policy = _Sliced(decisions, lengths)
                    together = encode(backbone, feats, torch.tensor(lengths).cuda(), policy, path="packed")
                    worst, flipped = 0.0, 0.0
                    for b, length in enumerate(lengths):
                        if kind == "fixed":
                            cut = {
                                m: d[:, b : b + 1, : int(together.lengths[b])] for m, d in decisions.items()
                            }
                            policy = FixedGates(cut).eval()
                        alone = encode(
                            backbone,
                            feats[b : b + 1, :length],
                            torch.tensor([length]).cuda(),
                            policy,
                            path="packed",
                        )
                        frames = int(alone.lengths[0])
                        worst = max(worst, _typical(together.x[b, :frames], alone.x[0]))
                        if policy is not None:
                            pairs = zip(together.gates, alone.gates, strict=True)
                            differ = [
                                (one[m].value[b, :frames] != other[m].value[0]).float().mean()
                                for one, other in pairs
                                for m in MODULES
                            ]
                            flipped = max(flipped, float(torch.stack(differ).mean()))
                what = f"{name} {kind} {str(dtype)[6:]}"
                if kind == "local" and dtype == torch.bfloat16:
                    found.say(f"{what}: together against alone", typical=worst, other_decisions=flipped)
                else:
                    found.near(f"{what}: together against alone", worst, limit)
                    found.near(f"{what}: other decisions", flipped, 1e-3)
        try:
            encode(backbone, feats, torch.tensor([3001, 3, 7, 400, 9]).cuda(), path="packed")
            found.true(f"{name}: an empty utterance is refused", False)
        except ConfigError as error:
            found.true(f"{name}: an empty utterance is refused", "feature frames" in str(error))


class _Sliced(FixedGates):
    """`FixedGates` that is asked for one utterance of a layer after the other."""

    def __init__(self, decisions: dict[str, Tensor], lengths: Sequence[int]) -> None:
        super().__init__(decisions)
        self._asked = [0] * len(next(iter(decisions.values())))
        self._utterances = len(lengths)
        self.eval()

    def gate(self, layer: int, x_BTD: Tensor, state: Any) -> Any:
        self._now = self._asked[layer] % self._utterances
        self._asked[layer] += 1
        return super().gate(layer, x_BTD, state)

    def decide(self, layer: int, name: str, x_BTD: Tensor, state: Any) -> Tensor:
        return self._decisions[name][layer, self._now : self._now + 1, : x_BTD.shape[1]].to(x_BTD.device)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value."""
    if not ours.numel():
        return 0.0
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _typical(ours: Tensor, theirs: Tensor) -> float:
    """The difference's norm over the norm."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def _decisions(output: EncoderOutput) -> list[Tensor]:
    return [gates[name].value.float().flatten() for gates in output.gates for name in MODULES]


def _differing(one: EncoderOutput, other: EncoderOutput) -> float:
    """Share of decisions that differ."""
    pairs = zip(_decisions(one), _decisions(other), strict=True)
    return float(torch.stack([(a.cpu() != b.cpu()).float().mean() for a, b in pairs]).mean())


def _milliseconds(run: Any) -> float:
    import triton

    return float(triton.testing.do_bench(run, warmup=50, rep=200, return_mode="median"))
