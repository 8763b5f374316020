"""Other libraries' dictionaries, one file per format."""
