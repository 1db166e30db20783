"""Model: the trained whole, a denoiser and the conditioner that feeds it, built from a config and the data's facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.build import build
from suffuse.categorical import Categorical
from suffuse.checkpoint import is_autoencoder, read
from suffuse.conditioner import Conditioner
from suffuse.data import Data
from suffuse.denoiser import Denoiser, Preconditioned
from suffuse.edit import Edit, Path
from suffuse.errors import CheckpointError, ConfigError
from suffuse.finding import find_checkpoint
from suffuse.guidance import CFG, Guidance, Setting, Weaker
from suffuse.mismatch import difference
from suffuse.noise import KeyedNoise
from suffuse.objective import Loss, Objective
from suffuse.observation import Inpaint, sdedit
from suffuse.process import Process, bound, reference
from suffuse.rollout import Window, rolled
from suffuse.sampler import sample
from suffuse.self_condition import SelfConditioned
from suffuse.state import Dense, State, leaves, map_state
from suffuse.trust import check

__all__ = ["AutoGuidance", "Facts", "Model", "Recipe", "build_process", "fit_codec"]

Shape = tuple[int, ...] | Mapping[str, "Shape"]


@dataclass(frozen=True)
class Facts:
    """What the data decides about a model.

    Arguments:
        shape: Shape of one state without the batch dimension; a mapping of shapes for named fields.
        labels: Names of the classes.
        scalars: Names of the float conditions.
        sigma_data: Standard deviation of the state, per field for named fields; 1 for tokens and frozen fields.
        about: The data's own facts, see `suffuse.data.Spec`.
        moments: Mean and standard deviation of every float condition.
    """

    shape: Any
    labels: tuple[str, ...]
    scalars: tuple[str, ...]
    sigma_data: Any
    about: Mapping[str, Any] = field(default_factory=dict)
    moments: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def measure(cls, data: Data, codec: Any, limit: int = 1024, process: Any = None) -> Facts:
        """Read the facts off `limit` training items, evenly spaced.

        Arguments:
            data: Set up.
            codec: Encodes a batch.
            limit: Most items that are looked at.
            process: Config of the process, whose spaces say which entries count; None for all.
        """
        items = data.sample(limit)
        with torch.no_grad():
            state = codec.encode(torch.utils.data.default_collate([item["x"] for item in items]))
        if any(not torch.isfinite(leaf).all() for leaf in leaves(state)):
            raise ConfigError("data: NaN or infinite values in the training items; clean the data")
        shape = map_state(lambda leaf: torch.tensor(leaf.shape[1:]), state)
        about = dict(data.spec.about)
        named = isinstance(process, Mapping) and "_target_" not in process
        if process is not None and (named or isinstance(state, Mapping)):
            fields = build_process(process, about)
            _check_names(fields, state)
            spread = map_state(_spread, state, bound(fields, state))
        else:
            spread = map_state(_spread, state, None)
        scalars = {name: torch.tensor([float(item["cond"][name]) for item in items]) for name in data.spec.scalars}
        return cls(
            _plain(shape, lambda t: tuple(t.tolist())),
            tuple(data.spec.labels),
            tuple(data.spec.scalars),
            _plain(spread, lambda t: round(t.item(), 4)),
            about,
            {name: _moments(value) for name, value in scalars.items()},
        )

    def record(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def restore(cls, record: Mapping[str, Any]) -> Facts:
        """Return the facts of `record`."""
        more = {name: record[name] for name in ("about", "moments") if name in record}
        return cls(record["shape"], tuple(record["labels"]), tuple(record["scalars"]), record["sigma_data"], **more)

    def like(self, batch: int, device: torch.device | str = "cpu") -> State:
        """Return an empty float32 state of `batch` rows."""
        return _like(self.shape, batch, device)


def fit_codec(cfg: Mapping[str, Any], data: Data, limit: int = 512) -> Any:
    """Return the codec of a config for the data.

    A codec with a method ``measure(x)`` is shown a batch of training items first. The plain values that it returns
    become ``about["codec"]`` of the data, so it finds them when it is built: here, and from a checkpoint.
    """
    codec = build(cfg, "codec", about=data.spec.about)
    if getattr(codec, "measure", None) is not None:
        few = min(limit, getattr(codec, "measured", limit))
        batch = torch.utils.data.default_collate([item["x"] for item in data.sample(few)])
        with torch.no_grad():
            about = {**data.spec.about, "codec": codec.measure(batch)}
        data.spec = replace(data.spec, about=about)
        codec = build(cfg, "codec", about=about)
    return codec


def build_process(cfg: Mapping[str, Any], about: Mapping[str, Any]) -> Any:
    """Return the process of a config, or one per field; ``classes: null`` becomes what the data says."""
    classes = about.get("classes") or {}
    if "_target_" in cfg:
        return build(cfg, "process")

    def one(name: str, node: Any) -> Any:
        missing = isinstance(node, Mapping) and "classes" in node and node["classes"] is None
        return build({**node, "classes": classes.get(name)} if missing else node, f"process.{name}")

    return {name: one(name, node) for name, node in cfg.items() if node is not None}


def _check_names(process: Any, state: State) -> None:
    """Refuse a state whose fields are not those of the process."""
    wanted, found = (sorted(tree) if isinstance(tree, Mapping) else "one tensor" for tree in (process, state))
    if wanted != found:
        raise ConfigError(
            f"process: it is of {wanted}, but the codec's states are {found}; choose a process, or data, that fits"
        )


def _spread(leaf: Tensor, process: Any) -> Tensor:
    """Return the standard deviation of a field over what exists in it."""
    if process is not None and (isinstance(process, Categorical) or not process.noised):
        return torch.ones(())
    if process is None or type(process.space) is Dense:
        return leaf.double().std().clamp(min=1e-3)
    mean, square = process.space.mean(leaf.double()).mean(), process.space.mean(leaf.double() ** 2).mean()
    spread: Tensor = (square - mean**2).sqrt().clamp(min=1e-3)
    return spread


def _moments(value: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation of what is there of a condition."""
    there = value[~value.isnan()].double()
    if len(there) < 2:
        return 0.0, 1.0
    return round(there.mean().item(), 6), round(max(there.std().item(), 1e-6), 6)


