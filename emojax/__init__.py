"""Find, compare with human ratings, and steer the emotion features of a language model.

Text goes in (`emojax.lm`), activations come out, a sparse autoencoder (`emojax.sae`) turns them
into features, human emotion data (`emojax.emotion`) says which of them are emotions, and those
features, turned into vectors (`emojax.steer`), steer the text that the model writes.
"""

__version__ = "0.1.0"
