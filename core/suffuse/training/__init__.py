"""Training: Lightning around the core; the only place, with the sampling job, that knows Lightning."""
