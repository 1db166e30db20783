"""Build: the one place where a config node becomes an object, with errors that name the key."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from suffuse.errors import ConfigError, SuffuseError, suggest

__all__ = ["build"]


def build(node: Any, key: str, **extra: Any) -> Any:
    """Instantiate the ``_target_`` of a config node.

    Arguments:
        node: Mapping with ``_target_``.
        key: Where the node stands in the config, for error messages.
        extra: Further arguments of the target. Those that it does not take are left out.

    Raises:
        ConfigError: When the target cannot be imported or does not take an argument, naming `key`.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{key}: no _target_ in its config, so there is nothing to build")
    try:
        # Deferred, so that `extra` reaches the target as it is: Hydra would turn a mapping in it into a config.
        target = instantiate({**node, "_partial_": True}, _convert_="all")
        extra = _accepted(node["_target_"], extra)
        return functools.partial(target, **extra) if node.get("_partial_") else target(**extra)
    except SuffuseError as error:
        raise _named(error, key) from error
    except (InstantiationException, ImportError, AttributeError, TypeError, ValueError) as error:
        cause: BaseException = error
        # Hydra's text names neither the key nor, for a failed import, the reason: both are in the chain of causes.
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, SuffuseError):
            raise _named(cause, key) from error
        if isinstance(cause, TypeError) and (match := re.search(r"unexpected keyword argument '(\w+)'", str(cause))):
            text = f"{key}.{match[1]}: {node['_target_']} takes no such argument{_near(node, match[1])}"
            raise ConfigError(text) from error
        text = " ".join(str(cause).split())
        raise ConfigError(f"{key}: cannot build {node['_target_']}: {type(cause).__name__}: {text}") from error


def _named(error: SuffuseError, key: str) -> SuffuseError:
    """Return the error with the config key in front, unless it names it already."""
    return error if str(error).startswith(key) else type(error)(f"{key}: {error}")


def _accepted(target: str, extra: dict[str, Any]) -> dict[str, Any]:
    """Return those of `extra` that the target's signature has room for."""
    if not extra:
        return extra
    parameters = inspect.signature(get_object(target)).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return extra
    return {name: value for name, value in extra.items() if name in parameters}


def _near(node: Mapping[str, Any], word: str) -> str:
    parameters = inspect.signature(get_object(node["_target_"])).parameters
    return suggest(word, parameters, listing="arguments")