def _plain(state: Any, convert: Any) -> Any:
    if isinstance(state, Mapping):
        return {name: _plain(field, convert) for name, field in state.items()}
    return convert(state)


def _like(shape: Any, batch: int, device: torch.device | str) -> State:
    if isinstance(shape, Mapping):
        return {name: _like(field, batch, device) for name, field in shape.items()}
    return torch.empty(batch, *shape, device=device)


@dataclass(frozen=True)
class Recipe:
    """How samples are drawn: the solver, where it steps, and how hard the condition pulls."""

    sampler: Any
    grid: Any
    guidance: Guidance = field(default_factory=CFG)

    @property
    def scale(self) -> float:
        """How hard the condition pulls; 1 is no guidance."""
        return self.guidance.scale

    @classmethod
    def build(cls, cfg: Mapping[str, Any], facts: Facts | None = None) -> Recipe:
        """Build from the groups ``sampler``, ``grid`` and ``guidance`` of a config; a grid may ask for the shape."""
        node = dict(cfg.get("guidance") or {})
        # Checkpoints of the first format hold a scale and an interval alone.
        node = node if "_target_" in node else {"_target_": "suffuse.guidance.CFG", **node}
        known = {} if facts is None else {"shape": facts.shape}
        return cls(build(cfg["sampler"], "sampler"), build(cfg["grid"], "grid", **known), build(node, "guidance"))


