"""EMA: closed forms of the averages, the power profile's width, and bit-exact swaps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from suffuse import checkpoint
from suffuse.ema import EMA, ConstantDecay, HalfLife, PostHoc, PowerDecay, exponent
from suffuse.errors import CheckpointError, ConfigError
from suffuse.posthoc import combine, inner, reconstruct, store
from torch import nn


def run(decay, count):
    """Return the average after parameters 1, 2, … `count`, starting from 0."""
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    ema = EMA([parameter], decay)
    for k in range(1, count + 1):
        with torch.no_grad():
            parameter.fill_(k)
        ema.update()
    with ema.swap():
        return parameter[0].item()


def test_constant_decay_is_the_geometric_sum():
    beta, n = 0.9, 50
    wanted = sum((1 - beta) * beta ** (n - k) * k for k in range(1, n + 1))
    assert run(ConstantDecay(beta, warmup=False), n) == pytest.approx(wanted, rel=1e-12)


def test_warmup_grows_to_the_decay():
    decay = ConstantDecay(0.999)
    assert decay(1) == 2 / 11 and decay(90) == 91 / 100 and decay(10**6) == 0.999


@pytest.mark.parametrize("std", [0.05, 0.1, 0.25])
def test_power_decay_weights_by_a_power_and_has_its_width(std):
    """Update k of n counts as (k/n)^gamma; the window's standard deviation is `std` of the run."""
    decay, n = PowerDecay(std), 4000
    gamma = decay.gamma
    assert math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2) == pytest.approx(std, rel=1e-9)
    beta = [decay(k) for k in range(1, n + 1)]
    weight, kept = [], 1.0
    for k in range(n, 0, -1):
        weight.append((1 - beta[k - 1]) * kept)
        kept *= beta[k - 1]
    weight = torch.tensor(weight[::-1], dtype=torch.float64)
    time = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert weight.sum().item() == pytest.approx(1, abs=1e-9)
    mean = (weight * time).sum()
    assert ((weight * (time - mean) ** 2).sum().sqrt()).item() == pytest.approx(std, rel=2e-3)
    power = time**gamma
    assert (weight / (power / power.sum()) - 1)[n // 2 :].abs().max() < 0.02


def test_power_decay_forgets_the_start():
    assert PowerDecay(0.1)(1) == 0.0


def test_swap_is_bit_exact_and_survives_errors():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    ema = EMA(model.parameters(), ConstantDecay(0.9, warmup=False))
    for _ in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        ema.update()
    raw = [p.detach().clone() for p in model.parameters()]
    kept = [average.clone() for average in ema.state_dict()["averages"]]
    with pytest.raises(ZeroDivisionError), ema.swap():
        assert all(torch.equal(p, m) for p, m in zip(model.parameters(), kept, strict=True))
        assert not any(torch.equal(p, r) for p, r in zip(model.parameters(), raw, strict=True))
        _ = 1 / 0
    assert all(torch.equal(p, r) for p, r in zip(model.parameters(), raw, strict=True))
    assert all(torch.equal(a, m) for a, m in zip(ema.state_dict()["averages"], kept, strict=True))


def test_a_restored_average_continues_bit_for_bit(tmp_path):
    def steps(ema, parameter, start, stop):
        for k in range(start, stop):
            with torch.no_grad():
                parameter.copy_(torch.randn(4, generator=torch.Generator().manual_seed(k)))
            ema.update()

    one, other = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    whole, first = EMA([one], PowerDecay(0.1)), EMA([other], PowerDecay(0.1))
    steps(whole, one, 0, 9)
    steps(first, other, 0, 4)
    torch.save(first.state_dict(), tmp_path / "ema.pt")
    second = EMA([other], PowerDecay(0.1))
    second.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    steps(second, other, 4, 9)
    assert torch.equal(second.state_dict()["averages"][0], whole.state_dict()["averages"][0])


def test_half_life_halves():
    decay = HalfLife(steps=40, rampup=None)
    assert math.prod(decay(k) for k in range(101, 141)) == pytest.approx(0.5, rel=1e-12)
    samples = HalfLife(samples=5120, batch_size=64, accumulate=2, rampup=None)
    assert samples(7) == pytest.approx(decay(7), rel=1e-12)


def test_half_life_ramps_up_with_the_run():
    """EDM: half-life min(h, 0.05 images so far), where the first update has seen none."""
    decay = HalfLife(steps=40)
    assert decay(1) == 0.0
    assert decay(101) == pytest.approx(0.5 ** (1 / 5)) and decay(801) == decay(10**6) == pytest.approx(0.5 ** (1 / 40))


@pytest.mark.parametrize("pair", [(0.05, 100, 0.1, 100), (0.1, 40, 0.05, 100), (0.25, 70.5, 0.02, 30.25)])
def test_inner_products_of_profiles(pair):
    a, ta, b, tb = pair
    ga, gb = exponent(a), exponent(b)

    def profile(tau, gamma, t):
        return (gamma + 1) * (tau / t) ** gamma / t

    wanted, _ = quad(lambda tau: profile(tau, ga, ta) * profile(tau, gb, tb), 0, min(ta, tb), epsabs=1e-13, limit=200)
    assert inner(np.array(ga), np.array(ta), np.array(gb), np.array(tb)) == pytest.approx(wanted, rel=1e-9)
    assert exponent(0.05) == pytest.approx(16.97, abs=5e-3) and exponent(0.1) == pytest.approx(6.94, abs=5e-3)


def weights_of(std, k):
    """Return what update j of k counts in the tracked average, by its recursion."""
    decay, found = PowerDecay(std), np.zeros(k)
    for j in range(1, k + 1):
        found[:j] *= decay(j)
        found[j - 1] = 1 - decay(j)
    return found


def test_a_tracked_average_is_the_power_profile():
    gamma, k = exponent(0.1), 300
    edges = (np.arange(k + 1) / k) ** (gamma + 1)
    assert weights_of(0.1, k) == pytest.approx(np.diff(edges), abs=1e-12)


@pytest.mark.parametrize(("every", "bound"), [(100, 0.07), (20, 3e-3), (5, 2e-4)])
@pytest.mark.parametrize("std", [0.04, 0.075, 0.15, 0.2])
def test_a_combination_has_the_profile_that_was_asked_for(std, every, bound):
    """Against the recursion of the wanted average itself: the error that is reported is the error."""
    count = 1000
    times = [t for t in range(every, count + 1, every) for _ in range(2)]
    widths = [0.05, 0.1] * (len(times) // 2)
    found = combine(widths, times, std, count)
    held = {(w, t): weights_of(w, t) for w in (0.05, 0.1) for t in set(times)}
    profile = np.zeros(count)
    for c, w, t in zip(found.coefficients, widths, times, strict=True):
        profile[:t] += c * held[w, t]
    wanted = weights_of(std, count)
    error = np.linalg.norm(profile - wanted) / np.linalg.norm(wanted)
    assert error < bound and found.error == pytest.approx(error, rel=0.2)
    assert found.coefficients.sum() == pytest.approx(1, abs=1e-12)


def test_a_tracked_width_is_itself():
    found = combine([0.05, 0.1] * 4, [25, 25, 50, 50, 75, 75, 100, 100], 0.1, 100)
    assert found.coefficients == pytest.approx([0] * 7 + [1], abs=1e-9) and found.error < 1e-7


def trajectory(folder, every, steps=200, how=None):
    """Train a parameter along a known path; return it, its EMA and a checkpoint like a run's."""
    how = how or PostHoc(every=every)
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    ema, path = EMA([parameter], how), []
    for k in range(1, steps + 1):
        path.append(torch.tensor([5.0, math.sin(k / 20), math.log(k)], dtype=torch.float64))
        with torch.no_grad():
            parameter.copy_(path[-1])
        ema.update()
        if k % every == 0:
            store(folder / "ema", k, ema, ["model.w"], how.stds, how.dtype)
    record = {"config": {"ema": {"stds": list(how.stds), "every": every}}, "step": steps}
    saved = {
        "state_dict": {"model.w": parameter.detach(), "model.buffer": torch.ones(2)},
        "suffuse": record,
        "training": {"ema": ema.state_dict()},
    }
    checkpoint.write(saved, folder / "last.ckpt")
    return torch.stack(path)


@pytest.mark.parametrize("std", [0.05, 0.07, 0.1, 0.15, 0.2])
def test_reconstruction_is_the_average_that_was_not_tracked(tmp_path, std):
    """On a known trajectory, against the average tracked directly: near to exact with dense snapshots."""
    path = trajectory(tmp_path, every=4)
    before = sorted(p.name for p in tmp_path.iterdir())
    text = reconstruct(tmp_path / "last.ckpt", std)
    wanted = torch.from_numpy(weights_of(std, len(path))) @ path
    saved = checkpoint.read(tmp_path / f"ema-{std:g}.ckpt")
    found = saved["state_dict"]["model.w"]
    assert found.dtype == torch.float64 and (found - wanted).abs().max() < 3e-4
    assert found[0].item() == pytest.approx(5, abs=1e-6)  # what never moved stays
    assert saved["state_dict"]["model.buffer"].tolist() == [1, 1]
    assert saved["suffuse"]["ema"]["std"] == std and f"std {std:g} at step 200" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, f"ema-{std:g}.ckpt"])


