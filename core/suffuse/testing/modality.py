"""What every modality package must pass."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from suffuse.data import Data

__all__ = ["ModalityContract"]


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

    def test_options_name_what_exists(self) -> None:
        """Every target in the package's YAML can be imported and takes the keys beside it."""
        from omegaconf import OmegaConf

        from suffuse.plugins import registry

        conf = registry().providers[self.modality].modality.conf
        for path in sorted(conf.rglob("*.yaml")):
            for node in _targets(OmegaConf.to_container(OmegaConf.load(path), resolve=False)):
                assert not (wrong := _misfits(node)), f"{path}: {wrong}"

    def test_asks_are_arguments_of_the_codec(self, cfg: dict[str, Any]) -> None:
        """What `sample` may be asked beside conditions is an argument of the codec."""
        for name in cfg["modality"].get("asks") or {}:
            assert not (wrong := _misfits({"_target_": cfg["codec"]["_target_"], name: None})), wrong

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
        """Samples have the data's shape, repeat for their seeds, and are written with their manifest and shown."""
        import torch

        from suffuse.build import build
        from suffuse.codec import empty
        from suffuse.model import Recipe
        from suffuse.sampling import Sampling, write_samples

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
        rows = Sampling(model, codec, recipe, seed=0).rows(torch.arange(4), raw, {"checkpoint": "last.ckpt"})
        write_samples(tmp_path / "written", xs, rows, preview)
        lines = (tmp_path / "written" / "manifest.jsonl").read_text().splitlines()
        assert all((tmp_path / "written" / json.loads(line)["file"]).stat().st_size > 0 for line in lines)
        assert len(lines) == 4 and (tmp_path / "written" / "overview.png").is_file()

    def model(self, cfg: dict[str, Any], data: Data) -> Any:
        """Return an untrained model for the data."""
        from suffuse.model import Facts, Model

        codec = self.codec(cfg, data)
        facts = self._once("facts", lambda: Facts.measure(data, codec, limit=64, process=cfg["process"]))
        return Model(cfg, facts)

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


def _targets(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping with a ``_target_`` in a config file."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield dict(node)
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def _misfits(node: Mapping[str, Any]) -> str:
    """Return which keys of a config node its target does not take, or why there is no such target; nothing if fine."""
    from hydra.utils import get_object

    try:
        parameters = inspect.signature(get_object(node["_target_"])).parameters
    except (ImportError, AttributeError, ValueError) as error:
        return f"{node['_target_']}: {error}"
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return ""
    unknown = [key for key in node if key[0] != "_" and key not in parameters]
    return f"{node['_target_']} takes no {', '.join(unknown)}" if unknown else ""


def _leaves(x: Any) -> list[torch.Tensor]:
    return [leaf for field in x.values() for leaf in _leaves(field)] if isinstance(x, Mapping) else [x]


def _map(function: Any, x: Any) -> Any:
    return {name: _map(function, field) for name, field in x.items()} if isinstance(x, Mapping) else function(x)


def _equal(a: Any, b: Any) -> bool:
    import torch

    return all(torch.equal(x, y) for x, y in zip(_leaves(a), _leaves(b), strict=True))
