"""The conformance kit: what every modality package, and every sampler, must pass.

A package's own tests subclass `ModalityContract` and name the modality, or `SamplerContract` and say how the sampler is
made; pytest then runs every check below on it. A check that needs more has an attribute or a method to override. The
numbers behind the sampler's checks are those of `suffuse.verify`.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from suffuse.data import Data

__all__ = ["ModalityContract", "SamplerContract"]


class ModalityContract:
    """Conformance tests of one modality.

    Attributes:
        modality: What users write after ``modality=``.
        overrides: Further overrides of ``train`` that keep the checks small, for example ``["model.width=16"]``.
        training_steps: Steps after which the loss on a fixed batch must be lower.
    """

    modality: str
    overrides: tuple[str, ...] = ()
    training_steps: int = 30

    def bad_input(self, folder: Path) -> list[tuple[list[str], str]]:
        """Return (overrides, text) pairs: with those overrides the data must refuse with an error that has the text.

        Arguments:
            folder: An empty directory in which the bad files (truncated, empty, NaN) can be made.
        """
        return []

    @pytest.fixture
    def cfg(self) -> dict[str, Any]:
        """The composed config of ``train modality=<modality>`` as plain values."""
        return copy.deepcopy(self._once("cfg", self.compose))

    def compose(self, *overrides: str) -> dict[str, Any]:
        """Return the config with further overrides as plain values."""
        from omegaconf import OmegaConf

        from suffuse.app import compose_train

        composed = compose_train([f"modality={self.modality}", *self.overrides, "name=contract", *overrides])
        plain = OmegaConf.to_container(composed, resolve=True)
        assert isinstance(plain, dict)
        return {str(key): value for key, value in plain.items()}

    @pytest.fixture
    def data(self, cfg: dict[str, Any]) -> Data:
        """The data of the default config, set up; one for all checks of a class."""
        found: Data = self._once("data", lambda: self.make_data(cfg))
        return found

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` returned the first time it was called for this class."""
        made = type(self).__dict__.get("_made")
        if made is None:
            made = {}
            type(self)._made = made  # type: ignore[attr-defined]
        if name not in made:
            made[name] = make()
        return made[name]

    def make_data(self, cfg: Mapping[str, Any], **options: Any) -> Data:
        """Build and set up the data of a config."""
        from suffuse.build import build

        data: Data = build(cfg["data"], "data", **({"seed": 0} | options))
        data.setup()
        data.check()
        return data

    def batch(self, data: Data) -> dict[str, Any]:
        """Return the first training batch."""
        found: dict[str, Any] = next(iter(data.train_loader()))
        return found

    # Registration.

    def test_is_registered(self) -> None:
        """The plugin loads without a fault."""
        from suffuse.plugins import registry

        assert self.modality in registry().providers, [str(failure) for failure in registry().failures]

    def test_discovery_does_not_import_torch(self) -> None:
        """Commands answer at once only if hook modules stay light."""
        code = "import sys, suffuse.plugins as p; p.registry(); sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_config_composes(self, cfg: dict[str, Any]) -> None:
        """The config names its own modality."""
        assert cfg["modality"]["name"] == self.modality

    def test_targets_instantiate(self, cfg: dict[str, Any], data: Data) -> None:
        """Codec, preview and metrics can be built and keep their protocols."""
        from suffuse.build import build
        from suffuse.codec import Codec
        from suffuse.preview import Preview

        assert isinstance(self.codec(cfg, data), Codec)
        assert isinstance(build(cfg["preview"], "preview", about=data.spec.about), Preview)
        if cfg["metrics"]:
            assert callable(build(cfg["metrics"], "metrics", seed=0))

    # Data.

    def test_items_are_documented(self, data: Data) -> None:
        """An item is x, cond and index; labels are in range; scalars are floats."""
        import torch

        for split in (data.train, data.val):
            item = split[(0, 0) if getattr(split, "epochs", False) else 0]
            assert set(item) >= {"x", "cond", "index"} and int(item["index"]) == 0
            if data.spec.labels:
                assert -1 <= int(item["cond"]["label"]) < len(data.spec.labels)
            for name in data.spec.scalars:
                assert isinstance(float(item["cond"][name]), float)
            assert all(torch.isfinite(leaf.float()).all() for leaf in _leaves(item["x"]))

    def test_workers_change_nothing(self, cfg: dict[str, Any]) -> None:
        """Two worker processes yield what none yields."""
        alone = iter(self.make_data(cfg, workers=0).train_loader())
        helped = iter(self.make_data(cfg, workers=2).train_loader())
        for _ in range(3):
            assert _equal(next(alone), next(helped))

    def test_data_is_deterministic(self, cfg: dict[str, Any], data: Data) -> None:
        """The same seed yields the same batches, another seed another order."""
        assert _equal(self.batch(data), self.batch(self.make_data(cfg)))
        assert not _equal(self.batch(data)["index"], self.batch(self.make_data(cfg, seed=1))["index"])

    def test_stream_continues(self, data: Data) -> None:
        """A loader that starts at micro-batch 2 yields what a first one yields third."""
        stream = iter(data.train_loader())
        third = [next(stream) for _ in range(3)][2]
        assert _equal(third, next(iter(data.train_loader(start=2))))

    def test_data_pickles(self, data: Data) -> None:
        """Worker processes and other ranks may need a copy."""
        again = pickle.loads(pickle.dumps(data))
        assert _equal(self.batch(data), self.batch(again))

    def test_bad_input_is_one_clear_error(self, tmp_path: Path) -> None:
        """What `bad_input` describes is refused with the documented text."""
        from suffuse.errors import SuffuseError

        for overrides, text in self.bad_input(tmp_path):
            with pytest.raises(SuffuseError, match=text) as caught:
                self.make_data(self.compose(*overrides))
            assert "\n" not in str(caught.value)

    # Codec.

    def test_codec_round_trip(self, cfg: dict[str, Any], data: Data) -> None:
        """decode(encode(x)) is x within the codec's tolerance, for whole and for small batches."""

        codec = self.codec(cfg, data)
        x = self.batch(data)["x"]
        for rows in (1, 3, len(_leaves(x)[0])):
            part = _map(lambda leaf: leaf[:rows], x)  # noqa: B023
            for found, wanted in zip(_leaves(codec.decode(codec.encode(part))), _leaves(part), strict=True):
                assert (found.double() - wanted.double()).abs().max() <= codec.tolerance

    def test_nan_is_refused(self, cfg: dict[str, Any]) -> None:
        """Data with NaN values is refused before training starts."""
        from suffuse.errors import ConfigError
        from suffuse.model import Facts

        data = self.make_data(cfg)
        data.train = _Poisoned(data.train)  # type: ignore[assignment]
        with pytest.raises(ConfigError, match="NaN"):
            Facts.measure(data, self.codec(cfg, data), limit=2, process=cfg["process"])

    # Training and sampling.

    def test_training_lowers_the_loss(self, cfg: dict[str, Any], data: Data) -> None:
        """A few steps on one batch lower its loss; noise and times are fixed."""
        import torch

        from suffuse.noise import KeyedNoise

        torch.manual_seed(0)
        model, codec = self.model(cfg, data), self.codec(cfg, data)
        batch = self.batch(data)
        x0, rows = codec.encode(batch["x"]), len(batch["index"])
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(self.training_steps):
            cond = model.conditioner(batch["cond"])
            loss = model.objective(model.denoiser, x0, cond, KeyedNoise(torch.arange(rows)), 0).total
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.95 * losses[0]

    def test_sampling(self, cfg: dict[str, Any], data: Data, tmp_path: Path) -> None:
        """Samples have the data's shape, repeat for their seeds, and can be written and shown."""
        import torch

        from suffuse.build import build
        from suffuse.codec import empty
        from suffuse.model import Recipe

        model, codec = self.model(cfg, data), self.codec(cfg, data)
        preview = build(cfg["preview"], "preview", about=data.spec.about)
        cfg = copy.deepcopy(cfg)
        cfg["sampler"]["steps"] = 3
        recipe, raw = Recipe.build(cfg), model.conditioner.parse({}, 4)
        like = empty(codec, model.facts, torch.arange(4), raw, "cpu")
        xs = codec.decode(model.draw(recipe, torch.arange(4), raw, like))
        again = codec.decode(model.draw(recipe, torch.arange(4), raw, like))
        assert _equal(xs, again)
        for found, wanted in zip(_leaves(xs), _leaves(self.batch(data)["x"]), strict=True):
            same = found.ndim == wanted.ndim if hasattr(codec, "like") else found.shape[1:] == wanted.shape[1:]
            assert same and torch.isfinite(found).all()
        captions = model.conditioner.captions(raw)
        assert len(captions) == 4
        path = preview.save(_map(lambda leaf: leaf[0], xs), tmp_path / "00000")
        assert path.is_file() and path.stem == "00000" and path.stat().st_size > 0
        overview = preview.overview(xs, captions, tmp_path / "overview.png")
        assert overview.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        media = preview.media(xs, captions)
        shown = [item for kind in media.values() for item in kind] if isinstance(media, Mapping) else media
        assert shown and all(type(item).__module__.startswith("wandb.") for item in shown)

    def model(self, cfg: dict[str, Any], data: Data) -> Any:
        """Return an untrained model for the data."""
        from suffuse.model import Facts, Model

        return Model(cfg, Facts.measure(data, self.codec(cfg, data), limit=64, process=cfg["process"]))

    def codec(self, cfg: dict[str, Any], data: Data) -> Any:
        """Return the codec for the data."""
        from suffuse.model import fit_codec

        return fit_codec(cfg["codec"], data)


class _Poisoned:
    """A data set whose first item holds a NaN."""

    def __init__(self, whole: Any) -> None:
        self.whole = whole
        self.epochs = getattr(whole, "epochs", False)

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        item = dict(self.whole[index])
        item["x"] = _map(lambda leaf: leaf.float() * float("nan"), item["x"])
        return item


def _leaves(x: Any) -> list[torch.Tensor]:
    return [leaf for field in x.values() for leaf in _leaves(field)] if isinstance(x, Mapping) else [x]


def _map(function: Any, x: Any) -> Any:
    return {name: _map(function, field) for name, field in x.items()} if isinstance(x, Mapping) else function(x)


def _equal(a: Any, b: Any) -> bool:
    import torch

    return all(torch.equal(x, y) for x, y in zip(_leaves(a), _leaves(b), strict=True))


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
