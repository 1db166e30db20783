r"""Perturbed: guidance away from the same network with a layer spoilt, so that no condition is needed.

    x0 = x0_given + (w - 1) (x0_given - x0_spoilt) [+ (c - 1) (x0_given - x0_null)]

    attention   the attention map of the named layers is the identity: each token sees its own value alone
                "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance", Ahn et al. 2024, section 4
    skip        the named blocks return their input: skip-layer guidance, "Spatiotemporal Skip Guidance for Enhanced
                Video Diffusion Sampling", Hyung et al. 2024, and the Stable Diffusion 3.5 samplers

Layers are named by their module path in the network, ``blocks.3.attention``, with ``*`` for any part of it. Hooks are
registered for the perturbed call alone, and a compiled network runs uncompiled in it: its graph knows no hooks.
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from suffuse.denoiser import Condition, Denoiser, Prediction
from suffuse.errors import ConfigError, suggest
from suffuse.guidance.guided import Guided, ask
from suffuse.guidance.interval import Ends, Interval, check_scale
from suffuse.process import Process, bound
from suffuse.state import State, map_state

__all__ = ["Perturbed", "named_layers"]


class Perturbed(Guided):
    """Perturbed-attention and skip-layer guidance.

    Arguments:
        denoiser: The denoiser, around a network or around another denoiser of one.
        scale: w, at least 0; 1 is the denoiser itself. The papers' s is w - 1.
        layers: Module paths in the network; None for the middle one of its attention layers, or of its blocks.
        how: ``attention`` or ``skip``.
        null: The embedded absent condition, where classifier-free guidance is to act as well.
        cfg: Its scale c.
        interval: (lowest, highest) half log-SNR at which guidance acts; None leaves an end open.

    Raises:
        ConfigError: For a negative scale, an empty interval, another `how`, or a path that names nothing; in a call,
            for a layer that does not attend or whose input does not fit its output.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, layers: Sequence[str] | None = None, how: str = "attention",
        null: Mapping[str, Tensor] | None = None, cfg: float = 1.0, interval: Ends | Interval = (None, None),
    ) -> None:  # fmt: skip
        super().__init__(denoiser, scale, interval)
        if how not in ("attention", "skip"):
            raise ConfigError(f"guidance: how={how} is neither 'attention' nor 'skip'")
        self.null, self.cfg = null, check_scale(cfg, "guidance.cfg")
        self.how, self.layers = how, named_layers(_network(denoiser), layers, how)

    def forward(self, x: State, t: float | Tensor, cond: Condition = None) -> Prediction:
        """Return the guided prediction."""
        inside = self._at(t)[0]
        free = self.cfg != 1 and self.null is not None and cond is not None
        if inside is False or (self.scale == 1 and not free):
            prediction: Prediction = self.denoiser(x, t, cond)
            return prediction
        if free:
            assert self.null is not None and cond is not None  # what free means
            given, without = ask(self.denoiser, x, t, [cond, self.null])
        else:
            given = without = self.denoiser(x, t, cond).x0
        with self.perturbing():
            spoilt = self.denoiser(x, t, cond).x0 if self.scale != 1 else given

        def guide(g: Tensor, s: Tensor, u: Tensor, process: Process) -> Tensor:
            if not g.is_floating_point():
                return g
            guided = g + (self.scale - 1) * (g - s)
            guided = guided + (self.cfg - 1) * (g - u) if free else guided
            return guided if isinstance(inside, bool) else torch.where(process.space.expand(inside, g), guided, g)

        return Prediction(map_state(guide, given, spoilt, without, bound(self.process, x)))

    @property
    def compiled(self) -> bool:
        """Whether a part of the denoiser is compiled."""
        parts = self.denoiser.modules()
        return any(getattr(m, "_compiled_call_impl", None) is not None or hasattr(m, "_orig_mod") for m in parts)

    @contextlib.contextmanager
    def perturbing(self) -> Iterator[None]:
        """Have the layers spoilt inside."""
        network = _network(self.denoiser)
        hooks: list[Any] = []
        try:
            for name in self.layers:
                layer = network.get_submodule(name)
                if self.how == "skip":
                    hooks.append(layer.register_forward_hook(_Skip(name)))
                else:
                    spoil = _Identity(name)
                    hooks.append(layer.register_forward_pre_hook(spoil.enter))
                    hooks.append(layer.register_forward_hook(spoil.leave, always_call=True))
            # Asked only where something is compiled: it loads the compiler, which takes seconds.
            with torch.compiler.set_stance("force_eager") if self.compiled else contextlib.nullcontext():
                yield
        finally:
            for hook in hooks:
                hook.remove()


