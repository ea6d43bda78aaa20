class InputError(ValueError):
    """Something that the user can put right: a setting, a file, a row. The message is one line: where, what is wrong, what is allowed."""
