import os

import jax

# Before Triton is imported: kernels run in its interpreter, for there is no GPU to test on.
os.environ["TRITON_INTERPRET"] = "1"
# The interpreter runs in host callbacks, which wait for ever where all of few threads dispatch.
jax.config.update("jax_cpu_enable_async_dispatch", False)
