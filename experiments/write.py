"""Writes one text in the terminal as it comes, steered or not.

    python -m experiments.write --prompt "I looked out of the window and" [--model gemma-3-270m]
    python -m experiments.write --model smollm2-135m-instruct --chat --prompt "How was your day?"

`--interventions` is a folder that `emojax.lm.intervention_files.save` wrote.
"""

from pathlib import Path

from absl import flags

from emojax import errors
from emojax.lm import intervention_files, sources
from emojax.lm.chat import chat_rows
from emojax.lm.generate import GenerateSettings
from emojax.lm.stream import stream

MODEL = flags.DEFINE_string("model", "gemma-3-270m", "As emojax.lm.sources.load takes it.")
PROMPT = flags.DEFINE_string("prompt", None, "What to continue, or to answer.", required=True)
CHAT = flags.DEFINE_bool("chat", False, "Whether to answer by the model's chat template.")
INTERVENTIONS = flags.DEFINE_string("interventions", None, "A folder of saved interventions.")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 80, "Tokens to write, at most.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 takes the likeliest token.")
SEED = flags.DEFINE_integer("seed", 0, "Of the choice of tokens.")


def main(_):
    """Prints the text piece by piece."""
    settings = GenerateSettings(
        max_new_tokens=MAX_NEW_TOKENS.value, temperature=TEMPERATURE.value, seed=SEED.value
    )
    folder = INTERVENTIONS.value
    interventions = intervention_files.load(Path(folder)) if folder else ()
    lm = sources.load(MODEL.value)
    prompt = chat_rows(lm, [PROMPT.value])[0] if CHAT.value else PROMPT.value
    for piece in stream(lm, prompt, settings, interventions):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    errors.run(main)
