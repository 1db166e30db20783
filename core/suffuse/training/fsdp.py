"""FSDP: weights, gradients, averages and optimizer state spread over the processes ("PyTorch FSDP", Zhao et al. 2023).

Lightning's `ModelParallelStrategy` with torch's `fully_shard` (FSDP2): every block of a network is gathered when it is
used and given back after. A checkpoint is a folder with one file per process, see `suffuse.sharded`, that any number of
processes continues; ``suffuse consolidate`` makes one file of it.

Tensor and sequence parallelism, for clips too long for one device, have their place in `Sharded.spread`: a subclass
named by ``trainer.strategy._target_`` gets the module and the two-dimensional mesh of `ModelParallelStrategy`, applies
torch's ``parallelize_module`` to the blocks on ``mesh["tensor_parallel"]`` and then calls this class's `spread`, which
uses ``mesh["data_parallel"]`` alone. All ranks of one tensor-parallel group must then read the same rows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from suffuse import checkpoint as files
from suffuse import sharded
from suffuse.errors import ConfigError
from suffuse.training.background import Background

__all__ = ["Sharded", "blocks"]


def blocks(module: nn.Module) -> list[nn.Module]:
    """Return the parts of a network that are gathered by themselves: the members of its lists of modules."""
    found = []
    for parent in module.modules():
        if isinstance(parent, nn.ModuleList):
            members = (child for child in parent if not isinstance(child, nn.ModuleList))
            found += [child for child in members if any(True for _ in child.parameters())]
    return found


class Sharded(ModelParallelStrategy):
    """FSDP2 over all processes.

    Arguments:
        offload: Keep weights, gradients and optimizer state in the memory of the CPU between uses.
        gather: What weights are sent as: null for their own float32, or ``bf16``, which halves what is sent; gradients
            are summed in float32 either way.
        keep_gathered: Keep blocks gathered between the forward and the backward pass: faster, at the cost of memory.

    Raises:
        ConfigError: For another `gather`.
    """

    def __init__(self, offload: bool = False, gather: str | None = None, keep_gathered: bool = False) -> None:
        if gather not in (None, "bf16"):
            raise ConfigError(f"trainer.strategy.gather={gather} is neither null nor bf16")
        backend = "cpu:gloo,cuda:nccl" if offload and torch.cuda.is_available() else None
        super().__init__(data_parallel_size="auto", tensor_parallel_size=1, process_group_backend=backend)
        self.offload, self.gather, self.keep_gathered = offload, gather, keep_gathered
        self.background = Background()

    def setup_environment(self) -> None:
        """Make one group of all processes, of however many nodes."""
        if self._data_parallel_size == "auto":
            self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def spread(self, module: nn.Module) -> None:
        """Spread the weights of a module whose ``training_step`` is the forward pass, block by block."""
        mesh = self.device_mesh["data_parallel"]
        how: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": not self.keep_gathered}
        if self.gather:
            how["mp_policy"] = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        if self.offload:
            how["offload_policy"] = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
        for block in blocks(module):
            fully_shard(block, **how)
        fully_shard(module, **how)
        register_fsdp_forward_method(module, "training_step")

    # Checkpoints.

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning ask for the optimizer's state, which is not read with the weights."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the weights as they are spread."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state of the optimizer as it is spread, in the format of a single process."""
        return (optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write this process's part; the first one waits for the others and gives the folder its name."""
        self.background.begin()
        path = Path(filepath)
        folder = Path(self.broadcast(str(path.with_name(f".{path.name}.{os.getpid()}.tmp"))))
        tree, pieces = sharded.split(checkpoint)
        rank, world = self.global_rank, self.world_size

        def write() -> None:
            sharded.write_part(folder, rank, world, pieces)
            if rank == 0:
                sharded.finish(folder, tree, world, path)

        self.background.submit(write)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint of any strategy; spread tensors stay in their files until they are taken."""
        path = Path(checkpoint_path)
        return sharded.read(path, lazy=True) if path.is_dir() else files.read(path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's pieces of the weights."""
        assert self.lightning_module is not None
        saved = checkpoint["state_dict"]
        for name, value in self.lightning_module.state_dict().items():
            sharded.assign(value, saved[name])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's pieces of the optimizer's state."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            state = {}
            for number, parameter in zip(numbers, parameters, strict=True):
                state[number] = {key: _like(value, parameter) for key, value in saved["state"].get(number, {}).items()}
            optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})


def _like(value: Any, parameter: torch.Tensor) -> Any:
    """Return an entry of an optimizer's state, spread as its parameter where it has the parameter's shape."""
    if isinstance(value, sharded.Pieces | torch.Tensor) and tuple(value.shape) == tuple(parameter.shape):
        return sharded.spread(value, parameter)
    return value.whole() if isinstance(value, sharded.Pieces) else value