def test_snapshots_may_be_half_as_large(tmp_path):
    path = trajectory(tmp_path, 4, how=PostHoc(every=4, dtype="float16"))
    reconstruct(tmp_path / "last.ckpt", 0.15, tmp_path / "out" / "wide.ckpt")
    wanted = torch.from_numpy(weights_of(0.15, len(path))) @ path
    found = checkpoint.read(tmp_path / "out" / "wide.ckpt")["state_dict"]["model.w"]
    assert (found - wanted).abs().max() < 5e-3
    assert torch.load(tmp_path / "ema" / "step-000004.pt", weights_only=True)["tracks"][0][0].dtype == torch.float16


def test_an_earlier_checkpoint_uses_what_was_there(tmp_path):
    """A snapshot between two steps of the checkpoint counts up to it; later ones do not."""
    path = trajectory(tmp_path, every=4, steps=102)
    trajectory(tmp_path / "on", every=4, steps=200)
    (tmp_path / "on" / "last.ckpt").unlink()
    (tmp_path / "last.ckpt").rename(tmp_path / "on" / "last.ckpt")
    reconstruct(tmp_path / "on" / "last.ckpt", 0.08)
    wanted = torch.from_numpy(weights_of(0.08, 102)) @ path
    found = checkpoint.read(tmp_path / "on" / "ema-0.08.ckpt")["state_dict"]["model.w"]
    assert (found - wanted).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("std", "change", "text"),
    [
        (0.3, None, r"std=0.3 must be in \(0, 0.289\)"), (0.0, None, "std=0 must be in"),
        (0.001, None, r"from 11 stored steps its window would be off by .*; from 0.0\d\d to 0.\d\d\d"),
        (0.1, "empty", r"no snapshots in .*ema up to its step; they are written every ema.every=20 steps"),
        (0.1, "constant", "its run kept one average only; train with ema=posthoc"),
        (0.1, "damaged", "step-000020.pt: not a readable snapshot"),
        (0.1, "other", "no snapshots"),
    ],
)  # fmt: skip
def test_a_width_that_cannot_be_had_is_one_line(tmp_path, std, change, text):
    trajectory(tmp_path, every=20, steps=210)
    if change == "empty":
        for file in (tmp_path / "ema").iterdir():
            file.unlink()
    elif change == "damaged":
        (tmp_path / "ema" / "step-000020.pt").write_bytes(b"PK")
    elif change in ("constant", "other"):
        saved = checkpoint.read(tmp_path / "last.ckpt")
        how = {"constant": {"decay": 0.9}, "other": {"stds": [0.02, 0.2], "every": 20}}
        saved["suffuse"]["config"]["ema"] = how[change]
        checkpoint.write(saved, tmp_path / "last.ckpt")
    with pytest.raises(ConfigError if change is None else CheckpointError, match=text) as caught:
        reconstruct(tmp_path / "last.ckpt", std)
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("ema-*"))


