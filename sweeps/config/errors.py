"""What a user wrote and can put right."""


class ConfigError(ValueError):
    """What a user wrote cannot be run. The message is one line: where, what is wrong, what we got,
    what is allowed.
    """
