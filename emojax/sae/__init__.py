"""Sparse autoencoders: activations in, a few active latents per token out.

The way of the data: `documents` and `hub` (files, data sets → documents), `corpus` (documents → a
finite draw of rows of tokens) or `text_stream` (rows without end, by Grain), `store` (rows →
activations on disk, shuffled) or `stream` (rows → activations as they are needed; `packing` on the
host, `mixing` in the devices' memory), `trainer` (activations → dictionary; `source` says what it
takes them from), `metrics` (how good is it), `artefact` (one folder that holds all of it). `coder`
is the dictionary itself: what the other rooms use.

The way of a training step: `train_config` (what was asked for), `state` (where everything lives),
`objectives` (one file per architecture), `losses`, `step` (gradients and Adam, fused or by optax),
`schedule`; `trainer` is the loop around it, with `checkpoints`, `log`, `speed`, `progress` and
`interrupt`. `shards` says what crosses the mesh.
"""
