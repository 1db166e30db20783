"""Pretrained: published models in the folder format of diffusers, drawn from and trained by this core.

A folder holds a denoiser, the autoencoder of its latents, text encoders and a scheduler's config. Each becomes one of
the core's own nouns: a network behind a parameterisation (`network`, `scheduler`), a codec (`codec`), a conditioner
(`prompt`), a schedule, a process and a grid (`scheduler`, `spacing`). Samplers, guidance, observations and training
then know nothing of where the model came from. `folder` reads the files, `families` says which kinds there are,
`export` writes them back.

Importing the package imports nothing; diffusers and transformers (``suffuse[pretrained]``) are imported when a weight
is read.
"""