class Model(nn.Module):
    """A denoiser and its conditioner.

    Arguments:
        cfg: Config with the groups ``model``, ``conditioner``, ``process`` and ``objective``.
        facts: Facts of the data.
    """

    def __init__(self, cfg: Mapping[str, Any], facts: Facts) -> None:
        super().__init__()
        self.facts = facts
        self.objective: Objective = build(_fill(cfg["objective"], facts), "objective")
        self.uncertainty = self.objective.uncertainty  # its weights are trained, saved and resumed with the model
        self.process: Process | Mapping[str, Process] = build_process(cfg["process"], facts.about)
        self.conditioner: Conditioner = build(
            cfg["conditioner"], "conditioner", labels=list(facts.labels), scalars=list(facts.scalars),
            moments=facts.moments, about=facts.about,
        )  # fmt: skip
        network = build(
            cfg["model"], "model", shape=facts.shape, cond_dim=self.conditioner.width,
            context_dim=self.conditioner.context, about=facts.about,
            **({"extra": self.conditioner.extra} if self.conditioner.extra else {}),
        )  # fmt: skip
        if self.conditioner.extra != getattr(network, "extra", 0):
            kind = cfg["model"]["_target_"]
            raise ConfigError(f"model={kind} takes no picture beside the state; take a UNet or a DiT")
        self.denoiser = Preconditioned(network, self.process, self.objective.parameterization)

    @classmethod
    def load(cls, saved: Mapping[str, Any], weights: str = "ema") -> Model:
        """Build the model of a checkpoint with its averaged (``ema``) or its last (``raw``) weights."""
        record = saved["suffuse"]
        check(record["config"], "the checkpoint")
        if is_autoencoder(saved):
            raise CheckpointError("an autoencoder draws nothing; train with codec=latent codec.ckpt=RUN")
        model = cls(record["config"], Facts.restore(record["facts"]))
        if weights not in ("ema", "raw"):
            raise ConfigError(f"weights={weights} is neither 'ema' nor 'raw'")
        if saved["state_dict"] is None:  # a published model, whose network read its weights itself
            return model.eval()
        state = saved["state_dict"] if weights == "ema" else saved.get("current_model_state", saved["state_dict"])
        found = {key.removeprefix("model."): value for key, value in state.items()}
        if apart := difference(found, model.state_dict()):
            raise CheckpointError(f"the weights do not fit the checkpoint's own config: {apart}")
        model.load_state_dict(found)
        return model.eval()

    def prepare(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return conditions with captions read, on the device they came from."""
        return self.conditioner.prepare(raw)

    def loss(
        self, x0: State, raw: Mapping[str, Tensor], noise: KeyedNoise, step: int, positions: Tensor, total: int
    ) -> Loss:
        """Return the loss of a batch; in training a share of the conditions is dropped.

        Arguments:
            x0: Clean states, shape (B, ...).
            raw: Their conditions.
            noise: One stream per row; everything random comes from it.
            step: Micro-batch.
            positions: Places of the rows in the global batch, shape (B,).
            total: Rows of the global batch.
        """
        conditioner = self.conditioner
        if self.training:
            dropped = conditioner.dropped(noise, step, torch.empty(len(positions), device=positions.device))
            raw = conditioner.augment(conditioner.drop(raw, dropped), noise, step)
        return self.objective(self.denoiser, x0, conditioner(raw), noise, step, positions, total)

    def draw(
        self, recipe: Recipe, seeds: Tensor, raw: Mapping[str, Tensor], like: State | None = None,
        edit: Edit | None = None, path: Path | None = None, window: Window | None = None,
    ) -> State:  # fmt: skip
        """Return one sample per seed, shape (B, ...), for the conditions `raw` of B rows each.

        Arguments:
            recipe: Sampler, grid and guidance.
            seeds: Shape (B,), int64; a sample's noise depends on its seed alone.
            raw: Conditions as `Conditioner.parse` returns them.
            like: Shapes and given fields, see `suffuse.codec.empty`; by default those of the training data.
            edit: What is known of the samples.
            path: Where the samples stand between two ends.
            window: How samples of another length than the training data's are drawn, by a model whose tokens may
                differ in noise.
        """
        with torch.inference_mode():
            if edit is not None and isinstance(edit.known, Mapping):
                # Its frozen fields, such as a mask, are those of every sample.
                like = map_state(lambda leaf: leaf.to(self.device).expand(len(seeds), *leaf.shape[1:]), edit.known)
            found = rolled(self, recipe, seeds, raw, like, edit, path, window or Window())
            if found is not None:
                return found
            denoiser, cond = self.guided(recipe, raw, len(seeds))
            grid = recipe.grid(reference(self.process).schedule, recipe.sampler.steps)
            like = self.facts.like(len(seeds), self.device) if like is None else like
            noise, x = KeyedNoise(seeds.to(self.device)), None
            if path is not None:
                cond = path.blend(cond, self.conditioner({k: v.to(self.device) for k, v in path.raw.items()}))
                x = path.start(self.process, like, noise, float(grid.t[0]))
            if edit is None:
                return sample(denoiser, self.process, recipe.sampler, grid, noise, like, cond, x=x)
            known = map_state(lambda leaf: leaf.to(self.device), edit.known)
            if edit.mask is not None:
                denoiser = Inpaint(denoiser, known, edit.mask)
            if edit.strength is None:
                return sample(denoiser, self.process, recipe.sampler, grid, noise, like, cond, x=x)
            whole = map_state(lambda leaf: leaf.expand(len(seeds), *leaf.shape[1:]).clone(), known)
            # The last nodes of a grid that ends clean may lie at one time: nothing is between them.
            below = [int(i) for i in (grid.t > grid.t[-1]).nonzero()[0]]
            start = float(grid.t[min(edit.first(len(grid.t) - 1), below[-1])])
            return sdedit(denoiser, self.process, recipe.sampler, grid, noise, whole, start, cond)

    def guided(self, recipe: Recipe, raw: Mapping[str, Tensor], rows: int) -> tuple[Denoiser, Any]:
        """Return the denoiser that a recipe samples from, and the embedded conditions."""
        cond = self.conditioner({name: value.to(self.device) for name, value in raw.items()})
        plain = SelfConditioned(self.denoiser) if self.denoiser.self_condition else self.denoiser
        null = self._null(recipe.guidance, raw, rows) if self.conditioner.width else None
        grid = recipe.grid(reference(self.process).schedule, recipe.sampler.steps)
        guided = recipe.guidance(plain, Setting(grid, null, raw, self.facts))
        return self.conditioner.constrain(guided, raw), cond

    def _null(self, guidance: Guidance, raw: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        """Return the embedded condition that guidance moves away from: none, or the negative one."""
        negative, kept = getattr(guidance, "negative", None), self.conditioner.kept
        if not negative and not kept:
            return self.conditioner.null(rows, self.device)
        absent = {"label": -1} if self.facts.labels else {}
        try:
            avoided = self.conditioner.parse({**absent, **negative}, rows) if negative else {}
        except ConfigError as error:
            raise ConfigError(f"guidance.negative: {error}") from error
        avoided = avoided or self.conditioner.nothing(rows, self.device)
        avoided |= {name: raw[name] for name in kept if name in raw}
        embedded: dict[str, Tensor] = self.conditioner({k: value.to(self.device) for k, value in avoided.items()})
        return embedded

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device


@dataclass(frozen=True)
class AutoGuidance(Guidance):
    """Autoguidance: away from a worse model of the same data, see `suffuse.guidance.Weaker`.

    Arguments:
        scale: w; 1 is no guidance.
        interval: Where it acts.
        ckpt: Run directory or checkpoint file of the worse model.
        weights: Which of its weights: ``ema`` or ``raw``.

    Raises:
        ConfigError: For an argument out of range or no checkpoint; in a draw, when the worse model is of other data.
        CheckpointError: When there is no checkpoint there.
    """

    ckpt: str | None = None
    weights: str = "ema"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ckpt is None:
            raise ConfigError("guidance.ckpt is not set; give the run directory or checkpoint of a weaker model")
        weaker = Model.load(read(find_checkpoint(str(self.ckpt))), self.weights)
        object.__setattr__(self, "_weaker", weaker.requires_grad_(False))

    def __call__(self, denoiser: Denoiser, setting: Setting) -> Denoiser:
        """Return the guided denoiser."""
        if self.scale == 1:
            return denoiser
        weaker: Model = self._weaker  # type: ignore[attr-defined]
        for what in ("shape", "labels", "scalars"):
            theirs, ours = getattr(weaker.facts, what), getattr(setting.facts, what)
            if theirs != ours and not (what != "shape" and not weaker.conditioner.width):
                raise ConfigError(
                    f"guidance.ckpt={self.ckpt}: its {what} {theirs} are not the model's {ours}; choose a model of the "
                    "same data"
                )
        device = next(denoiser.parameters()).device
        weaker.to(device)
        cond = weaker.conditioner({name: value.to(device) for name, value in (setting.raw or {}).items()})
        plain = SelfConditioned(weaker.denoiser) if weaker.denoiser.self_condition else weaker.denoiser
        return Weaker(denoiser, self.scale, plain, cond, self.interval)


def _fill(node: Any, facts: Facts) -> Any:
    """Return `node` with every ``sigma_data: null`` and ``fields: null`` replaced by what the data says."""
    known = {"sigma_data": facts.sigma_data, "fields": len(list(leaves(facts.shape)))}
    if isinstance(node, Mapping):
        return {
            key: known[key] if key in known and value is None else _fill(value, facts) for key, value in node.items()
        }
    return node
