"""What `tpu.compile_check` and `tpu.step_time` are both asked for."""

from absl import flags

from tpu.models import MODELS as KNOWN

MODELS = flags.DEFINE_list("models", list(KNOWN), "Keys of tpu/models.py.")
LATENTS = flags.DEFINE_list("latents", ["131072", "1048576"], "Sizes of the dictionary.")
ACTIVE = flags.DEFINE_integer("active", 64, "k: latents active on a token.")
CONTEXT = flags.DEFINE_integer("context", 512, "Tokens of a row of text.")
TABLE = flags.DEFINE_bool("table", False, "Write the program's tables in tpu/README.md anew.")
