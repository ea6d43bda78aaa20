"""A text for a text, by an encoder and a decoder."""
