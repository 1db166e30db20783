"""What every sampler must pass; the numbers behind the checks are those of `suffuse.verify`."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["SamplerContract"]


class SamplerContract:
    """Conformance tests of one sampler.

    Attributes:
        order: Order of the error on the probability-flow ODE, or None for a sampler that draws noise or is not meant to
            follow the ODE.
        weak: Order of the variance on a Gaussian target, or None.
        tokens: Takes grids with a time per token.
        adaptive: Chooses its own steps and asks the device whether it is done.
    """

    order: float | None = None
    weak: float | None = None
    tokens: bool = True
    adaptive: bool = False

    def make(self, steps: int) -> Any:
        """Return the sampler with so many steps."""
        raise AssertionError(f"{type(self).__name__} does not define make(steps)")

    def test_order(self) -> None:
        """Halving the steps divides the error by 2 to the order."""
        from suffuse import verify

        if self.order is None:
            pytest.skip("does not follow the ODE")
        counts = (32, 64, 128)
        values = verify.errors(self.make, counts)
        assert verify.slope(counts, values) >= self.order - 0.25, values

    def test_weak_order(self) -> None:
        """Mean and variance on a Gaussian are right, and the variance converges at its order."""
        from suffuse import verify

        if self.weak is None:
            pytest.skip("draws no noise")
        counts, values = (32, 64, 128), []
        for n in counts:
            mean, variance = verify.moments(self.make(n), n)
            assert mean == pytest.approx(0.7, abs=1e-9)
            values.append(abs(variance / (0.3 + verify.LOW**2) - 1))
        assert verify.slope(counts, values) >= self.weak - 0.25, values

    def test_same_levels_on_every_schedule(self) -> None:
        """Only the log-SNR of the nodes matters: a deterministic sampler draws the same on every schedule."""
        import numpy as np
        import torch

        from suffuse import verify
        from suffuse.grid import Grid
        from suffuse.schedule import VE, RectifiedFlow, VPCosine, VPLinear

        if self.order is None:
            pytest.skip("draws noise")
        unit, ends = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)), []
        for schedule in (VPLinear(), VPCosine(), VE(0.001, 100.0), RectifiedFlow()):
            t = schedule.time(torch.from_numpy(np.linspace(-3, 4, 9))).numpy()
            alpha, sigma = schedule(torch.from_numpy(t))
            found = verify.draw(self.make(8), schedule, Grid(t, clean=False), unit * sigma[0])
            ends.append(found / alpha[-1])
        for end in ends[1:]:
            assert (end - ends[0]).abs().max() < (1e-5 if self.adaptive else 1e-8)

    def test_ends_are_finite(self) -> None:
        """From pure noise to a clean end, in one step or eight, in float32."""
        import torch

        from suffuse import verify
        from suffuse.grid import Karras, Trailing
        from suffuse.schedule import EDM, RectifiedFlow, VPCosine

        for schedule, grid in ((EDM(), Karras()), (VPCosine(), Trailing()), (RectifiedFlow(), Trailing())):
            for n in (1, 2, 8):
                start = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
                nodes = grid(schedule, n)
                found = verify.draw(self.make(n), schedule, nodes, start * float(schedule(float(nodes.t[0])).sigma))
                assert torch.isfinite(found).all(), (schedule, n)

    def test_a_sample_depends_on_its_seed_alone(self) -> None:
        """A row's result is bit for bit the same in batches of other sizes."""
        import torch

        from suffuse.denoiser import Exact
        from suffuse.grid import Karras
        from suffuse.noise import KeyedNoise
        from suffuse.process import Gaussian
        from suffuse.sampler import sample
        from suffuse.schedule import EDM

        process = Gaussian(EDM())
        # Elementwise, so that no matrix product sums in another order at another size.
        denoiser = Exact(process, lambda x, alpha, sigma: x / (1 + sigma**2) + 0.1)
        seeds, grid = torch.arange(50, 82), Karras()(EDM(), 6)
        whole = sample(denoiser, process, self.make(6), grid, KeyedNoise(seeds), torch.empty(32, 5))
        for rows in (slice(7, 8), slice(3, 10)):
            like = torch.empty(len(seeds[rows]), 5)
            part = sample(denoiser, process, self.make(6), grid, KeyedNoise(seeds[rows]), like)
            assert torch.equal(part, whole[rows])  # type: ignore[index,arg-type]

    def test_equal_tokens_are_one_time(self) -> None:
        """A grid whose tokens share their times is the grid of one time; resting tokens do not change."""
        import numpy as np
        import torch

        from suffuse.denoiser import Exact
        from suffuse.grid import Grid, Trailing
        from suffuse.noise import KeyedNoise
        from suffuse.process import Gaussian
        from suffuse.sampler import sample
        from suffuse.schedule import RectifiedFlow
        from suffuse.state import Dense

        if not self.tokens:
            pytest.skip("takes one time only")
        process = Gaussian(RectifiedFlow(), Dense((1,)))
        denoiser = Exact(process, lambda x, alpha, sigma: alpha * x / (alpha**2 + sigma**2))
        like, noise = torch.empty(3, 4, 2, dtype=torch.float64), KeyedNoise(torch.arange(3))
        grid = Trailing()(RectifiedFlow(), 6)
        table = np.repeat(grid.t[:, None], 4, 1)
        one, many = (sample(denoiser, process, self.make(6), g, noise, like) for g in (grid, Grid(table, grid.clean)))
        assert (one - many).abs().max() < 1e-9  # type: ignore[operator,union-attr]
        x = torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        table[:, 1] = 0.4
        found = sample(denoiser, process, self.make(6), Grid(table, grid.clean), noise, x, x=x)
        assert torch.equal(found[:, 1], x[:, 1])  # type: ignore[index,arg-type,call-overload]

    def test_the_loop_reads_nothing_back(self) -> None:
        """Nothing in the loop makes the host wait for the device."""
        import torch

        from suffuse import verify
        from suffuse.grid import Karras
        from suffuse.schedule import EDM

        if self.adaptive:
            pytest.skip("asks whether it is done")
        x, grid = torch.randn(3, 2), Karras()(EDM(), 6)
        first = verify.draw(self.make(6), EDM(), grid, x)  # works out the plan, on the host
        with verify.NoSync():  # type: ignore[no-untyped-call]
            assert torch.equal(first, verify.draw(self.make(6), EDM(), grid, x))

    def test_a_step_compiles_whole(self) -> None:
        """One row of the plan traces into one graph."""
        import torch

        from suffuse.denoiser import Exact
        from suffuse.grid import Karras
        from suffuse.process import Gaussian
        from suffuse.sampler.engine import _Carry
        from suffuse.schedule import EDM

        if self.adaptive:
            pytest.skip("is driven by the host")
        process, sampler = Gaussian(EDM()), self.make(6)
        denoiser = Exact(process, lambda x, alpha, sigma: x * 0.5)
        plan = sampler.plan(Karras()(EDM(), 6), process)
        row = plan.rows[-1]
        x, eps = torch.randn(2, 3), [torch.randn(2, 3) for _ in next(iter([row.draws]))]

        def step(x: torch.Tensor, eps: list[torch.Tensor]) -> torch.Tensor:
            stored = tuple(x for _ in range(getattr(row.step, "depth", 0)))
            moved: torch.Tensor = sampler.step(row, _Carry(x, x, stored, x), denoiser, process, None, eps).x
            return moved

        torch.compiler.reset()  # what other samplers compiled would count as recompilations
        compiled = torch.compile(step, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(x, eps), step(x, eps))
