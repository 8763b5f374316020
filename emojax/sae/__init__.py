"""Sparse autoencoders: activations in, a few active latents per token out.

The way of the data: `corpus` (text → rows of tokens), `store` (rows → activations on disk,
shuffled), `trainer` (activations → dictionary), `metrics` (how good is it), `artefact` (one folder
that holds all of it). `coder` is the dictionary itself: what the other rooms use.
"""
