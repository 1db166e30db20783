"""Jobs: what a composed config does. torch and Lightning start here."""

from __future__ import annotations

from suffuse.jobs.record import plain_config, provider
from suffuse.jobs.sampling import job_of, sample
from suffuse.jobs.training import train
from suffuse.jobs.tuning import tune

__all__ = ["job_of", "plain_config", "provider", "sample", "train", "tune"]
