"""Sparse-autoencoder encode and decode for JAX."""