def test_several_averages_continue_bit_for_bit():
    def steps(ema, parameter, start, stop):
        for k in range(start, stop):
            with torch.no_grad():
                parameter.copy_(torch.randn(4, generator=torch.Generator().manual_seed(k)))
            ema.update()

    one, other = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    whole, first = EMA([one], PostHoc()), EMA([other], PostHoc())
    steps(whole, one, 0, 9)
    steps(first, other, 0, 4)
    second = EMA([other], PostHoc())
    second.load_state_dict(first.state_dict())
    steps(second, other, 4, 9)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(second.tracks, whole.tracks, strict=True))
    assert not torch.equal(whole.tracks[0][0], whole.tracks[1][0])
    single = EMA([one], PowerDecay(0.05))
    with pytest.raises(ConfigError, match="holds 2 averages and this run tracks 1"):
        single.load_state_dict(whole.state_dict())
    old = {"updates": 3, "averages": [torch.ones(4)]}  # a checkpoint from before there were several
    single.load_state_dict(old)
    assert single.updates == 3 and single.averages[0].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: ConstantDecay(1.0), "decay=1.0"),
        (lambda: PowerDecay(0.0), "std=0.0"),
        (lambda: PowerDecay(0.4), "std=0.4"),
        (lambda: HalfLife(), "give one of steps and samples"),
        (lambda: HalfLife(steps=3, samples=5), "give one of steps and samples"),
        (lambda: HalfLife(steps=0), "ema.steps=0 must be positive"),
        (lambda: HalfLife(steps=9, rampup=-1.0), "ema.rampup=-1.0 must be positive"),
        (lambda: HalfLife(samples=100), "ema.samples=100 needs ema.batch_size"),
        (lambda: PostHoc(stds=[0.1]), "at least two different widths"),
        (lambda: PostHoc(stds=[0.1, 0.1]), "at least two different widths"),
        (lambda: PostHoc(stds=[0.1, 0.5]), "std=0.5"),
        (lambda: PostHoc(every=0), "ema.every=0"),
        (lambda: PostHoc(dtype="int8"), "ema.dtype=int8"),
    ],
)
def test_bad_arguments_are_one_line(build, text):
    with pytest.raises(ConfigError, match=text) as caught:
        build()
    assert "\n" not in str(caught.value)


