"""Schedulers of diffusers as schedules, grids and clocks of ours: the same levels, the same numbers for the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from suffuse.errors import ConfigError
from suffuse.pretrained.scheduler import kind_of, parameterization_of, schedule_of
from suffuse.pretrained.solvers import solver
from suffuse.pretrained.spacing import Spacing, grid_of, shift_of
from suffuse.schedule import RectifiedFlow

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra pretrained)")

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TABLES = [
    ("DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1}),
    ("DDIMScheduler", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}),
    ("DDIMScheduler", {"timestep_spacing": "linspace"}),
    ("DDPMScheduler", {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
    ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
    ("DDPMScheduler", {"beta_schedule": "sigmoid"}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True, "timestep_spacing": "leading"}),
    ("EulerDiscreteScheduler", {"use_beta_sigmas": True}),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}),
    ("UniPCMultistepScheduler", {}),
    ("DEISMultistepScheduler", {}),
]  # fmt: skip


def named(pair):
    return f"{pair[0].removesuffix('Scheduler')}-{'-'.join(map(str, pair[1].values())) or 'plain'}"


def levels_of(made):
    """Return sigma/alpha at the nodes that a scheduler visits, and the numbers it hands to the network."""
    if hasattr(made, "sigmas"):
        return made.sigmas.double().numpy(), made.timesteps.double().numpy()
    bar = made.alphas_cumprod.double()[made.timesteps.long()].numpy()
    last = getattr(made, "final_alpha_cumprod", torch.ones(())).double().item()
    with np.errstate(divide="ignore"):
        return np.sqrt((1 - np.append(bar, last)) / np.append(bar, last)), made.timesteps.double().numpy()


def agree(config, made, steps, **more):
    wanted, numbers = levels_of(made)
    schedule = schedule_of(config)
    grid = grid_of(config, schedule, steps, **more)
    alpha, sigma, _ = grid.table(schedule)
    with np.errstate(divide="ignore"):
        found = sigma / alpha
    finite = np.isfinite(wanted)
    assert finite.sum() >= steps and np.array_equal(np.isfinite(found), finite)
    assert np.abs(found[finite] - wanted[finite]).max() < 2e-5 * wanted[finite].max()
    assert (wanted[-1] == 0) == grid.clean
    clock = parameterization_of(config).clock
    told = clock(*(torch.from_numpy(value[:-1]) for value in (alpha, sigma))).numpy()
    # A number that is cut off to a whole one may come out one less or more: there it is rounding that decides.
    bound = 1.01 if clock.whole == "floor" else 2e-3 if (numbers != numbers.round()).any() else 1e-6
    assert np.abs(told - numbers).max() < bound


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("pair", TABLES, ids=named)
def test_tables(pair, steps):
    name, more = pair
    made = getattr(diffusers, name)(**SD | more)
    made.set_timesteps(steps)
    agree({"_class_name": name, **made.config}, made, steps)


FLOWS = [
    ({"shift": 1.0}, False, 0),
    ({"shift": 3.0}, False, 0),
    ({"shift": 3.0}, True, 0),
    ({"use_dynamic_shifting": True}, True, 1000),
    ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, True, 1000),
    ({"use_dynamic_shifting": True, "base_shift": 0.3, "max_shift": 2.0, "max_image_seq_len": 2000}, False, 777),
    ({"shift": 3.0, "shift_terminal": 0.1}, True, 0),
]  # fmt: skip


@pytest.mark.parametrize("steps", [4, 28])
@pytest.mark.parametrize(("more", "even", "tokens"), FLOWS, ids=str)
def test_flow(more, even, tokens, steps):
    made = diffusers.FlowMatchEulerDiscreteScheduler(**more)
    mu = {}
    if more.get("use_dynamic_shifting"):
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        c = made.config
        mu = {"mu": calculate_shift(tokens, c.base_image_seq_len, c.max_image_seq_len, c.base_shift, c.max_shift)}
    made.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps) if even else None, **mu)
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", **made.config}
    schedule = schedule_of(config)
    grid = grid_of(config, schedule, steps, tokens, even)
    _, sigma, _ = grid.table(schedule)
    assert np.abs(sigma - made.sigmas.double().numpy()).max() < 1e-6
    told = parameterization_of(config).clock(*schedule(torch.from_numpy(grid.t[:-1])))
    assert np.abs(told.numpy() - made.timesteps.double().numpy()).max() < 1e-3


@pytest.mark.parametrize(
    "pair",
    [
        ("EDMEulerScheduler", {}),
        ("EDMDPMSolverMultistepScheduler", {"sigma_schedule": "exponential", "sigma_data": 1.0}),
        ("EDMDPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    ],
    ids=named,
)
def test_edm(pair):
    name, more = pair
    made = getattr(diffusers, name)(**more)
    made.set_timesteps(10)
    agree({"_class_name": name, **made.config}, made, 10)


def test_stable_audio():
    """Its scheduler needs a library for its noise, so its levels and numbers are written out here."""
    config = {"_class_name": "CosineDPMSolverMultistepScheduler"}
    schedule = schedule_of(config)
    grid = grid_of(config, schedule, 10)
    alpha, sigma, _ = grid.table(schedule)
    levels = np.exp(np.linspace(np.log(500), np.log(0.3), 10))
    assert np.abs(sigma[:-1] / alpha[:-1] / levels - 1).max() < 1e-9 and sigma[-1] == 0
    what = parameterization_of(config)
    told = what.clock(torch.from_numpy(alpha[:-1]), torch.from_numpy(sigma[:-1])).numpy()
    assert np.abs(told - np.arctan(levels) * 2 / np.pi).max() < 1e-9
    assert what.edm and what.sigma_data == 1.0 and what.predicts == "v_prediction"


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_an_edm_networks_answer_means_what_it_means_there(predicts, spread):
    made = diffusers.EDMDPMSolverMultistepScheduler(sigma_data=spread, prediction_type=predicts)
    config = {"_class_name": "EDMDPMSolverMultistepScheduler", **made.config}
    sigma = torch.tensor(1.7, dtype=torch.float64)
    x, answer = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    alpha, s = schedule_of(config)(schedule_of(config).time(-sigma.log()))
    affine = parameterization_of(config).affine(alpha, s)
    assert torch.allclose(affine.inp * (x * alpha), made.precondition_inputs(x, sigma))
    assert torch.allclose(affine.skip * (x * alpha) + affine.out * answer, made.precondition_outputs(x, answer, sigma))


def test_the_dynamic_shift_is_that_of_the_paper():
    config = {"use_dynamic_shifting": True}
    assert shift_of(config, 256) == pytest.approx(np.exp(0.5)) and shift_of(config, 4096) == pytest.approx(np.exp(1.15))


def test_the_shift_is_that_of_the_size_that_is_drawn(folder):
    where = str(folder("flux"))
    grids = [
        Spacing(where, *how)(RectifiedFlow(), 4).t
        for how in ((), (32, 48), (None, None, (4, 16, 24)), (None, 48, (4, 16, 99)))
    ]
    assert np.array_equal(grids[1], grids[2]) and np.array_equal(grids[1], grids[3])
    assert (grids[0][1:-1] > grids[1][1:-1]).all()  # 4,096 tokens take more noise than 96


def test_what_is_unknown_is_named():
    with pytest.raises(ConfigError, match=r"EulerDiscreetScheduler is none that we know; did you mean 'EulerDiscrete"):
        kind_of({"_class_name": "EulerDiscreetScheduler"})
    with pytest.raises(ConfigError, match=r"sampler\.steps=2000 is more than the 1000 steps"):
        config = {"_class_name": "DDIMScheduler"}
        grid_of(config, schedule_of(config), 2000)
    with pytest.raises(ConfigError, match="beta_schedule=odd"):
        schedule_of({"_class_name": "DDIMScheduler", "beta_schedule": "odd"})


def test_solvers_are_options_of_ours():
    from suffuse.overrides import groups
    from suffuse.plugins import CONF
    from suffuse.pretrained.solvers import EDM, FLOW, TABLE

    options = groups([CONF])["sampler"]
    for words in [*TABLE.values(), *FLOW.values(), *EDM.values()]:
        assert words[0].removeprefix("sampler=") in options
    more = {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}
    sde = solver({"_class_name": "DPMSolverMultistepScheduler", **more})
    assert sde == ["sampler=dpmpp", "sampler.order=2", "sampler.form=exact", "sampler.start=plain", "sampler.eta=1.0"]
