"""Loggers: metrics.csv in the run directory, and Weights & Biases."""

from __future__ import annotations

import csv
import io
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, WandbLogger

from suffuse.disk import named
from suffuse.errors import ConfigError
from suffuse.training.progress import is_first_rank, say

__all__ = ["CSVLogger", "Wandb", "wandb_logger"]

PATIENCE = 30.0
"""Seconds that a server of W&B is waited for, when a run starts and when it ends."""


class CSVLogger(Logger):
    """Appends one row per step to ``metrics.csv``; a column that turns up later widens the whole file.

    Arguments:
        run_dir: Directory of the run.
    """

    def __init__(self, run_dir: str) -> None:
        super().__init__()
        self.path = Path(run_dir) / "metrics.csv"
        self.columns: list[str] = ["step"]
        self.rows: list[dict[str, str]] = []
        if is_first_rank() and self.path.is_file():
            self._read()

    @property
    def name(self) -> str:
        """Name Lightning shows."""
        return "csv"

    @property
    def version(self) -> int:
        """The file is its own version."""
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The config has its own file."""

    def resume(self, step: int) -> None:
        """Drop the rows that a killed run wrote after its checkpoint of `step`."""
        if is_first_rank() and self.path.is_file():
            self.rows = [row for row in self.rows if int(row["step"]) <= step]
            self._rewrite()

    def _read(self) -> None:
        """Read back what an earlier process wrote; a torn last row is left out."""
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if (row["step"] or "").isdigit() and None not in row.values()]
        self.columns = [name for name in reader.fieldnames or ["step"] if name]
        self.rows = rows

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write `metrics` into the row of `step`."""
        new = [name for name in metrics if name not in self.columns]
        self.columns += new
        values = {name: f"{float(value):.9g}" for name, value in metrics.items()}
        same = bool(self.rows) and self.rows[-1]["step"] == str(step)
        if same:
            self.rows[-1] |= values
        else:
            self.rows.append({"step": str(step), **values})
        if same or new or len(self.rows) == 1:
            self._rewrite()
        else:
            with named(self.path), self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, restval="").writerow(self.rows[-1])

    def _rewrite(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(".metrics.csv.tmp")
        with named(self.path):
            temporary.write_text(text.getvalue())
        temporary.replace(self.path)


class Wandb(WandbLogger):
    """W&B's logger, which a server that does not answer delays by `PATIENCE` seconds at most, at either end of a run.

    What is logged is written to the run directory first and sent from there by a process of W&B's own, whose end is
    not that of the run.
    """

    _stopped = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run; an offline one where the server does not take one."""
        import wandb

        if self._experiment is not None:
            return self._experiment
        start: Any = WandbLogger.experiment.fget  # type: ignore[attr-defined]
        try:
            return start(self)
        except wandb.errors.Error as error:
            if self._wandb_init["mode"] != "online":
                raise
            text = " ".join(str(error).split())
            say(f"W&B logs offline: the server takes no run ({text[:200]}); send the run later with `wandb sync`")
        self._wandb_init["mode"] = "offline"
        wandb.teardown()  # its process still holds the run that failed
        return start(self)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Hand on figures and media, as long as somebody takes them."""
        if self._stopped:
            return
        run = self.experiment
        try:
            super().log_metrics(metrics, step)
        except Exception as error:  # of whatever broke between the two processes
            self._stop(error, run)

    def _stop(self, error: Exception, run: Any) -> None:
        self._stopped, self._experiment = True, None
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        say(f"W&B has ended ({text}); the run goes on, metrics.csv is complete, and `wandb sync` sends {_folder(run)}")

    @rank_zero_only
    def finish(self) -> None:
        """Send the rest; what the server does not take in time stays on the disk, and is said."""
        run, self._experiment = self._experiment, None
        if run is None:
            return
        try:
            run.finish()
        except Exception as error:
            self._stop(error, run)
        if getattr(run, "_finish_timed_out", False) and self._wandb_init["mode"] == "online":
            say(f"W&B has not taken all within {PATIENCE:.0f} s; send the rest later with `wandb sync {_folder(run)}`")


def _folder(run: Any) -> Path:
    """Return where W&B keeps a run on this disk."""
    found = Path(run.dir).parent
    return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found


def wandb_logger(
    run_dir: str, run_config: Mapping[str, Any], project: str = "suffuse", entity: str | None = None,
    group: str | None = None, tags: Sequence[str] = (), mode: str = "auto",
) -> Wandb:  # fmt: skip
    """Return the W&B logger of a run directory; a resumed run continues the same W&B run.

    Arguments:
        run_dir: Directory of the run; its file ``wandb_id`` keeps the run's id.
        run_config: Resolved config, stored once with the run.
        project: W&B project.
        entity: W&B user or team.
        group: W&B group.
        tags: W&B tags.
        mode: ``online``, ``offline``, ``disabled``, or ``auto``: online where there is a key and a network.

    Raises:
        ConfigError: When the mode is none of these.
    """
    import wandb

    if mode not in ("auto", "online", "offline", "disabled"):
        raise ConfigError(f"logger.wandb.mode={mode} is not one of auto, online, offline, disabled")
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or _reachable_mode()
    path = Path(run_dir)
    name = path / "wandb_id"
    if not name.is_file() and is_first_rank():
        path.mkdir(parents=True, exist_ok=True)
        name.write_text(secrets.token_hex(4))
    settings: dict[str, Any] = {"console": "off", "silent": True, "init_timeout": PATIENCE}
    if "finish_timeout" in wandb.Settings.model_fields:  # not in old versions, which wait for ever
        settings["finish_timeout"] = PATIENCE
    logger = Wandb(
        name=path.name, save_dir=str(path), id=name.read_text().strip() if name.is_file() else None, project=project,
        resume="allow", config=dict(run_config), entity=entity, group=group, tags=list(tags), mode=mode,
        settings=wandb.Settings(**settings),
    )  # fmt: skip
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it on; W&B warns of it
    return logger


def _reachable_mode() -> str:
    """Return ``online`` where there is a key and the server answers; else say why not and return ``offline``."""
    if not _has_key():
        reason = "no API key (wandb login, or WANDB_API_KEY)"
    else:
        host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2]
        host, _, port = host.strip("/").partition(":")
        try:
            socket.create_connection((host, int(port or 443)), timeout=3).close()
        except OSError as error:
            reason = f"{host} cannot be reached ({error})"
        else:
            return "online"
    say(f"W&B logs offline: {reason}; send the run later with `wandb sync`")
    return "offline"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text()
