"""Joins a job of two processes on this machine, as its flags say, and tells what JAX then sees."""

import jax

from emojax import distributed
from emojax.errors import run


def main(_):
    distributed.from_flags()
    print(jax.process_index(), jax.process_count(), jax.device_count())


if __name__ == "__main__":
    run(main)