def named_layers(network: nn.Module, layers: Sequence[str] | None, how: str = "attention") -> tuple[str, ...]:
    """Return the full paths of layers.

    Arguments:
        network: The network.
        layers: Paths, where ``*`` stands for anything; None for the middle layer that `how` fits.
        how: ``attention``: layers whose class is called so; ``skip``: the entries of module lists.

    Raises:
        ConfigError: For a path that names nothing, with the nearest one, and when there is no layer to choose.
    """
    names = [name for name, _ in network.named_modules() if name]
    if layers is None:
        fit = [name for name in names if _fits(network, name, how)]
        if not fit:
            raise ConfigError(f"guidance.layers: the network has no {how} layers to choose from; name some")
        return (fit[len(fit) // 2],)
    if isinstance(layers, str) or not layers:
        raise ConfigError(f"guidance.layers={layers!r} must be a list of module paths, for example [{names[-1]}]")
    found: list[str] = []
    for pattern in layers:
        matched = fnmatch.filter(names, str(pattern))
        if not matched:
            raise ConfigError(f"guidance.layers: the network has no module {pattern!r}{_near(str(pattern), names)}")
        found += [name for name in matched if name not in found]
    return tuple(found)


def _near(path: str, names: Sequence[str]) -> str:
    """Return a hint: the nearest path of as many parts, or the top of the network."""
    alike = [name for name in names if name.count(".") == path.count(".")]
    hint = suggest(path, alike)
    return hint if "did you mean" in hint else suggest("", {name.split(".")[0] for name in names}, listing="its parts")


def _fits(network: nn.Module, name: str, how: str) -> bool:
    if how == "attention":
        return "attention" in type(network.get_submodule(name)).__name__.lower()
    parent = name.rpartition(".")[0]
    layer = network.get_submodule(name)
    # A residual block that changes its input's shape has a layer on its skip connection.
    keeps = isinstance(getattr(layer, "skip", None), nn.Identity | None)
    return keeps and isinstance(network.get_submodule(parent), nn.ModuleList) and not isinstance(layer, nn.ModuleList)


def _network(denoiser: nn.Module) -> nn.Module:
    """Return the network at the heart of denoisers around denoisers."""
    while isinstance(inner := getattr(denoiser, "denoiser", None), nn.Module):
        denoiser = inner
    network = getattr(denoiser, "network", None)
    return network if isinstance(network, nn.Module) else denoiser


class _Skip:
    """Hook: the output is the input."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        if not args or not isinstance(first, Tensor) or args[0].shape != first.shape:
            raise ConfigError(
                f"guidance.layers: {self.name} cannot be skipped, its output has another shape than its input; name a "
                "residual block that keeps the shape"
            )
        return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]


class _Identity(TorchFunctionMode):
    """Attention that returns the values: the map softmax(q k^T) replaced by the identity."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.seen = name, False

    def enter(self, layer: nn.Module, args: Any) -> None:
        """Begin to replace."""
        self.seen = False
        self.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, layer: nn.Module, args: Any, output: Any) -> None:
        """Stop replacing."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if not self.seen:
            raise ConfigError(
                f"guidance.layers: {self.name} calls no scaled_dot_product_attention over its own tokens; name a "
                "self-attention layer"
            )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the values in place of what attention makes of them."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            q, k, v = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(("query", "key", "value")))
            if q.shape[:-1] == v.shape[:-1] and k.shape == q.shape:
                self.seen = True
                return v
        return func(*args, **kwargs)