RUN = [
    "name=run", "ema=posthoc", "ema.every=2", "steps=12", "every.checkpoint=4", "every.preview=0", "every.validate=0",
]  # fmt: skip


def test_a_run_keeps_snapshots_and_any_width_can_be_drawn_from(local, tiny, tmp_path):
    """End to end; a file of another width samples, and differs from the run's own average."""
    assert local("train", *tiny, *RUN).returncode == 0
    run = tmp_path / "outputs" / "image" / "run"
    kept = sorted(p.name for p in (run / "checkpoints" / "ema").iterdir())
    assert kept == [f"step-{k:06d}.pt" for k in range(2, 13, 2)]
    done = local("suffuse", "ema", f"ckpt={run}", "std=0.12")
    assert done.returncode == 0 and "std 0.12 at step 12" in done.stdout, done.stderr
    own, made = (checkpoint.read(run / "checkpoints" / name) for name in ("last.ckpt", "ema-0.12.ckpt"))
    name = next(iter(own["state_dict"]))
    assert not torch.equal(own["state_dict"][name], made["state_dict"][name])
    assert torch.equal(own["current_model_state"][name], made["current_model_state"][name])
    assert "std 0.12" in local("suffuse", "info", str(run / "checkpoints" / "ema-0.12.ckpt")).stdout
    done = local("sample", f"ckpt={run / 'checkpoints' / 'ema-0.12.ckpt'}", "num=2", "sampler.steps=2")
    assert done.returncode == 0, done.stderr
    # The tracked width itself comes back as it is.
    assert local("suffuse", "ema", f"ckpt={run}", "std=0.05", f"out={tmp_path / 'same.ckpt'}").returncode == 0
    same = checkpoint.read(tmp_path / "same.ckpt")["state_dict"]
    assert all(torch.allclose(same[k], v, rtol=1e-5, atol=1e-7) for k, v in own["state_dict"].items())


def test_a_continued_run_has_the_snapshots_of_a_whole_one(local, tiny, tmp_path):
    assert local("train", *tiny, *RUN).returncode == 0
    run, other = (tmp_path / "outputs" / "image" / name for name in ("run", "part"))
    assert local("train", *tiny, *RUN, "name=part").returncode == 0
    # As if it had been killed at step 11, with its last checkpoint at step 8: later snapshots remain, one of them torn.
    for file in ("step-000012.ckpt", "last.ckpt", "ema/step-000012.pt"):
        (other / "checkpoints" / file).unlink()
    checkpoint.link(other / "checkpoints" / "step-000008.ckpt", other / "checkpoints" / "last.ckpt")
    torch.save({}, other / "checkpoints" / "ema" / "step-000011.pt")
    assert local("train", *tiny, *RUN, "name=part", "ckpt=auto").returncode == 0
    files = sorted(p.name for p in (run / "checkpoints" / "ema").iterdir())
    assert files == sorted(p.name for p in (other / "checkpoints" / "ema").iterdir())
    for file in files:
        a, b = (torch.load(one / "checkpoints" / "ema" / file, weights_only=True) for one in (run, other))
        assert a["names"] == b["names"] and a["updates"] == b["updates"]
        for one, two in zip(a["tracks"], b["tracks"], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["std=0.1"], "ema: ckpt is not set; give it as ckpt=RUN_DIR_OR_FILE"),
        (["ckpt=nowhere", "std=0.1"], "ema: ckpt=nowhere: no such run directory or file"),
        (["ckpt=x"], "ema: std is not set; give it as std=0.1"),
        (["ckpt=x", "std=wide"], "ema: std=wide is not a number"),
        (["ckpt=x", "stdd=0.1"], "ema: unknown key 'stdd'; did you mean 'std'?"),
        (["ckpt=x", "0.1"], "ema: unknown key '0.1'; keys: ckpt, out, std"),
    ],
)  # fmt: skip
def test_slips_of_the_command_are_one_line(local, words, text):
    done = local("suffuse", "ema", *words)
    assert done.returncode == 1 and done.stderr.strip().startswith(text) and done.stderr.count("\n") == 1


def test_the_command_explains_itself(local):
    assert "usage: suffuse ema ckpt=" in local("suffuse", "ema", "--help").stdout
    assert local("suffuse", "ema").stdout == local("suffuse", "ema", "-h").stdout
