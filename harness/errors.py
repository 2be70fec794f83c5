"""What a user did that cannot be done: told in one sentence, never as a traceback."""


class UsageError(ValueError):
    """The user asked for something that cannot be done as asked; one sentence."""
