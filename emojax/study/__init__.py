"""One whole run: words read, features found, ratings predicted, text steered, all of it kept."""
