class InputError(ValueError):
    """Bad input: config, data, checkpoint or flag. The message is one sentence: what, what is wrong, what is right."""


class Stopped(Exception):
    """The work was told to end by the signal `number`, or by another process that does it now (0)."""

    def __init__(self, text: str, number: int = 0):
        super().__init__(text)
        self.number = number
